"""Models as ONNX files; that every backbone can be one is told in test_backbones.py."""

import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from metaser import export
from metaser.backbones import BACKBONES
from metaser.batch import Padded
from metaser.export import to_onnx
from metaser.frontends.leaf import Leaf
from metaser.model import HEARD, Model


def _model(name="multiscale_cnn", channels=3, **options) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(BACKBONES[name](channels, **options), 4)


def _scores(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {name: value.numpy() for name, value in inputs.items()})[0]


@pytest.mark.parametrize("clips, frames", [(1, 1), (2, 60), (5, 7)])
def test_the_file_scores_any_number_of_clips_and_frames(tmp_path, clips, frames):
    model = _model(kernels=(3,), filters=4)
    to_onnx(model, tmp_path / "model.onnx")
    mask = torch.arange(frames) < torch.randint(1, frames + 1, (clips, 1))
    values = torch.randn(clips, frames, 3) * mask.unsqueeze(-1)
    found = _scores(tmp_path / "model.onnx", audio=values, audio_mask=mask)
    expected = model({"audio": Padded(values, mask)}).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("frames", [None, 6])
@pytest.mark.parametrize(
    "name, options",
    [
        ("multiscale_cnn", {"kernels": (3,), "filters": 4, "text_kernels": (2,)}),
        ("modality_hopping", {"hidden": 4}),
        ("multimodal_transformer", {"width": 8, "heads": 2, "context": 3}),
        (
            "key_sparse_transformer",
            {"width": 4, "heads": 2, "vanilla_layers": 0, "sparse_layers": 0},
        ),
    ],
)
def test_text_beside_audio(tmp_path, name, options, frames):
    model = _model(name, {"audio": 3, "text": 2}, **options)
    assert to_onnx(model, tmp_path / "model.onnx", frames) < 1e-5
    masks = {"audio_mask": torch.ones(2, 6) > 0, "text_mask": torch.ones(2, 6) > 0}
    masks["text_mask"][1] = False
    values = {"audio": torch.randn(2, 6, 3), "text": torch.randn(2, 6, 2)}
    found = _scores(tmp_path / "model.onnx", **values, **masks)
    modalities = {key: Padded(value, masks[f"{key}_mask"]) for key, value in values.items()}
    np.testing.assert_allclose(found, model(modalities).detach().numpy(), atol=1e-5)


def test_a_fixed_number_of_frames_is_held(tmp_path):
    to_onnx(_model("mlp", hidden=(4,)), tmp_path / "model.onnx", frames=5)
    inputs = onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()
    assert [given.shape for given in inputs] == [["clips", 5, 3], ["clips", 5]]


def test_the_model_stays_as_it_is(tmp_path):
    model = _model("mlp", hidden=(4,), dropout=0.5).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    to_onnx(model, tmp_path / "model.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    clips = torch.randn(3, 5, 3), torch.ones(3, 5) > 0
    found = _scores(tmp_path / "model.onnx", audio=clips[0], audio_mask=clips[1])
    expected = model.eval().float()({"audio": Padded(*clips)})
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)


class Counts(nn.Module):
    """A backbone that does by Python what the file cannot repeat."""

    channels, dim = {"audio": 3}, 1

    def forward(self, audio):
        return audio.values.sum(dim=1)[:, :1] * sum(audio.mask.sum(dim=1).tolist())


class Fixed(nn.Module):
    """A backbone whose sizes are those of the first clips."""

    channels, dim = {"audio": 3}, 3

    def forward(self, audio):
        return audio.values.sum(dim=1) + torch.zeros(len(audio), 1)


def test_a_file_that_scores_otherwise_is_not_kept(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="scores of the file must be the model's.*Counts"):
        to_onnx(Model(Counts(), 4), path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_does_not_run_is_not_kept(tmp_path):
    fixed = r"must take any number of clips.*Fixed.*scores are \(3, 4\)"
    with pytest.raises(ValueError, match=fixed):
        to_onnx(Model(Fixed(), 4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_difference_is_that_of_the_file(tmp_path, monkeypatch):
    write = export._write

    def other(network, *arguments, **options):
        with torch.no_grad():
            network.model.head.bias += 0.25
        write(network, *arguments, **options)
        with torch.no_grad():
            network.model.head.bias -= 0.25

    monkeypatch.setattr(export, "_write", other)
    with pytest.raises(ValueError, match="differ by up to 0.25"):
        to_onnx(_model("mlp", hidden=(4,)), tmp_path / "model.onnx")


def test_a_backbone_that_does_not_tell_its_channels_is_refused(tmp_path):
    model = _model("mlp")
    del model.backbone.channels
    with pytest.raises(ValueError, match="attribute `channels`.*that of MLP is None"):
        to_onnx(model, tmp_path / "model.onnx")


def test_a_learnt_front_end_is_inside_of_a_file_of_fixed_length_for_any_number_of_clips(tmp_path):
    leaf = Leaf(filters=4, seconds=0.5)
    model = Model(BACKBONES["mlp"](leaf.channels, hidden=(4,)), 4, frontend=leaf)
    with pytest.raises(ValueError, match="learnt front end Leaf may ask for.*--frames"):
        to_onnx(model, tmp_path / "model.onnx")
    to_onnx(model, tmp_path / "model.onnx", frames=30)
    clips = 2 * HEARD + 1  # more than the model hears at once
    values = torch.randn(clips, 30, leaf.extracted.hop)
    mask = torch.ones(clips, 30, dtype=torch.bool)
    found = _scores(tmp_path / "model.onnx", audio=values, audio_mask=mask)
    expected = model({"audio": Padded(values, mask)}).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frames must be at least 1, .*not 0"):
        to_onnx(_model("mlp"), tmp_path / "model.onnx", frames=0)


def test_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'metaser\[onnx\]'"):
        to_onnx(_model("mlp"), tmp_path / "model.onnx")
