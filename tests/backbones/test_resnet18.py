"""ResNet-18 against a network of PyTorch's layers on single clips, without padding."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from metaser.backbones import BACKBONES
from metaser.batch import Padded


def _net(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = BACKBONES["resnet18"](7, **options).double()
        for value in net.parameters():
            nn.init.normal_(value, 0, 0.5)
        return net


def _norm(x, layer):
    return functional.group_norm(x, 1, layer.weight, layer.bias)


def _by_hand(net, clip):
    """Embedding of one clip (frames, bands), maps being (1, channels, frames, bands)."""
    x = clip[None, None]
    x = _norm(functional.conv2d(x, net.stem.convolution.weight, padding=1), net.stem.norm).relu()
    for block in net.blocks:
        stride = block.stride
        more = functional.conv2d(x, block.first.convolution.weight, stride=stride, padding=1)
        more = _norm(more, block.first.norm).relu()
        more = _norm(functional.conv2d(more, block.second.weight, padding=1), block.norm)
        if block.shortcut is not None:
            shortcut = functional.conv2d(x, block.shortcut.weight[..., None, None], stride=stride)
            x = _norm(shortcut, block.norm_shortcut)
        x = (x + more).relu()
    return x.mean(dim=(2, 3))[0]


@pytest.mark.parametrize("options", [{"widths": (3, 4, 2)}, {"widths": (3, 4), "blocks": 2}])
def test_every_clip_is_pytorch_s_layers(options):
    net, lengths = _net(**options), (9, 1, 12, 4)
    clips = [torch.randn(length, 7, dtype=torch.float64) for length in lengths]
    values = torch.stack([functional.pad(clip, (0, 0, 0, 15 - len(clip))) for clip in clips])
    found = net(Padded(values, torch.arange(15) < torch.tensor(lengths)[:, None]))
    expected = torch.stack([_by_hand(net, clip) for clip in clips])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_paper_s_model_has_the_number_of_parameters_of_the_formula():
    with torch.device("meta"):
        net = BACKBONES["resnet18_paper"](64)
    expected = 9 * 64 + 2 * 64
    before = 64
    for width in (64, 128, 256, 512):
        expected += 9 * before * width + 3 * 9 * width * width + 4 * 2 * width
        if width != before:
            expected += before * width + 2 * width
        before = width
    assert sum(value.numel() for value in net.parameters()) == expected
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 17  # and the head
    assert net.dim == 512


def test_a_segment_network_can_be_one():
    inner = {"widths": (2, 3)}
    net = BACKBONES["segment_sequence"](7, backbone=BACKBONES["resnet18"], inner=inner)
    assert net.emotion.dim == net.sound.dim == 3


@pytest.mark.parametrize("options", [{"widths": ()}, {"blocks": 0}])
def test_nothing_is_refused(options):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        BACKBONES["resnet18"](7, **options)
