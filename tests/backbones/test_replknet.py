"""RepLKNet against its blocks written out clip by clip, without padding."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, gelu, group_norm

from metaser.backbones import BACKBONES
from metaser.backbones.replknet import ClipNorm, LargeKernel, LargeKernelBlock, merged
from metaser.batch import Padded
from metaser.model import Model

BANDS = 20
LENGTHS = (50, 1, 17, 90)
UNLIKE = {"widths": (3, 4), "kernels": ((7, 5), (9, 3)), "small": 3, "blocks": (1, 2), "stride": 2}


def _net(kind=torch.float64, **options):
    """A network whose parameters are all random, also those of the norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = BACKBONES["replknet"](BANDS, **options)
        for value in net.parameters():
            nn.init.normal_(value, 0.3 if value.dim() == 1 else 0.0, 0.3)
        return net.to(kind).eval()


def _clips(lengths=LENGTHS, frames=None, kind=torch.float64) -> Padded:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(len(lengths), max(lengths), BANDS, generator=generator).to(kind)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Padded(values * mask.unsqueeze(-1), mask).lengthened(frames or max(lengths))


def _norm(x, norm):
    return group_norm(x, 1, norm.weight, norm.bias, norm.eps)


def _convolution(x, layer):
    stock = layer.convolution
    padding = stock.kernel_size[0] // 2
    x = conv2d(x, stock.weight, stride=stock.stride, padding=padding, groups=stock.groups)
    return _norm(x, layer.norm).relu()


def _pointwise(x, layer):
    return torch.einsum("oc,nctf->notf", layer.weight, x)


def _pair(x, layer):
    """Two convolutions side by side, as the paper draws them."""
    large, small = (
        conv2d(
            x, one.weight, padding=[side // 2 for side in one.weight.shape[2:]], groups=len(x[0])
        )
        for one in (layer.large, layer.small)
    )
    return large + small + layer.large.bias[:, None, None]


def _by_hand(net, frames):
    """Embedding of one clip (frames, bands), whose maps are (1, channels, frames, bands)."""
    x = frames[None, None]
    for layer in (*net.stem, *(layer for stage in net.stages for layer in stage)):
        match type(layer).__name__:
            case "Convolution":
                x = _convolution(x, layer)
            case "LargeKernelBlock":
                inner = _convolution(_norm(x, layer.norm_in), layer.before)
                inner = _pointwise(_pair(inner, layer.depthwise).relu(), layer.after)
                x = x + _norm(inner, layer.norm_out)
            case "ConvFFN":
                inner = _norm(_pointwise(_norm(x, layer.norm_in), layer.wide), layer.norm_wide)
                x = x + _norm(_pointwise(gelu(inner), layer.narrow), layer.norm_out)
    return _norm(x, net.norm).mean(dim=(0, 2, 3))


@pytest.mark.parametrize("options", [{}, UNLIKE])
def test_the_network_is_its_blocks_on_each_clip_alone(options):
    """The first kernel of the default is longer than all of these clips at its stage."""
    net, clips = _net(**options), _clips()
    found = net(audio=clips)
    for row, length in enumerate(LENGTHS):
        expected = _by_hand(net, clips.values[row, :length])
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-10)
    assert (found[0] - found[3]).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [91, 96, 97, 203])
@pytest.mark.parametrize("options", [{}, UNLIKE])
def test_padding_never_changes_an_output(frames, options):
    net = _net(**options)
    found = net(audio=_clips(frames=frames))
    torch.testing.assert_close(found, net(audio=_clips()), rtol=1e-12, atol=1e-12)


def test_what_stands_in_padded_frames_is_not_seen():
    net, clips = _net(), _clips()
    values = clips.values.masked_fill(~clips.mask.unsqueeze(-1), float("nan"))
    assert torch.equal(net(audio=Padded(values, clips.mask)), net(audio=clips))


def test_the_norm_is_that_of_one_group_over_real_frames():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64) + 5
    norm = ClipNorm(4).double()
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    found = norm(maps, torch.arange(6) < torch.tensor([[6], [2]]))
    for row, length in enumerate((6, 2)):
        real = maps[[row], :length].permute(0, 3, 1, 2)
        expected = _norm(real, norm).permute(0, 2, 3, 1)
        torch.testing.assert_close(found[[row], :length], expected)
    assert not found[1, 2:].any()


def test_a_clip_without_frames_is_finite_and_has_no_slope():
    net, clips = _net(), _clips()
    clips = Padded(clips.values.clone(), clips.mask.clone())
    clips.mask[1] = False
    clips.values.requires_grad_()
    outputs = net(audio=clips)
    assert outputs.isfinite().all()
    slopes = torch.autograd.grad(outputs.square().sum(), [clips.values, *net.parameters()])
    assert all(slope.isfinite().all() for slope in slopes)
    assert not slopes[0][1].any() and slopes[0][0].any()
    torch.testing.assert_close(outputs[[0, 2, 3]], net(audio=clips[[0, 2, 3]]))


@pytest.mark.parametrize("kind, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("options", [{}, UNLIKE])
def test_merged_after_training_the_outputs_are_the_same(kind, tolerance, options):
    torch.manual_seed(0)
    model = Model(BACKBONES["replknet"](BANDS, **options), classes=4).to(kind)
    clips, targets = {"audio": _clips(kind=kind)}, torch.tensor([0, 1, 2, 3])
    start = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(clips), targets).backward()
        optimiser.step()
    trained = copy.deepcopy(model.state_dict())
    assert all((trained[key] - value).abs().max() > 0 for key, value in start.items())
    one = merged(model)
    torch.testing.assert_close(one(clips), model(clips), rtol=tolerance, atol=tolerance)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in trained.items())
    assert not any(isinstance(layer, LargeKernel) for layer in one.modules())
    pairs = [layer for layer in model.modules() if isinstance(layer, LargeKernel)]
    saved = sum(pair.small.weight.numel() for pair in pairs)
    assert saved > 0 and _count(one) == _count(model) - saved


def test_adapted_parameters_can_be_merged():
    net, clips = _net(), _clips()
    adapted = {key: 0.9 * value.detach() for key, value in net.named_parameters()}
    own = copy.deepcopy(net)
    own.load_state_dict(adapted)
    expected = functional_call(net, adapted, kwargs={"audio": clips})
    torch.testing.assert_close(merged(own)(audio=clips), expected, rtol=1e-10, atol=1e-10)
    assert (expected - net(audio=clips)).abs().max() > 1e-3


def test_clips_skip_blocks_in_training_only():
    torch.manual_seed(0)
    block = LargeKernelBlock(4, (5, 5), 3, drop_path=0.5).double()
    maps, mask = torch.randn(40, 6, 3, 4, dtype=torch.float64), torch.ones(40, 6, dtype=torch.bool)
    more = block.eval()(maps, mask)[0] - maps
    found = (block.train()(maps, mask)[0] - maps).flatten(1)
    skipped = (found == 0).all(dim=1)
    assert 5 < skipped.sum() < 35
    torch.testing.assert_close(found[~skipped], 2 * more.flatten(1)[~skipped])


def test_the_first_block_is_never_skipped_and_the_last_most():
    net = BACKBONES["replknet"](BANDS, drop_path=0.5)
    rates = [layer.drop_path for layer in net.modules() if hasattr(layer, "drop_path")]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_the_paper_s_network_has_its_number_of_parameters():
    """On ImageNet: pictures of three colours, a thousand classes."""
    with torch.device("meta"):
        net = BACKBONES["replknet_31b"](224)
    widths, sizes, pairs = (128, 256, 512, 1024), (31, 29, 27, 13), (2, 2, 18, 2)
    stem = 9 * 128 + 9 * 128 + 128**2 + 9 * 128 + 4 * 2 * 128
    between = sum(a * b + 9 * b + 2 * 2 * b for a, b in zip(widths, widths[1:]))
    large = sum(
        n * (2 * w**2 + (k**2 + 5**2 + 1) * w + 3 * 2 * w) for w, k, n in zip(widths, sizes, pairs)
    )
    dense = sum(n * (2 * 4 * w**2 + 2 * (w + 4 * w + w)) for w, n in zip(widths, pairs))
    assert _count(net) == stem + between + large + dense + 2 * 1024
    on_pictures = _count(net) + 2 * 9 * 128 + 1024 * 1000 + 1000
    assert int(on_pictures / 1e6) == 79


def test_the_default_is_small():
    assert _count(BACKBONES["replknet"](64)) < 200_000


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernels": ((31, 4), (13, 5), (7, 5))}, r"odd.*\(31, 4\) with 5"),
        ({"kernels": ((31, 5), (13, 5), (3, 5))}, r"at least as large.*\(3, 5\) with 5"),
        ({"small": 4}, "odd.*with 4"),
        ({"widths": (16, 32)}, "one entry per stage each, not 2, 3 and 2"),
        ({"blocks": (1, 1)}, "one entry per stage each, not 3, 3 and 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES["replknet"](BANDS, **options)
