import inspect

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from metaser.backbones import BACKBONES
from metaser.backbones.layers import statistics_pooling
from metaser.batch import Padded
from metaser.model import Model

CHANNELS = 3
MODALITIES = {"audio", "text", "video"}
_STREAM = {"width": 4, "heads": 2, "dense": (3,), "dropout": 0.0, "dense_dropout": 0.0}
_KERNELS = {"widths": (3, 4), "kernels": ((7, 5), (5, 5)), "stride": 2}
_SEGMENTS = {
    "inner": {"kernels": (1, 3), "filters": 2},
    "hidden": 2,
    "segments": 3,
    "pause": 1,
    "shortest": 1,
    "pool": 1,
}
TINY = {
    "mlp": {"hidden": (4, 3)},
    "multiscale_cnn": {"kernels": (1, 3), "filters": 2},
    "recurrent": {"hidden": 3},
    "key_sparse_transformer": {**_STREAM, "pool": 2},
    "key_sparse_transformer_paper": {**_STREAM, "vanilla_layers": 1},
    "replknet": _KERNELS,
    "replknet_31b": {**_KERNELS, "blocks": (1, 1), "drop_path": 0.0},
    "gru_attention": {"hidden": 2, "pool": 2},
    "daae": {"width": 4, "tokens": 2, "heads": 2},
    "modality_hopping": {"hidden": 2, "streams": (2, 1), "pool": 2},
    "modality_hopping_paper": {"hidden": 2, "hops": 2},
    "segment_sequence": _SEGMENTS,
    "segment_sequence_paper": _SEGMENTS,
}
"""A tiny configuration of every backbone, for checks by finite differences."""
HUGE = {"replknet_31b"}
"""Too large to run in tests but in that configuration."""


def _make(name: str, kind=torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return BACKBONES[name](CHANNELS, **TINY[name]).to(kind).eval()


def _usual(name: str) -> nn.Module:
    return BACKBONES[name](CHANNELS, **(TINY[name] if name in HUGE else {}))


def _clips(lengths, frames=None, kind=torch.float64, seed=0) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    frames = frames or max(lengths)
    values = torch.randn(len(lengths), max(lengths), CHANNELS, generator=generator, dtype=kind)
    values = nn.functional.pad(values, (0, 0, 0, frames - max(lengths)))
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    return Padded(values * mask[..., None], mask)


@pytest.fixture(autouse=True)
def _same_draws():
    with torch.random.fork_rng():
        yield


def test_every_backbone_has_a_tiny_configuration():
    assert set(TINY) == set(BACKBONES)


each = pytest.mark.parametrize("name", BACKBONES)


@each
@pytest.mark.parametrize("arguments", ["default", "tiny"])
def test_one_embedding_a_clip(name, arguments):
    backbone = (_usual(name) if arguments == "default" else _make(name, torch.float32)).eval()
    output = backbone(audio=_clips([4, 1, 7], kind=torch.float32))
    assert output.shape == (3, backbone.dim)
    assert output.dtype == torch.float32 and output.isfinite().all()
    assert {"audio"} <= set(inspect.signature(backbone.forward).parameters) <= MODALITIES


@each
def test_padding_never_changes_an_output(name):
    backbone = _make(name)
    short, long = (backbone(audio=_clips([4, 1, 7], frames)) for frames in (7, 30))
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)


@each
def test_neighbours_in_the_batch_never_change_an_output(name):
    backbone = _make(name)
    clips = _clips([4, 1, 7, 2])
    together = backbone(audio=clips)
    for row, length in enumerate([4, 1, 7, 2]):
        alone = Padded(clips.values[[row], :length], clips.mask[[row], :length])
        torch.testing.assert_close(backbone(audio=alone)[0], together[row], rtol=1e-12, atol=1e-12)
    turned = backbone(audio=clips[[3, 1, 0, 2]])
    torch.testing.assert_close(turned, together[[3, 1, 0, 2]], rtol=1e-12, atol=1e-12)


@each
def test_every_real_frame_can_change_the_output(name):
    backbone = _make(name)
    clips = _clips([5])
    values = clips.values.clone().requires_grad_()
    outputs = backbone(audio=Padded(values, clips.mask))
    slopes = torch.autograd.grad(outputs.square().sum(), values)[0]
    assert (slopes.abs().sum(dim=2) > 0).all()


@each
def test_every_parameter_gets_a_gradient(name):
    backbone = _make(name, torch.float32).train()
    backbone(audio=_clips([4, 1, 7], kind=torch.float32)).square().sum().backward()
    for key, value in backbone.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, key


@each
def test_first_and_second_derivatives_agree_with_finite_differences(name):
    backbone = _make(name)
    names = [key for key, _ in backbone.named_parameters()]
    clips = _clips([3, 2])

    def embed(values, *parameters):
        audio = Padded(values, clips.mask)
        return functional_call(backbone, dict(zip(names, parameters)), kwargs={"audio": audio})

    values = clips.values.clone().requires_grad_()
    inputs = (values, *(p.detach().clone().requires_grad_() for p in backbone.parameters()))
    assert torch.autograd.gradcheck(embed, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(embed, inputs, fast_mode=True)


@each
def test_second_derivatives_in_single_precision_are_those_in_double(name):
    """Faster kernels for single precision may lack second derivatives."""

    def curvature(kind):
        torch.manual_seed(1)
        backbone = _usual(name).eval().to(kind)
        parameters = list(backbone.parameters())
        clips = _clips([4, 2, 6], kind=torch.float32)
        loss = backbone(audio=Padded(clips.values.to(kind), clips.mask)).square().mean()
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        norm = sum(slope.square().sum() for slope in slopes)
        found = torch.autograd.grad(norm, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([value.flatten() for value in found])

    exact = curvature(torch.float64)
    assert exact.abs().sum() > 0
    single = curvature(torch.float32).double()
    torch.testing.assert_close(single, exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


@each
def test_adapted_parameters_change_the_output_and_not_the_backbone(name):
    backbone = _make(name)
    clips = _clips([4, 2])
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    plain = backbone(audio=clips)
    for key, value in backbone.named_parameters():
        change = torch.rand_like(value)  # an equal one may be what a normalisation takes away
        adapted = functional_call(backbone, {key: value + change}, kwargs={"audio": clips})
        assert (adapted - plain).abs().max() > 1e-6, key
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@each
def test_saved_and_loaded_is_the_same(name, tmp_path):
    one = _make(name)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = BACKBONES[name](CHANNELS, **TINY[name]).double().eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(one(audio=_clips([4, 2])), other(audio=_clips([4, 2])))


@each
def test_no_buffer_remembers_what_was_heard(name):
    """Running statistics would leak from one episode into the next."""
    backbone = _make(name).train()
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    backbone(audio=_clips([4, 2]))
    assert all(torch.equal(before[key], value) for key, value in backbone.named_buffers())


def test_the_paper_s_model_has_its_number_of_parameters():
    model = Model(BACKBONES["recurrent"](20), classes=4, hidden=128)
    assert sum(value.numel() for value in model.parameters()) == 225_924


def test_the_recurrent_embedding_is_the_last_state_of_the_packed_sequence():
    backbone = _make("recurrent")
    clips = _clips([4, 1, 7])
    packed = pack_padded_sequence(
        clips.values, clips.mask.sum(dim=1), batch_first=True, enforce_sorted=False
    )
    torch.testing.assert_close(backbone(audio=clips), backbone.lstm(packed)[1][0][-1])


def test_dropout_works_in_training_only():
    backbone = BACKBONES["mlp"](CHANNELS, dropout=0.5)
    clips = _clips([4, 2], kind=torch.float32)
    assert not torch.equal(backbone(audio=clips), backbone(audio=clips))
    backbone.eval()
    assert torch.equal(backbone(audio=clips), backbone(audio=clips))


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd.*4"):
        BACKBONES["multiscale_cnn"](CHANNELS, kernels=(3, 4))


def test_pooling_sees_real_frames_only():
    clips = _clips([4, 1, 7])
    found = statistics_pooling(clips.values.transpose(1, 2), clips.mask)
    means = clips.mean()
    for row, length in enumerate([4, 1, 7]):
        real = clips.values[row, :length]
        deviation = (real.var(dim=0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(means[row], real.mean(dim=0))
        expected = torch.cat([real.amax(dim=0), real.mean(dim=0), deviation])
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("hidden", [None, 5])
def test_the_head_scores_every_class(hidden):
    model = Model(_make("mlp"), classes=4, hidden=hidden).double()
    assert model({"audio": _clips([4, 2])}).shape == (2, 4)
