"""Speech cut at pauses: any backbone on each segment, attentive LSTM over the segments."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.backbones.layers import AttentionPooling, check_at_least, last_state, shortened
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded

SOUNDS = ("verbal", "laugh", "breath", "shout", "silence")
"""What a segment may sound like, in the order of the sound scores."""


class SegmentSequence(nn.Module):
    """Two backbones embed each segment, its emotion and its sound; an LSTM reads the sequence.

    A clip is cut at its pauses, and a pause is a segment, too, because the length of a silence says
    something. The vector of a segment is the embedding of its emotion, the embedding of its sound,
    and the scores of the sounds, which ``sound_loss`` can teach. A bidirectional LSTM reads the
    vectors; the embedding is the mean of its states, weighted by attention to
    [final state; state].

    The paper has a ResNet-18 for both backbones, cuts by a recogniser trained beforehand, and
    decodes one emotion per segment; here the result is one embedding per clip.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    backbone : callable
        Makes a backbone of audio from ``channels`` and the arguments in ``inner``. Called twice.
    inner : dict, optional
        Arguments of ``backbone``.
    hidden : int
        Units per direction of the LSTM.
    segments : int
        Largest number of segments per clip, at least 1; all that follows belongs to the last.
    threshold : float
        A frame is quiet if its level is below this share, in (0, 1), of the way from the lowest to
        the highest level of its clip. Levels should be logarithmic, as in log-mel spectra.
    pause, shortest : int
        Least number of quiet frames in a row that make a pause, and of frames in a segment (unless
        the clip is shorter); 1 <= ``shortest`` <= ``pause``.
    level : int, optional
        Channel that is the level of a frame. Without it the level is the mean over the channels.
    pool : int
        Neighbouring frames of a segment, at least 1, whose mean is one frame for the backbones.

    Raises
    ------
    ValueError
        If a number is out of its range.

    References
    ----------
    Hsu, Su, Wu, Chen, "Speech Emotion Recognition Considering Nonverbal Vocalization in Affective
    Conversations", IEEE/ACM TASLP 29, 2021.
    """

    def __init__(
        self,
        channels: int,
        backbone: Callable[..., nn.Module],
        inner: dict[str, Any] | None = None,
        *,
        hidden: int = 32,
        segments: int = 5,
        threshold: float = 0.4,
        pause: int = 15,
        shortest: int = 10,
        level: int | None = None,
        pool: int = 4,
    ) -> None:
        check_at_least(1, segments=segments, shortest=shortest, pool=pool)
        check_at_least(shortest, pause=pause)
        if not 0 < threshold < 1:
            raise ValueError(
                f"threshold must be between 0 and 1, not {threshold}: choose a share, such as 0.4"
            )
        if level is not None and not 0 <= level < channels:
            raise ValueError(
                f"level must be one of the {channels} channels, not {level}: count from 0"
            )
        super().__init__()
        self.channels = {"audio": channels}
        self.segments, self.threshold, self.pause = segments, threshold, pause
        self.shortest, self.level, self.pool = shortest, level, pool
        self.emotion, self.sound = (backbone(channels, **(inner or {})) for _ in range(2))
        emotion_dim, sound_dim = cast(int, self.emotion.dim), cast(int, self.sound.dim)
        self.sounds = nn.Linear(sound_dim, len(SOUNDS))
        width = emotion_dim + sound_dim + len(SOUNDS)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dim = 2 * hidden
        self.attention = AttentionPooling(2 * self.dim, hidden)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim); 0 for a clip without real frames."""
        parts, mask = self._cut(audio)
        sound = self.sound(audio=parts)
        vectors = torch.cat([self.emotion(audio=parts), sound, self.sounds(sound)], dim=-1)
        vectors = vectors.reshape(-1, self.segments, vectors.shape[-1])
        states = recurrent(self.lstm, vectors, mask)
        ahead, back = states.chunk(2, dim=-1)
        final = torch.cat([last_state(ahead, mask), back[:, 0]], dim=-1)
        keys = torch.cat([final.unsqueeze(1).expand_as(states), states], dim=-1)
        return cast(Tensor, self.attention(keys, states, mask))

    def places(self, audio: Padded) -> Tensor:
        """Return the segment of each frame, (clips, frames) int64 from 0; -1 if it is not real."""
        frames, mask = audio.values, audio.mask
        level = frames.mean(dim=-1) if self.level is None else frames[..., self.level]
        lowest = level.masked_fill(~mask, float("inf")).amin(dim=-1, keepdim=True)
        highest = level.masked_fill(~mask, float("-inf")).amax(dim=-1, keepdim=True)
        quiet = mask & (level < lowest + self.threshold * (highest - lowest))
        sounding = _long_runs(mask & ~_long_runs(quiet, self.pause), self.shortest)
        changes = sounding[:, 1:] != sounding[:, :-1]
        index = functional.pad(changes.long().cumsum(dim=-1), (1, 0)).clamp(max=self.segments - 1)
        return index.masked_fill(~mask, -1)

    def sound_scores(self, audio: Padded) -> Tensor:
        """Return scores (clips, segments, 5) of the ``SOUNDS``; meaningless for absent segments."""
        parts, mask = self._cut(audio)
        scores: Tensor = self.sounds(self.sound(audio=parts))
        return scores.unflatten(0, mask.shape)

    def sound_loss(self, audio: Padded, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of labelled segments, a scalar; 0 if there are none.

        Parameters
        ----------
        audio : Padded
            Clips.
        labels : Tensor
            (clips, segments) int64 indices of ``SOUNDS``, for the segments of ``places``; negative
            where the sound is not known. Labels of absent segments do not count.
        """
        index = torch.arange(self.segments, device=labels.device)
        known = (labels >= 0) & (index <= self.places(audio).amax(dim=1, keepdim=True))
        losses = functional.cross_entropy(
            self.sound_scores(audio).movedim(-1, 1), labels.clamp(min=0), reduction="none"
        )
        return (losses * known).sum() / known.sum().clamp(min=1)

    def _cut(self, audio: Padded) -> tuple[Padded, Tensor]:
        """All segments (clips x segments, frames, channels), and which are real (clips, segments).

        A segment that is not real has one frame of zeros, so that backbones never see empty clips.
        """
        index = torch.arange(self.segments, device=audio.mask.device).unsqueeze(-1)
        lengths = (self.places(audio).unsqueeze(1) == index).sum(dim=-1, keepdim=True)
        first = lengths.cumsum(dim=1) - lengths
        frames = torch.arange(audio.mask.shape[-1], device=audio.mask.device)
        inside = frames < lengths
        zeros = audio.mask.shape[-1]  # the index of a frame of zeros that is appended
        source = torch.where(inside, first + frames, zeros).flatten(1).unsqueeze(-1)
        values = functional.pad(audio.values, (0, 0, 0, 1))
        values = values.gather(1, source.expand(-1, -1, values.shape[-1]))
        values = values.reshape(values.shape[0], self.segments, -1, values.shape[-1])
        parts = Padded(values.flatten(0, 1), (inside | (frames == 0)).flatten(0, 1))
        return shortened(parts, self.pool), lengths.squeeze(-1) > 0


def _long_runs(chosen: Tensor, length: int) -> Tensor:
    """Chosen frames in runs of at least ``length``; input and output are (clips, frames) bool."""
    starts = _counts(functional.pad(chosen, (0, length - 1)), length) == length
    return _counts(functional.pad(starts, (length - 1, 0)), length) > 0


def _counts(chosen: Tensor, length: int) -> Tensor:
    """How many of every ``length`` neighbouring frames are chosen."""
    total = functional.pad(chosen.long().cumsum(dim=-1), (1, 0))
    return total[..., length:] - total[..., :-length]
