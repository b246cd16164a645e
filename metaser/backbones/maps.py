"""Convolutions of pictures, frames x bands; padded frames never change an output."""

import torch
from torch import Tensor, nn


class ClipNorm(nn.Module):
    """Normalise the maps of each clip by their mean and variance over real frames.

    This is GroupNorm with one group, except that padded frames do not count and get the value 0.

    Parameters
    ----------
    width : int
        Channels of the maps.
    eps : float
        Added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Take and return maps (clips, frames, bands, channels); mask is (clips, frames) bool."""
        real = mask[..., None, None].to(maps.dtype)
        whole = (1, 2, 3)
        count = real.sum(dim=whole, keepdim=True).clamp(min=1) * maps[0, 0].numel()
        mean = (maps * real).sum(dim=whole, keepdim=True) / count
        centred = (maps - mean) * real
        variance = centred.square().sum(dim=whole, keepdim=True) / count
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias * real, centred, scale)


class Convolution(nn.Module):
    """Convolution, ``ClipNorm``, ReLU; a frame is real if it is real at the kernel's centre.

    Parameters
    ----------
    before, after : int
        Channels of the input and of the output.
    size : int
        Odd side of the square kernel.
    stride : int
        Step along frames and bands.
    groups : int
        Groups of channels that are convolved apart; ``before`` makes it depthwise.
    """

    def __init__(
        self, before: int, after: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            before, after, size, stride, size // 2, groups=groups, bias=False
        )
        self.norm = ClipNorm(after)
        self.stride = stride

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Take and return maps (clips, frames, bands, channels) and which frames are real."""
        mask = mask[:, :: self.stride]
        return torch.relu(self.norm(convolve(self.convolution, maps), mask)), mask


def convolve(layer: nn.Module, maps: Tensor) -> Tensor:
    """Convolve maps (clips, frames, bands, channels): channels last are much faster on a CPU.

    Parameters
    ----------
    layer : nn.Module
        Takes and returns maps (clips, channels, frames, bands).
    maps : Tensor
        (clips, frames, bands, channels).

    Returns
    -------
    Tensor
        (clips, frames, bands, channels).
    """
    convolved: Tensor = layer(maps.permute(0, 3, 1, 2))
    return convolved.permute(0, 2, 3, 1).contiguous()
