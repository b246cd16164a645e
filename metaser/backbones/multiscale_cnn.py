"""Multi-scale convolution with statistics pooling (MSCNN-SPU), audio only."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.backbones.layers import statistics_pooling
from metaser.batch import Padded


class MultiscaleCNN(nn.Module):
    """Parallel convolutions that span all channels, each pooled to maximum, mean and deviation.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    kernels : sequence of int
        Odd kernel lengths in frames, one branch each.
    filters : int
        Filters a branch; the paper has 128.

    References
    ----------
    Peng, Lu, Pan, Liu, "Efficient Speech Emotion Recognition Using Multi-Scale CNN and
    Attention", ICASSP 2021, arXiv:2106.04133.
    """

    def __init__(self, channels: int, kernels: Sequence[int] = (5, 7, 9, 11), filters: int = 32):
        if any(size % 2 == 0 for size in kernels):
            raise ValueError(f"kernels must be odd, so that frames keep their place, not {kernels}")
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv1d(channels, filters, size, padding=size // 2) for size in kernels
        )
        self.dim = 3 * filters * len(kernels)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim)."""
        frames = (audio.values * audio.mask.unsqueeze(-1)).transpose(1, 2)
        maps = [torch.relu(branch(frames)) for branch in self.branches]
        return torch.cat([statistics_pooling(values, audio.mask) for values in maps], dim=-1)
