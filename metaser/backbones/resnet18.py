"""ResNet-18 over a picture of frames and bands."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaser.backbones.layers import check_at_least, masked_mean
from metaser.backbones.maps import ClipNorm, Convolution, convolve
from metaser.batch import Padded


class ResNet18(nn.Module):
    """Pairs of small convolutions, each added to its input; stages halve frames and bands.

    The network sees the frames as a picture of one colour, frames x channels. The first convolution
    is 3 x 3 and keeps the size, unless ``stride`` is above 1. The first stage keeps it, too; every
    later stage halves both sides. The embedding is the mean over the remaining frames and bands.
    Unlike in the paper, ``ClipNorm`` replaces BatchNorm, whose statistics would leak from one
    episode into the next.

    The paper has the widths (64, 128, 256, 512) and two blocks per stage: 18 layers with the head.

    Parameters
    ----------
    channels : int
        Channels of the front end, best in the order of their frequency. Any number is possible:
        the parameters do not depend on it.
    widths : sequence of int
        Channels of the maps, one entry per stage.
    blocks : int
        Pairs of convolutions per stage, at least 1.
    stride : int
        Step of the first convolution along both sides, at least 1; the paper's is 1.

    Raises
    ------
    ValueError
        If there is no stage or no block, or the stride is below 1.

    References
    ----------
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385; for segments of speech in Hsu, Su, Wu, Chen, "Speech Emotion Recognition
    Considering Nonverbal Vocalization in Affective Conversations", IEEE/ACM TASLP 29, 2021.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (8, 16, 32, 64),
        blocks: int = 1,
        stride: int = 1,
    ) -> None:
        check_at_least(1, widths=len(widths), blocks=blocks, stride=stride)
        super().__init__()
        self.channels = {"audio": channels}
        self.stem = Convolution(1, widths[0], 3, stride)
        self.blocks = nn.ModuleList()
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(Block(before, width, stride))
                before = width
        self.dim = before

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim); 0 for a clip without real frames."""
        mask = audio.mask
        maps = audio.values.masked_fill(~mask.unsqueeze(-1), 0).unsqueeze(-1)
        for layer in (self.stem, *self.blocks):
            maps, mask = layer(maps, mask)
        return masked_mean(maps.mean(dim=2), mask)


class Block(nn.Module):
    """Two 3 x 3 convolutions, and a shortcut around them to the same size.

    Parameters
    ----------
    before, after : int
        Channels of the input and of the output.
    stride : int
        Step of the first convolution along both sides.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = Convolution(before, after, 3, stride)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm = ClipNorm(after)
        self.stride = stride
        self.shortcut = None
        if stride > 1 or before != after:
            # A 1 x 1 convolution: PyTorch 2.13's own, with this stride, can crash on a CPU.
            self.shortcut = nn.Linear(before, after, bias=False)
            self.norm_shortcut = ClipNorm(after)

    def forward(self, maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Take and return maps (clips, frames, bands, channels) and which frames are real."""
        more, mask = self.first(maps, mask)
        more = self.norm(convolve(self.second, more), mask)
        if self.shortcut is not None:
            maps = self.norm_shortcut(self.shortcut(maps[:, :: self.stride, :: self.stride]), mask)
        return torch.relu(maps + more), mask
