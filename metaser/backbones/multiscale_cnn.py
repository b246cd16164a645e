"""Multi-scale convolution with statistics pooling, and attention to the text (MSCNN-SPU-ATT)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.backbones.layers import attend, audio_and_text, statistics_pooling, text_beside
from metaser.batch import Padded


class MultiscaleCNN(nn.Module):
    """Parallel convolutions over all channels, each pooled to maximum, mean and deviation.

    Text, if there is any, has its own branches, and the audio attends to it: with h_k the maps of
    all text branches at token k, and e the maxima, means or deviations of all audio branches,

        S(e) = sum over tokens k of softmax over k of (e . h_k) h_k

    The embedding is the pooled audio, followed by the pooled text and the three S. These are 0 for
    a clip without text. If no clip has text, pass None.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" for both; an int is for audio alone.
    kernels : sequence of int
        Odd kernel lengths in audio frames, one per branch.
    filters : int
        Filters per branch; the paper has 128.
    text_kernels : sequence of int
        Kernel lengths in text tokens, as many as for the audio, so that e and h_k have the same
        length. An even kernel at token k reaches one token further ahead than back.

    Raises
    ------
    ValueError
        If audio is missing or a modality is unknown, a kernel for audio is even, or the text has
        another number of kernels.

    References
    ----------
    Peng, Lu, Pan, Liu, "Efficient Speech Emotion Recognition Using Multi-Scale CNN and
    Attention", ICASSP 2021, arXiv:2106.04133.
    """

    def __init__(
        self,
        channels: int | dict[str, int],
        kernels: Sequence[int] = (5, 7, 9, 11),
        filters: int = 32,
        text_kernels: Sequence[int] = (2, 3, 4, 5),
    ) -> None:
        channels = audio_and_text(channels)
        if any(size % 2 == 0 for size in kernels):
            raise ValueError(
                f"kernels must be odd, so that frames keep their place, not {kernels}: "
                "make the even ones longer or shorter by 1"
            )
        if "text" in channels and len(text_kernels) != len(kernels):
            raise ValueError(
                f"text_kernels must be as many as kernels, {len(kernels)}, not "
                f"{len(text_kernels)}: give one per kernel"
            )
        super().__init__()
        self.channels = channels
        self.branches = nn.ModuleList(
            nn.Conv1d(channels["audio"], filters, size, padding=size // 2) for size in kernels
        )
        self.dim = 3 * filters * len(kernels)
        if "text" in channels:
            self.text_branches = nn.ModuleList(
                nn.Sequential(
                    nn.ConstantPad1d(((size - 1) // 2, size // 2), 0),
                    nn.Conv1d(channels["text"], filters, size),
                )
                for size in text_kernels
            )
            self.dim *= 3

    def forward(self, audio: Padded, text: Padded | None = None) -> Tensor:
        """Return embeddings (clips, dim).

        Raises
        ------
        ValueError
            If there is text, but ``channels`` has none.
        """
        text = text_beside(audio, text, self.channels)
        audio_pooled = [
            statistics_pooling(maps, audio.mask) for maps in _maps(self.branches, audio)
        ]
        if text is None:
            return torch.cat(audio_pooled, dim=-1)
        maps = _maps(self.text_branches, text)
        text_pooled = [statistics_pooling(values, text.mask) for values in maps]
        columns = torch.cat(maps, dim=1).transpose(1, 2)
        # Three queries: the maxima of all branches, their means, their deviations.
        queries = torch.stack([pooled.unflatten(-1, (3, -1)) for pooled in audio_pooled], dim=2)
        scores = queries.flatten(2) @ columns.transpose(1, 2)
        attended = [attend(one, columns, text.mask) for one in scores.unbind(1)]
        return torch.cat([*audio_pooled, *text_pooled, *attended], dim=-1)


def _maps(branches: nn.ModuleList, padded: Padded) -> list[Tensor]:
    """Maps (clips, filters, frames) of each branch."""
    frames = (padded.values * padded.mask.unsqueeze(-1)).transpose(1, 2)
    return [torch.relu(branch(frames)) for branch in branches]
