"""RepLKNet: few, very large depthwise convolutions, each with a small parallel one."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout, pad

from metaser.backbones.layers import masked_mean
from metaser.backbones.maps import ClipNorm, Convolution, convolve
from metaser.batch import Padded

Size = tuple[int, int]
"""Frames and bands of a kernel."""

Network = TypeVar("Network", bound=nn.Module)


class RepLKNet(nn.Module):
    """Convolutions over time and bands whose kernels span seconds.

    The network sees the frames as a picture of one colour, frames x channels. As in the paper, a
    stem and each later stage halve both sides, and a stage alternates a large-kernel block with a
    ConvFFN block. The embedding is the mean over the remaining frames and bands. There are two
    differences from the paper. ``ClipNorm`` replaces BatchNorm, whose statistics would leak from
    one episode into the next. And the depthwise kernels have an offset, but no normalisation each,
    so that a large kernel and its small one can be merged into one at any time (``merged``).

    The defaults are for few clips: 8 x 8 values become one place, and kernels are long in time and
    short in frequency. At 10 ms per frame the first kernel spans 2.5 s.

    Parameters
    ----------
    channels : int
        Channels of the front end, best in the order of their frequency. Any number is possible:
        the parameters do not depend on it.
    widths : sequence of int
        Channels of the maps, one entry per stage.
    kernels : sequence of (int, int)
        Odd sizes in frames and bands of the large kernels, one entry per stage.
    small : int
        Odd size of the small kernels on both sides.
    blocks : sequence of int, optional
        Pairs of blocks, one entry per stage; one pair each by default.
    stride : int
        Stride of the first convolution; the paper's is 2.
    drop_path : float
        Share of clips that skip the last block while training, in [0, 1). It grows evenly from 0
        at the first block.

    Raises
    ------
    ValueError
        If the sequences differ in length, or a kernel is even or smaller than the small one.

    References
    ----------
    Ding, Zhang, Zhou, Han, Ding, Sun, "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel
    Design in CNNs", CVPR 2022, arXiv:2203.06717.
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        kernels: Sequence[Size] = ((31, 5), (13, 5), (7, 5)),
        small: int = 5,
        blocks: Sequence[int] | None = None,
        stride: int = 4,
        drop_path: float = 0.0,
    ) -> None:
        blocks = [1] * len(widths) if blocks is None else blocks
        if not len(widths) == len(kernels) == len(blocks):
            raise ValueError(
                "widths, kernels and blocks must have one entry per stage each, not "
                f"{len(widths)}, {len(kernels)} and {len(blocks)} entries: make them equally long"
            )
        for size in kernels:
            if small % 2 == 0 or any(side % 2 == 0 or side < small for side in size):
                raise ValueError(
                    "kernels must be odd, so that frames keep their place, and at least as large "
                    f"as the small one, not {tuple(size)} with {small}: choose other sizes"
                )
        super().__init__()
        self.channels = {"audio": channels}
        first = widths[0]
        self.stem = nn.ModuleList(
            [
                Convolution(1, first, 2 * stride - 1, stride),
                Convolution(first, first, 3, groups=first),
                Convolution(first, first, 1),
                Convolution(first, first, 3, 2, groups=first),
            ]
        )
        rates = iter(np.linspace(0, drop_path, 2 * sum(blocks)).tolist())
        self.stages = nn.ModuleList()
        for before, width, size, pairs in zip([None, *widths], widths, kernels, blocks):
            stage = nn.ModuleList()
            if before:
                stage.append(Convolution(before, width, 1))
                stage.append(Convolution(width, width, 3, 2, groups=width))
            for _ in range(pairs):
                stage.append(LargeKernelBlock(width, size, small, next(rates)))
                stage.append(ConvFFN(width, next(rates)))
            self.stages.append(stage)
        self.norm = ClipNorm(widths[-1])
        self.dim = widths[-1]

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim)."""
        mask = audio.mask
        maps = audio.values.masked_fill(~mask.unsqueeze(-1), 0).unsqueeze(-1)
        for layer in (*self.stem, *(layer for stage in self.stages for layer in stage.children())):
            maps, mask = layer(maps, mask)
        return masked_mean(self.norm(maps, mask).mean(dim=2), mask)


class LargeKernelBlock(nn.Module):
    """Pointwise, large depthwise and again pointwise convolution, added to the input."""

    def __init__(self, width: int, size: Size, small: int, drop_path: float) -> None:
        super().__init__()
        self.norm_in = ClipNorm(width)
        self.before = Convolution(width, width, 1)
        self.depthwise = LargeKernel(width, size, small)
        self.after = nn.Linear(width, width, bias=False)
        self.norm_out = ClipNorm(width)
        self.drop_path = drop_path

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Take and return maps (clips, frames, bands, channels) and which frames are real."""
        more, _ = self.before(self.norm_in(maps, mask), mask)
        more = self.after(torch.relu(convolve(self.depthwise, more)))
        return maps + _skip(self.norm_out(more, mask), self.drop_path, self.training), mask


class ConvFFN(nn.Module):
    """Two pointwise convolutions with GELU between them, added to the input."""

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm_in = ClipNorm(width)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.norm_wide = ClipNorm(4 * width)
        self.narrow = nn.Linear(4 * width, width, bias=False)
        self.norm_out = ClipNorm(width)
        self.drop_path = drop_path

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Take and return maps (clips, frames, bands, channels) and which frames are real."""
        more = nn.functional.gelu(self.norm_wide(self.wide(self.norm_in(maps, mask)), mask))
        more = self.norm_out(self.narrow(more), mask)
        return maps + _skip(more, self.drop_path, self.training), mask


class LargeKernel(nn.Module):
    """A large and a small depthwise convolution of the same maps, summed.

    Convolution is linear in its kernel, so the sum is one convolution with the small kernel added
    to the middle of the large one. Training computes it like this, too: the gradients are the same,
    and the gradient of a depthwise kernel takes the most time.
    """

    def __init__(self, width: int, size: Size, small: int) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.large = nn.Conv2d(width, width, size, padding=padding, groups=width)
        self.small = nn.Conv2d(width, width, small, padding=small // 2, groups=width, bias=False)

    @property
    def kernel(self) -> Tensor:
        """Both kernels as one, (channels, 1, frames, bands)."""
        frames, bands = (
            (large - small) // 2
            for large, small in zip(self.large.kernel_size, self.small.kernel_size)
        )
        return self.large.weight + pad(self.small.weight, (bands, bands, frames, frames))

    def forward(self, maps: Tensor) -> Tensor:
        """Take and return maps (clips, channels, frames, bands)."""
        large = self.large
        return conv2d(maps, self.kernel, large.bias, padding=large.padding, groups=large.groups)

    def merged(self) -> nn.Conv2d:
        """Return one convolution with the same output."""
        convolution = copy.deepcopy(self.large)
        with torch.no_grad():
            convolution.weight.copy_(self.kernel)
        return convolution


def merged(module: Network) -> Network:
    """Return a copy in which each pair of parallel kernels is one kernel.

    Use it after adapting: the copy gives the same outputs with fewer parameters, but learns
    differently, because in a pair the common part of both kernels gets two steps at once.

    Parameters
    ----------
    module : nn.Module
        A ``RepLKNet``, or a model that has one; not changed.

    Returns
    -------
    nn.Module
        The copy; of a network without such pairs, a plain copy.
    """
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LargeKernel):
            module.set_submodule(name, layer.merged())
    return module


def _skip(maps: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth: 0 for a share of the clips, and the others scaled up to make up for it."""
    return maps * dropout(torch.ones_like(maps[:, :1, :1, :1]), share, training)
