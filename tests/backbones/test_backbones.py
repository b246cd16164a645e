import inspect

import pytest
import torch
from builders import draw_clips
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.rnn import pack_padded_sequence

from metaser.backbones import BACKBONES, make_backbone
from metaser.backbones.layers import statistics_pooling
from metaser.batch import Padded
from metaser.export import to_onnx
from metaser.model import Model
from metaser.naming import MODALITIES

CHANNELS = 3
_STREAM = {"width": 4, "heads": 2, "dense": (3,), "dropout": 0.0, "dense_dropout": 0.0}
_KERNELS = {"widths": (3, 4), "kernels": ((7, 5), (5, 5)), "stride": 2}
_ENCODER = {"width": 4, "heads": 2, "feedforward": 3, "layers": 1, "dropout": 0.0}
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
    "recurrent_tiny": {"hidden": 3, "pool": 2},
    "key_sparse_transformer": {**_STREAM, "pool": 2},
    "key_sparse_transformer_paper": {**_STREAM, "vanilla_layers": 1},
    "replknet": _KERNELS,
    "replknet_31b": {**_KERNELS, "blocks": (1, 1), "drop_path": 0.0},
    "replknet_tiny": _KERNELS,
    "gru_attention": {"hidden": 2, "pool": 2},
    "daae": {"width": 4, "tokens": 2, "heads": 2},
    "modality_hopping": {"hidden": 2, "streams": (2, 1), "pool": 2},
    "modality_hopping_paper": {"hidden": 2, "hops": 2},
    "multimodal_transformer": {**_ENCODER, "pool": 2},
    "multimodal_transformer_paper": {**_ENCODER, "context": 2},
    "multiscale_cnn_paper": {"kernels": (1, 5), "filters": 2},
    "resnet18": {"widths": (2, 3)},
    "resnet18_paper": {"widths": (3, 2), "blocks": 1},
    "resnet18_tiny": {"widths": (2, 3), "stride": 2},
    "segment_sequence": _SEGMENTS,
    "segment_sequence_paper": _SEGMENTS,
}
"""A tiny configuration of every backbone, for checks by finite differences."""
_STREAMS = {"width": 16, "heads": 2, "pool": 2, "dropout": 0.0}
_SPARSE = {**_STREAMS, "vanilla_layers": 1, "cross_blocks": 0, "sparse_layers": 1}
_MAPS = {"widths": (8, 16), "kernels": ((7, 5), (5, 5)), "stride": 2, "drop_path": 0.0}
_PARTS = {"inner": {"kernels": (3,), "filters": 8}, "hidden": 16, "pause": 3, "shortest": 2}
SMALL = {
    "recurrent": {"hidden": 32, "layers": 1},
    "gru_attention": {"hidden": 16},
    "key_sparse_transformer": {**_SPARSE, "dense": (32,)},
    "key_sparse_transformer_paper": {**_SPARSE, "dense": (32,), "dense_dropout": 0.0},
    "modality_hopping": {"hidden": 16},
    "modality_hopping_paper": {"hidden": 16, "hops": 2, "pool": 4},
    "multimodal_transformer": {**_STREAMS, "feedforward": 32},
    "multimodal_transformer_paper": {**_STREAMS, "layers": 1, "feedforward": 32, "context": 8},
    "multiscale_cnn_paper": {"filters": 8},
    "replknet": _MAPS,
    "replknet_31b": {**_MAPS, "blocks": (1, 1)},
    "replknet_tiny": {"stride": 2},
    "resnet18": {"widths": (8, 16)},
    "resnet18_paper": {"widths": (8, 16), "blocks": 1},
    "resnet18_tiny": {"widths": (8, 16), "stride": 2},
    "segment_sequence": _PARTS,
    "segment_sequence_paper": {**_PARTS, "pool": 4},
}
"""Configurations that are small but can learn; without one, the entry's own is."""
HUGE = {name for name in BACKBONES if name.endswith(("_paper", "_31b"))}
"""Too large to run in tests but in that configuration."""


def _make(name: str, kind=torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return BACKBONES[name](CHANNELS, **TINY[name]).to(kind).eval()


def _usual(name: str) -> nn.Module:
    torch.manual_seed(1)
    return BACKBONES[name](CHANNELS, **(TINY[name] if name in HUGE else {}))


def _clips(lengths, frames=None, kind=torch.float64, seed=0) -> Padded:
    return draw_clips(lengths, CHANNELS, seed=seed, frames=frames, kind=kind)


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
    assert {"audio"} <= set(inspect.signature(backbone.forward).parameters) <= set(MODALITIES)


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
    own = dict(backbone.named_parameters())
    clips = _clips([3, 2])

    def embed(values, *parameters):
        audio = Padded(values, clips.mask)
        return functional_call(backbone, dict(zip(own, parameters)), kwargs={"audio": audio})

    def embed_by_vector(values, vector):  # one input instead of dozens is dozens of times faster
        parts = vector.split([value.numel() for value in own.values()])
        return embed(values, *(part.view_as(p) for part, p in zip(parts, own.values())))

    values = clips.values.clone().requires_grad_()
    separate = [value.detach().clone().requires_grad_() for value in own.values()]
    assert torch.autograd.gradcheck(embed, (values, *separate), fast_mode=True)
    vector = parameters_to_vector(own.values()).detach().requires_grad_()
    assert torch.autograd.gradgradcheck(embed_by_vector, (values, vector), fast_mode=True)


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
    save_file(one.state_dict(), tmp_path / "state.safetensors")
    expected = one(audio=_clips([4, 2]))
    for state in (
        torch.load(tmp_path / "state.pt", weights_only=True),
        load_file(tmp_path / "state.safetensors"),
    ):
        other = BACKBONES[name](CHANNELS, **TINY[name]).double().eval()
        assert not torch.equal(expected, other(audio=_clips([4, 2])))
        other.load_state_dict(state)
        assert torch.equal(expected, other(audio=_clips([4, 2])))


@each
def test_a_clip_without_frames_is_finite_and_changes_nothing(name):
    backbone, clips = _make(name), _clips([4, 1, 7])
    expected = backbone(audio=clips)
    found = []
    for noise in (0, 9):
        values = (clips.values + noise * torch.eye(3).double()[1].view(3, 1, 1)).requires_grad_()
        mask = clips.mask & torch.tensor([[True], [False], [True]])
        output = backbone(audio=Padded(values, mask))
        slopes = torch.autograd.grad(output.square().sum(), [values, *backbone.parameters()])
        assert output.isfinite().all() and all(slope.isfinite().all() for slope in slopes)
        assert not slopes[0][1].any() and slopes[0][0].any()
        found.append(output)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
    torch.testing.assert_close(found[0][::2], expected[::2], rtol=1e-12, atol=1e-12)


@each
def test_frames_fewer_than_a_kernel_or_a_pool_are_enough(name):
    output = _usual(name).eval()(audio=_clips([1, 1], kind=torch.float32))
    assert output.isfinite().all() and (output[0] != output[1]).any()


@each
def test_a_pattern_in_noise_is_learnt(name):
    """Of each class two bands sound, for a while, somewhere in the clip."""
    generator = torch.Generator().manual_seed(0)

    def clips(count):
        targets = torch.arange(count) % 4
        lengths = torch.randint(16, 25, (count,), generator=generator)
        begins = torch.randint(0, 5, (count,), generator=generator)
        place = torch.arange(24)
        mask = place < lengths[:, None]
        sounds = (place >= begins[:, None]) & (place < begins[:, None] + 10)
        bands = torch.arange(8) // 2 == targets[:, None]
        values = torch.randn(count, 24, 8, generator=generator)
        values += 3 * sounds[..., None] * bands[:, None]
        return {"audio": Padded(values * mask[..., None], mask)}, targets

    torch.manual_seed(0)
    model = Model(BACKBONES[name](8, **SMALL.get(name, {})), 4)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    heard, targets = clips(40)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(heard), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fresh, expected = clips(80)
    with torch.no_grad():
        found = model.eval()(fresh).argmax(dim=1)
    assert (found == expected).float().mean() > 0.9


@each
def test_as_an_onnx_file_it_scores_the_same(name, tmp_path):
    """None is left out: every backbone can be exported, for any number of clips and frames."""
    model = Model(_make(name, torch.float32), classes=4)
    assert to_onnx(model, tmp_path / "model.onnx") < 1e-4


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


def test_a_pool_hears_the_means_of_neighbouring_frames():
    one, pooled = (BACKBONES["recurrent"](CHANNELS, 3, 1, pool=pool).double() for pool in (1, 2))
    pooled.load_state_dict(one.state_dict())
    clips = _clips([4, 1, 7])
    means = torch.zeros(3, 4, CHANNELS, dtype=torch.float64)
    for row, length in enumerate([4, 1, 7]):
        for step, part in enumerate(clips.values[row, :length].split(2)):
            means[row, step] = part.mean(dim=0)
    mask = torch.arange(4) < torch.tensor([2, 1, 4])[:, None]
    torch.testing.assert_close(pooled(audio=clips), one(audio=Padded(means, mask)))
    with pytest.raises(ValueError, match="pool must be at least 1, not 0"):
        BACKBONES["recurrent"](CHANNELS, pool=0)


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


def test_a_backbone_is_made_from_a_table():
    one = make_backbone({"name": "multiscale_cnn", "kernels": [3], "filters": 2}, CHANNELS)
    assert one.dim == 6 and len(one.branches) == 1
    inner = {"name": "gru_attention", "hidden": 2}
    both = make_backbone({"name": "segment_sequence", "inner": inner, "hidden": 5}, CHANNELS)
    assert type(both.emotion) is BACKBONES["gru_attention"] and both.emotion.dim == 4
    assert both.dim == 10
    plain = make_backbone({"name": "segment_sequence", "inner": {"filters": 3}}, CHANNELS)
    assert plain.emotion.dim == 3 * 2 * 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "multiscalecnn"}, "not 'multiscalecnn'. Did you mean 'multiscale_cnn'"),
        ({"hidden": 3}, "must be one of .*not None"),
        ({"name": "mlp", "hiden": (3,)}, "'mlp' must be .*not 'hiden'. Did you mean 'hidden'"),
        (
            {"name": "mlp", "hidden": 3},
            "hidden of backbone 'mlp' must be a list of whole numbers, not 3",
        ),
        (
            {"name": "segment_sequence", "inner": {"name": "recurent"}},
            "not 'recurent'. Did you mean 'recurrent'",
        ),
    ],
)
def test_a_table_that_names_no_backbone_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(arguments, CHANNELS)


def test_modalities_of_different_clips_or_without_frames_are_refused():
    channels = {"audio": CHANNELS, "text": CHANNELS}
    model = Model(BACKBONES["multiscale_cnn"](channels, filters=2), classes=4).double()
    audio, text = _clips([4, 2]), _clips([3, 1, 2])
    with pytest.raises(ValueError, match="one row per clip, not {'audio': 2, 'text': 3}"):
        model({"audio": audio, "text": text})
    empty = Padded(text.values[:2, :0], text.mask[:2, :0])
    with pytest.raises(ValueError, match="'text' must have sequences of at least 1 frame, not 0"):
        model({"audio": audio, "text": empty})
    assert model({"audio": audio, "text": text[:2]}).shape == (2, 4)
