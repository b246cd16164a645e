"""Ratings: models, protocol, runner and report, on planted features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from metaser import metrics
from metaser.batch import Padded
from metaser.cli import app
from metaser.dimensional import bench as benchmark
from metaser.dimensional.bench import Bench, Pool
from metaser.dimensional.protocol import DimensionalProtocol, read_dimensional
from metaser.dimensional.rating import FrameRater, predicted, tuned
from metaser.dimensional.report import write
from metaser.dimensional.system import System, cells, systems
from metaser.protocol import BUNDLED, read_protocol
from metaser.rows import read_rows

PLAN = {
    "kind": "dimensional",
    "name": "trial",
    "title": "A trial",
    "description": "Planted ratings.",
    "ratings": ["arousal", "valence"],
    "sources": ["de_a", "en_b", "fr_c"],
    "targets": ["it_d", "ur_e"],
    "seeds": [0, 1],
    "folds": 3,
    "learning": {"steps": 40, "rate": 0.02},
    "views": {
        name: {
            "frontend": {"name": "statistics"},
            "normalise": "corpus",
            "network": {"name": "mlp", "hidden": [16]},
        }
        for name in ("first", "second")
    },
    "fusion": {"views": ["first", "second"], "stages": 2},
    "adaptation": {
        "views": ["first"],
        "shots": [8],
        "learning": {"steps": 10, "rate": 0.005},
    },
}


def _plan(**changes) -> DimensionalProtocol:
    return DimensionalProtocol.model_validate({**PLAN, **changes})


def _pool(plan: DimensionalProtocol, known=True, speakers=4, clips=10) -> Pool:
    """Ratings that the first view knows well, the second a little; or that no view knows."""
    rng = np.random.default_rng(0)
    names = plan.sources + plan.targets
    each = speakers * clips
    who = np.tile(np.repeat(np.arange(speakers), clips), len(names))
    table = pd.DataFrame({"task": np.repeat(names, each), "speaker": who.astype(str)})
    table["unit"] = table["task"] + ":" + table["speaker"]
    table["fold"] = table["task"] if plan.sources else table["unit"]
    ratings = rng.uniform(-1, 1, (len(table), len(plan.ratings)))
    heard = ratings if known else rng.uniform(-1, 1, ratings.shape)
    views = {}
    for name, noise in (("first", 0.2), ("second", 0.8)):
        values = heard @ rng.normal(size=(len(plan.ratings), 5))
        values = (values + rng.normal(0, noise, values.shape))[:, None].astype(np.float32)
        mask = torch.ones(len(table), 1, dtype=torch.bool)
        views[name] = Padded(torch.from_numpy(values), mask)
    return Pool(table, ratings, views)


def _ccc(pool: Pool, found: np.ndarray, target: str) -> float:
    true = pool.ratings[pool.clips["task"] == target]
    return float(np.mean([metrics.ccc(true[:, d], found[:, d]) for d in range(true.shape[1])]))


def _time_series(clips=32, frames=16, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(clips, frames, 3)).astype(np.float32)
    lengths = rng.integers(frames // 2, frames + 1, clips)
    mask = np.arange(frames) < lengths[:, None]
    values *= mask[..., None]
    ratings = 0.5 * np.cumsum(values[..., :2], axis=1) / np.sqrt(np.arange(1, frames + 1))[:, None]
    audio = Padded(torch.from_numpy(values), torch.from_numpy(mask))
    return audio, torch.from_numpy(ratings)


def test_lstm_stack_follows_ratings_over_time_that_frames_alone_do_not_tell():
    audio, ratings = _time_series()
    found = {}
    for layers in ("lstm", "dense"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = FrameRater(3, 2, widths=(16,), dropout=0.0, layers=layers)
        model = tuned(start, audio, ratings, steps=80, rate=0.04)
        output = model({"audio": audio}).values.detach()
        x, y = (part[audio.mask][:, 0].numpy() for part in (ratings, output))
        found[layers] = metrics.ccc(x, y)
    assert found["lstm"] > 0.8 > 0.6 > found["dense"]


def test_padding_changes_neither_frames_nor_their_mean():
    audio, _ = _time_series()
    model = FrameRater(3, 2, widths=(8, 4), pool=4).eval()
    longer = audio.lengthened(24)
    assert torch.allclose(predicted(model, audio), predicted(model, longer), atol=1e-6)
    assert (model({"audio": longer}).values[~model({"audio": longer}).mask] == 0).all()


def test_padded_frames_take_no_part_in_the_loss():
    audio, ratings = _time_series()
    model = FrameRater(3, 2, widths=(4,), dropout=0.0)
    spoilt = torch.where(audio.mask[..., None], ratings, torch.tensor(9.0))
    one, two = (tuned(model, audio, own, steps=3) for own in (ratings, spoilt))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_paper_size_is_lstm_256_128_64_and_one_dense_unit_a_rating():
    model = FrameRater(17, 3)
    assert [layer.hidden_size for layer in model.layers] == [256, 128, 64]
    lstm = sum(4 * n * (m + n + 2) for m, n in ((17, 256), (256, 128), (128, 64)))
    assert sum(p.numel() for p in model.parameters()) == lstm + 3 * 65


def test_tuning_leaves_the_model_and_the_random_state_as_they_were():
    audio, ratings = _time_series()
    model = FrameRater(3, 2, widths=(8,))
    before = [value.clone() for value in model.parameters()]
    state = torch.random.get_rng_state()
    one, two = (tuned(model, audio, ratings, steps=3, seed=5) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert not torch.equal(before[0], next(one.parameters()))


def test_ccc_loss_gives_the_larger_ccc_and_mse_the_smaller_error_where_little_is_known():
    """The mechanism behind the loss: MSE shrinks to the mean, CCC keeps the spread of the truth."""
    rng = np.random.default_rng(0)
    true = rng.normal(0, 0.4, 1200)
    values = (true + rng.normal(0, 1.2, true.size)).astype(np.float32)[:, None, None]
    audio = Padded(torch.from_numpy(values), torch.ones(1200, 1, dtype=torch.bool))
    ratings = torch.from_numpy(true[:, None])
    start = FrameRater(1, 1, widths=(8,), dropout=0.0, layers="dense")
    found = {
        loss: predicted(tuned(start, audio[:600], ratings[:600], loss=loss, rate=0.02), audio[600:])
        for loss in ("ccc", "mse")
    }
    ccc = {loss: metrics.ccc(true[600:], output[:, 0].numpy()) for loss, output in found.items()}
    rmse = {loss: metrics.rmse(true[600:], output[:, 0].numpy()) for loss, output in found.items()}
    assert ccc["ccc"] > ccc["mse"] + 0.05
    assert rmse["mse"] < rmse["ccc"] - 0.02


def test_clips_without_a_rating_teach_the_other_rating_alone():
    plan = _plan()
    pool = _pool(plan)
    holes = pool.ratings.copy()
    holes[:, 1] = np.nan
    model = Bench(plan, replace(pool, ratings=holes), 0)._train(
        "first", "ccc", (0, 1), np.arange(80).tobytes()
    )
    head = model.head.weight.detach()
    start = Bench(plan, pool, 0)._new("first", (0, 1)).head.weight.detach()
    assert torch.equal(head[1], start[1]) and not torch.equal(head[0], start[0])


def test_every_system_predicts_what_is_known_on_unheard_languages():
    plan = _plan()
    pool = _pool(plan)
    bench = Bench(plan, pool, 0)
    for system in systems(plan):
        found = bench.predict(system, "it_d")
        assert found.shape == (40, 2)
        least = {"second": 0.3}.get(system.view, 0.5) if system.method != "scratch" else 0.1
        assert _ccc(pool, found, "it_d") > least, system


@pytest.mark.parametrize("sources", [PLAN["sources"], []], ids=["unheard", "cross-validated"])
def test_noise_is_not_predicted_except_in_sample(sources):
    """A fusion fitted on what it is scored on is the mistake; it must show, and only there."""
    plan = _plan(sources=sources, adaptation=None, fusion={**PLAN["fusion"], "strength": 1.0})
    plan = plan.model_copy(update={"learning": plan.learning.model_copy(update={"steps": 20})})
    pool = _pool(plan, known=False, clips=4)
    wide = Padded(
        torch.randn(len(pool.clips), 1, 40, generator=torch.Generator().manual_seed(1)),
        torch.ones(len(pool.clips), 1, dtype=torch.bool),
    )
    pool = replace(pool, views={name: wide for name in pool.views})
    bench = Bench(plan, pool, 0)
    late = System("all", "late")
    honest = bench.predict(late, "it_d")
    inside = bench.predict(replace(late, in_sample=True), "it_d")
    assert _ccc(pool, honest, "it_d") < _ccc(pool, inside, "it_d")
    assert abs(_ccc(pool, honest, "it_d")) < 0.45


def test_no_system_learns_from_the_ratings_that_it_predicts():
    """With the target's ratings turned round, the predictions stay the same to the bit."""
    plan = _plan(learning={"steps": 2, "rate": 0.02}, adaptation=None)
    pool = _pool(plan)
    rated = pool.ratings.copy()
    poisoned = replace(
        pool, ratings=np.where((pool.clips["task"] == "it_d").to_numpy()[:, None], -rated, rated)
    )
    benches = [Bench(plan, own, 0) for own in (pool, poisoned)]
    for system in systems(plan):
        clean, other = (bench.predict(system, "it_d") for bench in benches)
        assert np.array_equal(clean, other) != system.in_sample, system


def test_adapting_learns_from_the_half_of_the_speakers_that_is_not_scored(monkeypatch):
    plan = _plan()
    pool = _pool(plan)
    bench = Bench(plan, pool, 0)
    learnt, scored = [], []
    units = pool.clips["unit"].to_numpy()
    whole, features = bench._tune, pool.views["first"]

    def tune(model, view, loss, columns, rows, learning):
        learnt.append(rows)
        return whole(model, view, loss, columns, rows, learning)

    def seen(model, audio):
        scored.append(
            [int((features.values == row).all(-1).nonzero()[0, 0]) for row in audio.values]
        )
        return predicted(model, audio)

    monkeypatch.setattr(bench, "_tune", tune)
    monkeypatch.setattr(benchmark, "predicted", seen)
    bench.predict(System("first", "scratch", shots=8), "ur_e")
    assert [len(rows) for rows in learnt] == [8, 8]
    assert sorted(sum(scored, [])) == sorted(np.flatnonzero(pool.clips["task"] == "ur_e"))
    for rows, others in zip(learnt, scored, strict=True):
        assert not set(units[rows]) & set(units[others])


@pytest.fixture
def made(make_task, plant, monkeypatch):
    """Tasks with planted features and ratings instead of audio."""
    tasks = {}
    for name in PLAN["sources"] + PLAN["targets"]:
        task = make_task(name, speakers=4, clips=2)
        rng = np.random.default_rng(len(name) + ord(name[0]))
        heard = plant(task, channels=4)
        for rating, column in (("arousal", 0), ("valence", 1)):
            values = np.tanh(np.asarray(heard.values).sum(axis=1)[:, column])
            task.table[rating] = values + rng.normal(0, 0.01, len(values))
        tasks[name] = (replace(task, ratings={"arousal": [1, 5], "valence": [1, 5]}), heard)
    monkeypatch.setattr(benchmark, "read_task", lambda name, *_: tasks[name][0])
    monkeypatch.setattr(benchmark, "extract", lambda task, *_, **__: tasks[task.name][1])
    return tasks


def test_run_writes_a_row_a_cell_resumes_and_reports(made, tmp_path):
    plan = _plan(learning={"steps": 2, "rate": 0.01})
    rows = benchmark.run(plan, tmp_path)
    found = read_rows(rows)
    measured = {
        (
            row["seed"],
            row["view"],
            row["method"],
            row["loss"],
            row["tasking"],
            row["shots"],
            row["in_sample"],
            row["target"],
        )
        for row in found
    }
    assert len(found) == len(measured) == 2 * len(list(cells(plan)))
    whole = [{k: v for k, v in row.items() if k not in ("seconds", "time")} for row in found]
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[::2]))
    benchmark.run(plan, tmp_path)
    again = read_rows(rows)
    assert len(again) == len(found)
    for row in again:
        assert {k: v for k, v in row.items() if k not in ("seconds", "time")} in whole
    before = rows.read_bytes()
    benchmark.run(plan, tmp_path)
    assert rows.read_bytes() == before
    page = write(tmp_path, tmp_path / "page").read_text()
    assert "first: CCC loss − first: MSE loss" in page
    assert "late fusion, fitted on what it is scored on" in page
    assert "64 clips of 8 speakers, 0 ratings missing, 2 seeds" in page
    assert (tmp_path / "page" / "ccc.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="rows of other settings"):
        benchmark.run(_plan(learning={"steps": 6, "rate": 0.01}), tmp_path)


def test_missing_ratings_are_counted_and_left_out(made, tmp_path):
    task, _ = made["it_d"]
    task.table.loc[:9, "arousal"] = np.nan
    plan = _plan(learning={"steps": 2, "rate": 0.01}, fusion=None, adaptation=None, seeds=[0])
    row = next(row for row in read_rows(benchmark.run(plan, tmp_path)) if row["target"] == "it_d")
    assert row["missing"] == {"arousal": 10, "valence": 0}
    assert sum(sums[0] for sums in row["moments"]["arousal"].values()) == row["clips"] - 10
    assert "10 ratings missing" in write(tmp_path, tmp_path).read_text()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda task: replace(task, ratings={}),
            "it_d must have the rating 'arousal', .* declares none",
        ),
        (lambda task: replace(task, table=None), "the audio of it_d must be present, but is not"),
        (
            lambda task: replace(task, table=task.table.assign(arousal=0.5)),
            r"'arousal' of it_d must have at least 2 .* not 1 \(32 of 32 clips are rated\)",
        ),
    ],
)
def test_tasks_that_cannot_be_scored_are_named(made, tmp_path, change, words):
    task, heard = made["it_d"]
    made["it_d"] = (change(task), heard)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        benchmark.run(_plan(), tmp_path)


def test_too_few_rated_clips_to_adapt_to_are_named():
    plan = _plan(adaptation={**PLAN["adaptation"], "shots": [50]})
    bench = Bench(plan, _pool(plan), 0)
    with pytest.raises(
        ValueError, match="speakers of it_d must have at least 50 rated clips to adapt to, not 20"
    ):
        bench.predict(System("first", "scratch", shots=50), "it_d")


def test_a_report_of_an_unfinished_run_says_what_is_missing(made, tmp_path):
    plan = _plan(learning={"steps": 2, "rate": 0.01}, fusion=None, adaptation=None)
    rows = benchmark.run(plan, tmp_path)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ValueError, match="must have 4 rows, not 3: run `metaser dimensional` again"
    ):
        write(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no rows"):
        write(tmp_path / "nothing", tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"targets": ["de_a"]}, "'de_a' is a source and a target"),
        ({"weights": {"liking": 1.0}}, "weights must be of arousal or valence, not of 'liking'"),
        ({"sources": []}, "needs sources"),
        (
            {"fusion": {"views": ["first", "third"]}},
            "views must be among first, second, not 'third'",
        ),
        ({"ratings": ["arousal", "arousal"]}, "'arousal' is named twice"),
    ],
)
def test_protocols_that_cannot_be_meant(changes, words):
    with pytest.raises(ValueError, match=words):
        _plan(**changes)


OWN = [path.stem for path in BUNDLED.glob("*.toml") if 'kind        = "dim' in path.read_text()]


@pytest.mark.parametrize("name", OWN)
def test_committed_reports_are_what_the_committed_rows_give(name, tmp_path):
    page = write(BUNDLED / "results" / name, tmp_path)
    assert page.read_bytes() == (BUNDLED / "reports" / name / "report.md").read_bytes()


@pytest.mark.parametrize("name", OWN)
def test_networks_of_bundled_protocols_can_be_built(name):
    for view in read_dimensional(name).views.values():
        assert list(benchmark._network(view.network, 8, 2).parameters())


@pytest.mark.parametrize(
    "network, words",
    [
        ({"name": "frame"}, "network must be one of .*, not 'frame'. Did you mean 'frames'"),
        ({"name": "mlp", "hiden": [4]}, "argument of network 'mlp' must be .*, not 'hiden'"),
    ],
)
def test_a_wrong_network_or_argument_names_the_nearest(network, words):
    with pytest.raises(ValueError, match=words):
        benchmark._network(network, 8, 2)


@pytest.mark.parametrize("name", OWN)
def test_bundled_protocols_of_ratings_are_valid_and_named_by_their_file(name):
    assert read_dimensional(name).name == name
    with pytest.raises(ValueError, match="run that instead"):
        read_protocol(name)


def test_there_are_bundled_protocols_of_ratings():
    assert {"dimensional", "dimensional_intensity"} <= set(OWN)


def test_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "trial.toml"
    text = Path(BUNDLED / "dimensional.toml").read_text()
    path.write_text(text.replace("strength =", "strenght =").replace("stages ", "stage "))
    with pytest.raises(
        ValueError, match=r"unknown key 'strenght' in \[fusion\]. Did you mean 'strength'"
    ):
        read_dimensional(str(path))


def test_the_command_explains_itself_and_its_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("METASER_DATA", raising=False)
    result = CliRunner().invoke(app, ["dimensional", "smoke", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "`metaser benchmark`" in result.output
    result = CliRunner().invoke(app, ["dimensional", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "there is no task 'de_synthetic'" in result.output


def test_levels_of_a_real_corpus_are_its_rating(corpora):
    from metaser.tasks import read_task

    task = read_task("ar_baved", corpora)
    assert task.ratings == {"intensity": [0, 2]}
    levels = task.table.groupby("emotion")["intensity"].unique().map(list).to_dict()
    assert levels == {"level_low": [-1], "level_normal": [0], "level_high": [1]}
