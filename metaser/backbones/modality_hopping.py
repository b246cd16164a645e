"""Attentive modality hopping (AMH): each modality attends to its frames, asked by the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.backbones.layers import attend, check_at_least, last_state, shortened
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded

MODALITIES = ("audio", "text", "video")
MOST_HOPS = 12


class ModalityHopping(nn.Module):
    """A GRU a view, whose last state is the view's summary, and hops from view to view.

    The views are the modalities, or streams of features of the audio (MFCC beside prosody), which
    hop like modalities. A hop takes the next view in the order last, first, second, …, last, first
    and replaces its summary: with the states h of the view and the summaries s of the others,

        q = W [s, …] + b,  weights = softmax over real frames of q . h,  summary = weighted sum of h

    where every hop has a W and b of its own. The embedding is all summaries side by side. A single
    view has no others: its own summary asks, which is attention over its own states.

    A modality that a clip lacks has the summary 0, and keeps it.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of each modality ("audio", "text", "video"); an int is for audio alone.
    hidden : int or dict of str to int
        Units of the GRU of each modality, which every stream of the audio gets.
    hops : int
        How often a summary is replaced, in [0, 12]; AMH-N of the paper has N.
    streams : sequence of int, optional
        Channels of each stream of the audio, in the order in which they lie; they add up to the
        audio's channels. Without it the audio is one view.
    pool : int
        Neighbouring frames of audio, at least 1, whose mean is one step of the GRU; steps take
        time.

    Raises
    ------
    ValueError
        If a modality is unknown, ``hidden`` lacks one, or a number is out of its range.

    References
    ----------
    Yoon, Dey, Lee, Jung, "Attentive Modality Hopping Mechanism for Speech Emotion Recognition",
    ICASSP 2020, arXiv:1912.00846.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        hidden: int | dict[str, int] = 48,
        hops: int = 3,
        streams: Sequence[int] | None = None,
        pool: int = 4,
    ) -> None:
        channels = {"audio": channels} if isinstance(channels, int) else channels
        if not channels or not set(channels) <= set(MODALITIES):
            raise ValueError(f"channels must name some of {MODALITIES}, not {list(channels)}")
        hidden = dict.fromkeys(channels, hidden) if isinstance(hidden, int) else hidden
        if not set(channels) <= set(hidden):
            raise ValueError(f"hidden must name all of {list(channels)}, not only {list(hidden)}")
        if not 0 <= hops <= MOST_HOPS:
            raise ValueError(f"hops must be in [0, {MOST_HOPS}], not {hops}")
        check_at_least(1, pool=pool)
        self.widths = {name: (channels[name],) for name in MODALITIES if name in channels}
        if streams is not None:
            if sum(streams) != channels.get("audio", 0):
                raise ValueError(
                    f"streams must add up to the {channels.get('audio', 0)} channels of the audio, "
                    f"not to {sum(streams)}"
                )
            self.widths["audio"] = tuple(streams)
        super().__init__()
        self.channels = {name: channels[name] for name in self.widths}
        self.pool = pool
        views = [(name, width) for name, widths in self.widths.items() for width in widths]
        sizes = [hidden[name] for name, _ in views]
        self.dim = sum(sizes)
        self.grus = nn.ModuleList(
            nn.GRU(width, hidden[name], batch_first=True) for name, width in views
        )
        self.order = [(hop - 1) % len(views) for hop in range(hops)]
        self.questions = nn.ModuleList(
            nn.Linear(self.dim - sizes[view] or self.dim, sizes[view]) for view in self.order
        )

    def forward(
        self, audio: Padded | None = None, text: Padded | None = None, video: Padded | None = None
    ) -> Tensor:
        """Return embeddings (clips, dim).

        A modality of ``channels`` has to be there, a clip that lacks it being a row without real
        frames.

        Raises
        ------
        ValueError
            If the modalities are others than those of ``channels``.
        """
        given = {"audio": audio, "text": text, "video": video}
        present = [name for name, padded in given.items() if padded is not None]
        if present != list(self.widths):
            raise ValueError(
                f"this backbone needs {' and '.join(self.widths)}, as its channels say, "
                f"but the task gives {' and '.join(present) or 'nothing'}"
            )
        views = []
        for name, widths in self.widths.items():
            padded = shortened(given[name], self.pool) if name == "audio" else given[name]
            views += [Padded(part, padded.mask) for part in padded.values.split(widths, dim=-1)]
        masks = [view.mask for view in views]
        states = [recurrent(gru, view.values, view.mask) for gru, view in zip(self.grus, views)]
        summaries = [last_state(*view) for view in zip(states, masks)]
        for view, question in zip(self.order, self.questions):
            others = summaries[:view] + summaries[view + 1 :] or summaries
            query = question(torch.cat(others, dim=-1))
            scores = (states[view] @ query.unsqueeze(-1)).squeeze(-1)
            summaries[view] = attend(scores, states[view], masks[view])
        return torch.cat(summaries, dim=-1)
