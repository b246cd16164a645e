"""The models that come along, and models that know voices."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax
from typer.testing import CliRunner

from metaser.adaptation import adapt as adaptation
from metaser.adaptation.evaluate import evaluate
from metaser.adaptation.model_file import ABOARD, aboard, find_model, load, save
from metaser.adaptation.voices import speakers_of
from metaser.backbones import MLP
from metaser.cli.main import app
from metaser.episodes import TaskSampler
from metaser.export import to_onnx
from metaser.labelling.curve import adapted_model
from metaser.methods.by_evidence import Mixture
from metaser.methods.gaussian_process import GaussianProcess
from metaser.model import Model

NAMES = ["starter", "starter-light"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_aboard_is_small_and_says_what_it_may_be_used_for(name):
    file = load(name)
    assert aboard()[name].stat().st_size < 5_000_000
    assert {source.name for source in file.header.sources} == {
        "en_ravdess",
        "pl_nemo",
        "bn_banglaser",
    }
    card = (ABOARD / "README.md").read_text(encoding="utf-8")
    for source in file.header.sources:
        assert source.corpus in card and source.licence.split(" (")[0] in card
    assert file.knows_voices and file.header.quality


def test_the_models_aboard_are_listed():
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in NAMES) and "CC BY-NC-SA 4.0" in done.output


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(FileNotFoundError, match="Did you mean 'starter'"):
        find_model("startre")


@pytest.fixture
def fitted(make_task, plant):
    file = load("starter-light")
    task = make_task(speakers=6, clips=6)
    features = plant(task, channels=file.header.channels["audio"])
    episode = TaskSampler(task, file.header.classes, 4, 2).episode(0)
    speakers = task.table["speaker"].to_numpy(str)
    found = adaptation.fit(
        file, features, episode.support, episode.support_targets, speakers[episode.support]
    )
    return found, features, episode, speakers, file


def test_scores_of_a_known_voice_are_mixed_and_of_an_unknown_one_are_not(fitted):
    found, features, episode, speakers, _ = fitted
    rows, who = episode.query, speakers[episode.query]
    plain = found.scores(features, rows)
    nobody = found.scores(features, rows, np.full(len(rows), ""))
    np.testing.assert_array_equal(nobody, plain)
    known = who.copy()
    known[::2] = ""
    some = found.scores(features, rows, known)
    np.testing.assert_array_equal(some[::2], plain[::2])
    assert 0 < found.trust < 1 and np.abs(some[1::2] - plain[1::2]).max() > 0
    mixed = found.scores(features, rows, who)
    np.testing.assert_allclose(np.exp(mixed).sum(axis=1), 1, atol=1e-5)
    # With all trust in the language, what is left is the language's own scores.
    untrusted = replace(found, trust=1e-12)
    expected = log_softmax(plain, axis=1)
    np.testing.assert_allclose(untrusted.scores(features, rows, who), expected, atol=1e-4)


def test_evaluating_and_the_curve_know_who_speaks_by_the_tasks_column(
    fitted, make_task, monkeypatch
):
    found, features, episode, speakers, file = fitted
    table = make_task(speakers=6, clips=6).table
    seen, inside = [], type(found).scores

    def scores(own, features, rows, who=None, voices=None):
        seen.append((rows, who))
        return inside(own, features, rows, who, voices)

    monkeypatch.setattr(type(found), "scores", scores)
    header = file.header.model_copy(update={"adaptation": _facts(file, found)})
    evaluate(replace(file, header=header, fitted=found), table, features)
    adapted_model(file, features, speakers)(episode)
    assert len(seen) == 2
    for rows, who in seen:
        np.testing.assert_array_equal(who, table["speaker"].to_numpy(str)[rows])


def test_an_adapted_model_that_knows_voices_is_read_as_it_was_written(fitted, tmp_path):
    found, features, episode, speakers, file = fitted
    header = file.header.model_copy(update={"adaptation": _facts(file, found)})
    written = replace(file, header=header, fitted=found)
    save(tmp_path / "adapted.safetensors", written)
    read = load(tmp_path / "adapted.safetensors")
    assert read.fitted.trust == found.trust
    arguments = features, episode.query, speakers[episode.query]
    np.testing.assert_array_equal(read.fitted.scores(*arguments), found.scores(*arguments))


def _facts(file, found):
    from metaser.adaptation.model_file import Adaptation

    return Adaptation(
        name="it", task_version=None, synthetic=False, classes=file.header.classes, clips=16,
        shots=4, speakers=3, contents=[], uar=0.5, low=0.3, high=0.7, folds="none",
        seen=float("nan"), temperature=1.0, trust=found.trust,
    )  # fmt: skip


def test_who_speaks_is_said_in_three_ways(tmp_path):
    files = [tmp_path / name for name in ("ali_1.wav", "ali_2.wav", "bea_1.wav", "noise.wav")]
    assert speakers_of(files, "^([a-z]+)_").tolist() == ["ali", "ali", "bea", ""]
    assert len(set(speakers_of(files, "one"))) == 1
    assert len(set(speakers_of(files, "file"))) == 4
    with pytest.raises(ValueError, match="must have a group"):
        speakers_of(files, "^[a-z]+_")
    with pytest.raises(ValueError, match="fits none, such as 'ali_1'"):
        speakers_of(files, "^([0-9]+)_")
    with pytest.raises(ValueError, match="must be one, file or a regular expression"):
        speakers_of(files, "(")


def test_a_curve_is_written_as_a_table(tmp_path):
    from metaser.cli.labelling import _write_scores

    scores = {1: [0.25, 0.5, 0.75], 5: [1.0, 1.0, 1.0]}
    _write_scores(tmp_path / "curve.csv", "it_made", {"starter": scores})
    table = pd.read_csv(tmp_path / "curve.csv")
    assert list(table.columns) == ["task", "method", "shots", "uar", "low", "high"]
    assert table["uar"].tolist() == [0.5, 1.0] and table["shots"].tolist() == [1, 5]
    assert table["low"][0] < 0.5 < table["high"][0] and table["low"][1] == table["high"][1] == 1


def test_a_model_aboard_is_exported_and_its_card_says_how_it_hears(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx, card = tmp_path / "model.onnx", tmp_path / "card.md"
    done = CliRunner().invoke(
        app, ["export", "starter-light", "--onnx", str(onnx), "--card", str(card)]
    )
    assert done.exit_code == 0, done.output
    assert onnx.is_file() and "scores differ by at most" in done.output
    text = card.read_text(encoding="utf-8")
    assert "deviation of its speaker" in text and "backbone" not in text


def test_a_mixture_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    process = GaussianProcess(6, 4)
    mixture = Mixture([Model(MLP(6, (8,)), 4), process.model], (0.25, 0.75), (0.5, 1.0)).eval()
    assert to_onnx(mixture, tmp_path / "mixture.onnx") < 1e-4
