"""Multi-scale convolution with statistics pooling, and attention to the text (MSCNN-SPU-ATT)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.backbones.layers import attend, audio_and_text, statistics_pooling, text_beside
from metaser.batch import Padded


class MultiscaleCNN(nn.Module):
    """Parallel convolutions that span all channels, each pooled to maximum, mean and deviation.

    Where there is text, it gets branches of its own, and the audio asks it: with h_k the maps of
    all text branches at token k, and e the maxima, means or deviations of all audio branches,

        S(e) = sum over tokens k of softmax over k of (e . h_k) h_k

    The embedding is the pooled audio, and then the pooled text and the three S. A clip without text
    has zeros there. Without all text, give None.

    Parameters
    ----------
    channels : int or dict of str to int
        Channels of "audio", and of "text" for both; an int is for audio alone.
    kernels : sequence of int
        Odd kernel lengths in frames of the audio, one branch each.
    filters : int
        Filters a branch; the paper has 128.
    text_kernels : sequence of int
        Kernel lengths in tokens of the text, as many as for the audio: questions and answers have
        the same length. An even kernel at token k reaches one token further ahead than back.

    Raises
    ------
    ValueError
        If a modality is unknown or without audio, a kernel for audio is even, or the text has
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
            raise ValueError(f"kernels must be odd, so that frames keep their place, not {kernels}")
        if "text" in channels and len(text_kernels) != len(kernels):
            raise ValueError(
                f"text_kernels must be as many as kernels, {len(kernels)}, not {len(text_kernels)}"
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
        heard = [statistics_pooling(maps, audio.mask) for maps in _maps(self.branches, audio)]
        if text is None:
            return torch.cat(heard, dim=-1)
        maps = _maps(self.text_branches, text)
        read = [statistics_pooling(values, text.mask) for values in maps]
        columns = torch.cat(maps, dim=1).transpose(1, 2)
        # Three questions: the maxima of all branches, their means, their deviations.
        questions = torch.stack([pooled.unflatten(-1, (3, -1)) for pooled in heard], dim=2)
        scores = questions.flatten(2) @ columns.transpose(1, 2)
        found = [attend(asked, columns, text.mask) for asked in scores.unbind(1)]
        return torch.cat([*heard, *read, *found], dim=-1)


def _maps(branches: nn.ModuleList, padded: Padded) -> list[Tensor]:
    """Maps (clips, filters, frames) of each branch."""
    frames = (padded.values * padded.mask.unsqueeze(-1)).transpose(1, 2)
    return [torch.relu(branch(frames)) for branch in branches]
