"""A model that hears by a pretrained encoder, which lies in a folder."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from builders import tiny_whisper
from typer.testing import CliRunner

from metaser.adaptation.model_file import load, read_header, save
from metaser.batch import Batch, Padded
from metaser.cli import app
from metaser.frontends.ssl import SSL
from metaser.methods.gaussian_process import GaussianProcess

transformers = pytest.importorskip("transformers", reason="pip install 'metaser[ssl]'")

NOWHERE = "lab/nowhere"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two encoders, labelled clips, and a model of which the first encoder is not where it says."""
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("encoder")
    ours = tiny_whisper(folder / "ours")
    tiny_whisper(folder / "other", seed=1)
    rng = np.random.default_rng(0)
    for emotion in ("angry", "sad"):
        for take in range(2):
            path = folder / "clips" / emotion / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            syllables = np.sin(np.pi * np.arange(16000) / 2000)
            soundfile.write(path, 0.1 * rng.standard_normal(16000) * syllables, 16000)
    light = load("starter-light")
    heard = dict(layer=[1, 2], pooling="mean", seconds=4.0)
    weights = SSL(str(ours), **heard).weights
    frontend = {"name": "ssl", "model": NOWHERE, "weights": weights, **heard}
    setup = light.header.setup.model_copy(update={"frontend": frontend, "normalise": "corpus"})
    header = light.header.model_copy(update={"setup": setup, "channels": {"audio": 32}})
    method = GaussianProcess(32, 4)
    values = torch.from_numpy(rng.standard_normal((12, 1, 32)).astype(np.float32))
    clips = Padded(values, torch.ones(12, 1, dtype=torch.bool))
    method.fit([Batch({"audio": clips}, torch.arange(12) % 4, torch.ones(4, dtype=torch.bool))])
    zeros, ones = np.zeros(32, np.float32), np.ones(32, np.float32)
    source = replace(light.source, centre=zeros, spread=ones, neutral=None)
    save(folder / "model.safetensors", replace(light, header=header, method=method, source=source))
    return folder


def run(place, monkeypatch, *arguments):
    monkeypatch.chdir(place)
    monkeypatch.delenv("METASER_ENCODERS", raising=False)
    return CliRunner().invoke(app, list(arguments))


ADAPT = ("adapt", "model.safetensors", "clips", "--out", "out/adapted.safetensors")


def test_the_encoder_of_a_folder_is_used_and_not_written(place, monkeypatch):
    done = run(place, monkeypatch, *ADAPT, "--encoder", "ours")
    assert done.exit_code == 0, done.output
    assert read_header(place / "out" / "adapted.safetensors").setup.frontend["model"] == NOWHERE
    predict = ("predict", "out/adapted.safetensors", "clips", "--encoder", "ours")
    assert run(place, monkeypatch, *predict).exit_code == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((*ADAPT, "--encoder", "other"), "other must have the weights"),
        ((*ADAPT, "--encoder", "none"), "the encoder must be a folder"),
        (
            ("predict", "starter-light", "clips", "--encoder", "ours"),
            "an encoder has a meaning only for a model that hears by one, but this one hears by "
            "'statistics'",
        ),
        (("curve", "--task", "it_emovo", "--encoder", "ours"), "give --model, too"),
        (
            ("evaluate", "starter-light", "--task", "it_emovo", "--encoder", "ours"),
            "an encoder has a meaning",
        ),
        (("app", "--model", "starter-light", "--encoder", "ours"), "an encoder has a meaning"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(place, monkeypatch, arguments, words):
    done = run(place, monkeypatch, *arguments)
    assert done.exit_code == 2 and words in done.output.replace("\n", " ")
    assert "it is another encoder" in done.output or "weights" not in words
