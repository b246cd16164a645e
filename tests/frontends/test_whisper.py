"""Whisper as a front end, and what tells one pretrained encoder from another."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from builders import tiny_whisper

from metaser.frontends import make_frontend
from metaser.frontends.ssl import SSL
from metaser.protocol import Protocol, build

transformers = pytest.importorskip("transformers", reason="pip install 'metaser[ssl]'")

RATE = 16000
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module", autouse=True)
def _offline():
    """Nothing is asked of the network."""
    pytest.importorskip("peft", reason="pip install 'metaser[ssl]'")
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        transformers.utils.logging.disable_progress_bar()
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Folder of a random Whisper of two layers that hears four seconds."""
    return tiny_whisper(tmp_path_factory.mktemp("models") / "tiny")


def _clip(samples: int) -> np.ndarray:
    rng = np.random.default_rng(samples)
    return (0.1 * rng.standard_normal(samples)).astype(np.float32)


def _whole_window(folder: Path, clip: np.ndarray) -> list[np.ndarray]:
    """Frames of each layer by transformers itself, on the clip filled up to the whole window."""
    network = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        output = network.get_encoder().eval()(inputs, output_hidden_states=True)
    states = (*output.hidden_states[:-1], output.last_hidden_state)
    return [state[0].numpy() for state in states]


def _hub(monkeypatch, cache: Path, tiny: Path) -> str:
    """Name of a model in a made-up cache of the hub."""
    import huggingface_hub

    folder = cache / "models--lab--tiny"
    shutil.copytree(tiny, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return "lab/tiny"


def _protocol(**frontend: object) -> Protocol:
    setup = {
        "frontend": {"seconds": 3.0, **frontend},
        "normalise": "none",
        "backbone": {"name": "mlp"},
        "methods": {"maml": {}},
    }
    return Protocol(
        name="trial",
        title="",
        description="",
        classes=["angry", "sad"],
        sources=["de_emodb"],
        targets=["it_emovo"],
        seeds=[0],
        episodes={"shots": [1], "queries": 1, "count": 1},
        setups={"one": setup},
    )


def test_the_full_window_is_that_of_transformers(tiny):
    clip = _clip(3 * 9999)
    found = SSL(str(tiny), "all", seconds=4, window="full")(clip)
    expected = np.concatenate(_whole_window(tiny, clip), axis=1)[: len(found)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_encoder_is_known_by_its_tensors_in_whatever_precision(tiny, tmp_path):
    here = SSL(str(tiny), seconds=3)
    network = transformers.AutoModel.from_pretrained(tiny).half()
    there = tmp_path / "under-another-name"
    network.save_pretrained(there)
    shutil.copy(tiny / "preprocessor_config.json", there)
    half = SSL(str(there), seconds=3)
    assert half.revision != here.revision  # other files
    assert half == here and repr(half) == repr(here) and half.weights == here.weights
    np.testing.assert_array_equal(half(_clip(9000)), here(_clip(9000)))


@pytest.mark.parametrize("name", ["ssl", "ssl_layers", "ssl_lora"])
def test_a_pinned_encoder_is_built_again(name, tiny):
    protocol = _protocol(name=name, model=str(tiny))
    setup = build.settle(protocol)["one"].setup
    weights = SSL(str(tiny), seconds=3).weights
    assert setup.frontend == {**protocol.setups["one"].frontend, "weights": weights}
    build.make_method("maml", setup, classes=2, stored={"audio": 16}, seed=0)
    with pytest.raises(ValueError, match="must have the weights other, not"):
        make_frontend(setup.frontend | {"weights": "other"})


@pytest.mark.parametrize("name", ["ssl", "ssl_layers", "ssl_lora"])
def test_a_folder_serves_what_was_pinned_from_the_hub(name, tiny, tmp_path, monkeypatch):
    model = _hub(monkeypatch, tmp_path / "cache", tiny)
    protocol = _protocol(name=name, model=model)
    pinned = build.settle(protocol)["one"].setup
    assert pinned.frontend["revision"] == COMMIT
    local = _protocol(name=name, model=str(tiny))
    settled = build.settle(local)["one"].setup
    assert build.settings(protocol, pinned, "maml") == build.settings(local, settled, "maml")
    assert build.training_key("maml", pinned) == build.training_key("maml", settled)
    shutil.copytree(tiny, tmp_path / "encoders" / "tiny")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("METASER_ENCODERS", str(tmp_path / "encoders"))
    make_frontend(pinned.frontend)


def test_without_network_or_folder_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("METASER_ENCODERS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set METASER_ENCODERS .* whisper-none lies"):
        make_frontend({"name": "whisper", "model": "lab/whisper-none"})


@pytest.mark.corpora
def test_the_real_encoder_on_real_speech(encoders, corpora):
    folder = encoders / "whisper-tiny.en"
    clip, _ = soundfile.read(min((corpora / "emovo").rglob("*.flac")), dtype="float32")
    whole = SSL(str(folder), 2, seconds=29.0, window="full")
    assert whole.weights == (folder / "encoder.sha256").read_text().strip()
    found = whole(clip)
    np.testing.assert_allclose(found, _whole_window(folder, clip)[2][: len(found)], atol=1e-4)
    own = make_frontend({"name": "whisper", "model": str(folder)})
    assert own.layers == 3 and own.width == 384 and own(clip).shape == (1, 3 * 384)
    second, full = own(clip)[0, 384:768], found.mean(axis=0)
    assert np.corrcoef(second, full)[0, 1] > 0.9 and np.abs(second - full).max() > 1e-3
