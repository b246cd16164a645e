"""Attentive modality hopping (AMH): each modality attends to its frames, as the others ask."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from metaser.backbones.layers import attend, check_at_least, last_state, shortened
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded
from metaser.naming import MODALITIES

MOST_HOPS = 12


class ModalityHopping(nn.Module):
    """One GRU per view, whose last state is the view's summary, and hops from view to view.

    The views are the modalities, or streams of audio features (such as MFCC and prosody), which hop
    like modalities. A hop takes the next view in the order last, first, second, …, last, first and
    replaces its summary: with the states h of the view and the summaries s of the others,

        q = W [s, …] + b,  weights = softmax over real frames of q . h,  summary = weighted sum of h

    Every hop has its own W and b. The embedding is the concatenation of all summaries. A single
    view has no others: its own summary asks, which is attention over its own states.

    A modality that a clip lacks has the summary 0, and keeps it.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of each modality ("audio", "text", "video"); an int is for audio alone.
    hidden : int or dict of str to int
        Units of the GRU of each modality; every stream of the audio has a GRU of that size.
    hops : int
        How often a summary is replaced, in [0, 12]; AMH-N of the paper has N.
    streams : sequence of int, optional
        Channels of each stream of the audio, in their order; they add up to the audio's channels.
        Without it the audio is one view.
    pool : int
        Neighbouring frames of audio, at least 1, whose mean is one step of the GRU; fewer steps are
        faster.

    Raises
    ------
    ValueError
        If a modality is unknown or missing in ``hidden``, or a number is out of its range.

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
            raise ValueError(
                f"channels must name some of {MODALITIES}, not {list(channels)}: "
                "give at least one of them, and no other"
            )
        hidden = dict.fromkeys(channels, hidden) if isinstance(hidden, int) else hidden
        if not set(channels) <= set(hidden):
            raise ValueError(
                f"hidden must name all of {list(channels)}, not only {list(hidden)}: add the others"
            )
        if not 0 <= hops <= MOST_HOPS:
            raise ValueError(f"hops must be in [0, {MOST_HOPS}], not {hops}: change hops")
        check_at_least(1, pool=pool)
        self.widths: dict[str, tuple[int, ...]] = {
            name: (channels[name],) for name in MODALITIES if name in channels
        }
        if streams is not None:
            if sum(streams) != channels.get("audio", 0):
                raise ValueError(
                    f"streams must add up to the {channels.get('audio', 0)} channels of the audio, "
                    f"not to {sum(streams)}: correct streams"
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

        All modalities of ``channels`` must be given. A clip that lacks one is a row without real
        frames.

        Raises
        ------
        ValueError
            If the modalities are not those of ``channels``.
        """
        optional = {"audio": audio, "text": text, "video": video}
        given = {name: padded for name, padded in optional.items() if padded is not None}
        if list(given) != list(self.widths):
            raise ValueError(
                f"this backbone must get {' and '.join(self.widths)}, as its channels say, "
                f"not {' and '.join(given) or 'nothing'}: choose front ends for these modalities"
            )
        views: list[Padded] = []
        for name, widths in self.widths.items():
            padded = shortened(given[name], self.pool) if name == "audio" else given[name]
            views += [Padded(part, padded.mask) for part in padded.values.split(widths, dim=-1)]
        masks = [view.mask for view in views]
        grus = [cast(nn.GRU, gru) for gru in self.grus]
        states = [recurrent(gru, view.values, view.mask) for gru, view in zip(grus, views)]
        summaries = [last_state(*view) for view in zip(states, masks)]
        for view, question in zip(self.order, self.questions):
            others = summaries[:view] + summaries[view + 1 :] or summaries
            query = question(torch.cat(others, dim=-1))
            scores = (states[view] @ query.unsqueeze(-1)).squeeze(-1)
            summaries[view] = attend(scores, states[view], masks[view])
        return torch.cat(summaries, dim=-1)
