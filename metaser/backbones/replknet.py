"""RepLKNet: few, very large depthwise convolutions, each with a small one beside it."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout, pad

from metaser.backbones.layers import masked_mean
from metaser.backbones.maps import ClipNorm, Convolution, convolve
from metaser.batch import Padded

Size = tuple[int, int]


class RepLKNet(nn.Module):
    """Convolutions over time and bands whose kernels span seconds.

    The network sees the frames as a picture of one colour, frames x channels. As in the paper, a
    stem and each later stage halve both sides, and a stage alternates a large-kernel block with a
    ConvFFN block; the mean over what is left of frames and bands is the embedding. Unlike the
    paper, BatchNorm, whose statistics would leak from one episode into the next, gives way to
    ``ClipNorm``, and the depthwise kernels have an offset only, without a normalisation of their
    own: so a large kernel and the small one beside it stay one kernel at any time (``merged``).

    The defaults are for few clips: 8 x 8 values become one place, and kernels are long in time and
    short in frequency. At 10 ms a frame the first kernel spans 2.5 s.

    Parameters
    ----------
    channels : int
        Channels of the front end, best in the order of their frequency. Any number fits: the
        parameters do not depend on it.
    widths : sequence of int
        Channels of the maps, one entry a stage.
    kernels : sequence of (int, int)
        Odd sizes in frames and bands of the large kernels, one entry a stage.
    small : int
        Odd size of the small kernels on both sides.
    blocks : sequence of int, optional
        Pairs of blocks, one entry a stage; without it one each.
    stride : int
        Stride of the first convolution; the paper's is 2.
    drop_path : float
        Share of clips that skip the last block while training, in [0, 1). It rises evenly from 0
        at the first.

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
        widths: Sequence[int] = (16, 32, 64),
        kernels: Sequence[Size] = ((31, 5), (13, 5), (7, 5)),
        small: int = 5,
        blocks: Sequence[int] | None = None,
        stride: int = 4,
        drop_path: float = 0.0,
    ):
        blocks = [1] * len(widths) if blocks is None else blocks
        if not len(widths) == len(kernels) == len(blocks):
            raise ValueError(
                "widths, kernels and blocks need one entry a stage each, not "
                f"{len(widths)}, {len(kernels)} and {len(blocks)} entries"
            )
        for size in kernels:
            if small % 2 == 0 or any(side % 2 == 0 or side < small for side in size):
                raise ValueError(
                    "kernels must be odd, so that frames keep their place, and at least as large "
                    f"as the small one, not {tuple(size)} beside {small}"
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
        for layer in (*self.stem, *(layer for stage in self.stages for layer in stage)):
            maps, mask = layer(maps, mask)
        return masked_mean(self.norm(maps, mask).mean(dim=2), mask)


class LargeKernelBlock(nn.Module):
    """Pointwise, large depthwise and again pointwise convolution, added to what came in."""

    def __init__(self, width: int, size: Size, small: int, drop_path: float):
        super().__init__()
        self.norm_in = ClipNorm(width)
        self.before = Convolution(width, width, 1)
        self.depthwise = LargeKernel(width, size, small)
        self.after = nn.Linear(width, width, bias=False)
        self.norm_out = ClipNorm(width)
        self.drop_path = drop_path

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        more, _ = self.before(self.norm_in(maps, mask), mask)
        more = self.after(torch.relu(convolve(self.depthwise, more)))
        return maps + _skip(self.norm_out(more, mask), self.drop_path, self.training), mask


class ConvFFN(nn.Module):
    """Two pointwise convolutions with GELU between them, added to what came in."""

    def __init__(self, width: int, drop_path: float):
        super().__init__()
        self.norm_in = ClipNorm(width)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.norm_wide = ClipNorm(4 * width)
        self.narrow = nn.Linear(4 * width, width, bias=False)
        self.norm_out = ClipNorm(width)
        self.drop_path = drop_path

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        more = nn.functional.gelu(self.norm_wide(self.wide(self.norm_in(maps, mask)), mask))
        more = self.norm_out(self.narrow(more), mask)
        return maps + _skip(more, self.drop_path, self.training), mask


class LargeKernel(nn.Module):
    """A large and a small depthwise convolution of the same maps, summed.

    Convolution is linear in its kernel, so the sum is one convolution with the small kernel added
    to the middle of the large one. It is computed like this in training, too: the gradients are
    the same, and the gradient of a depthwise kernel is what takes longest.
    """

    def __init__(self, width: int, size: Size, small: int):
        super().__init__()
        padding = tuple(side // 2 for side in size)
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
        """The one convolution that gives the same."""
        convolution = copy.deepcopy(self.large)
        with torch.no_grad():
            convolution.weight.copy_(self.kernel)
        return convolution


def merged(module: nn.Module) -> nn.Module:
    """A copy in which each pair of parallel kernels is one kernel.

    Use it once adapting is over: the copy gives the same outputs with fewer parameters, but
    gradient steps on it would not be those on the pair, whose common part moves twice as far.

    Parameters
    ----------
    module : nn.Module
        A ``RepLKNet``, or a model that has one; not changed.
    """
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, LargeKernel):
            module.set_submodule(name, layer.merged())
    return module


def _skip(maps: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth: 0 for a share of the clips, and more of the others."""
    return maps * dropout(torch.ones_like(maps[:, :1, :1, :1]), share, training)
