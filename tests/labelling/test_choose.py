"""Which clips to label first: choices against brute force, and the command."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import soundfile
from typer.testing import CliRunner

from metaser.cli import app
from metaser.labelling import choose as labelling


def run(*arguments):
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def farthest(values, chosen):
    """Largest distance from a clip to the nearest chosen one."""
    return np.linalg.norm(values[:, None] - values[list(chosen)], axis=2).min(axis=1).max()


def islands(sizes, seed=0):
    """Clips in groups far from each other; returns values and group of each."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=(len(groups), 3)) * 0.1 + 10 * np.eye(len(sizes), 3)[groups], groups


@pytest.mark.parametrize("choose", [labelling.k_centre, labelling.k_means])
def test_labelled_clips_count_as_chosen(choose):
    """Islands on which a clip is labelled are left alone as long as there are others."""
    values, groups = islands([20, 20, 5])
    rng = np.random.default_rng(0)
    assert groups[choose(values, 1, rng, labelled=[3, 21])] == [2]
    chosen = choose(values, 43, rng, labelled=[3, 21])
    assert sorted([*chosen, 3, 21]) == list(range(45))
    with pytest.raises(
        ValueError, match="from 1 to 43, the number of clips without a label, not 44"
    ):
        choose(values, 44, rng, labelled=[3, 21])


def test_going_on_by_k_centre_is_as_if_all_had_been_chosen_at_once():
    values = np.random.default_rng(0).normal(size=(40, 4))
    whole = labelling.k_centre(values, 12, None)
    rest = labelling.k_centre(values, 7, None, labelled=whole[:5])
    assert rest.tolist() == whole[5:].tolist()


@pytest.mark.parametrize("choose", labelling.STRATEGIES.values())
def test_speakers_with_labelled_clips_wait_for_the_others(choose):
    values = np.random.default_rng(0).normal(size=(12, 3))
    speakers = np.array(list("aaaabbbbcccc"))
    rng = np.random.default_rng(0)
    assert sorted(speakers[choose(values, 4, rng, speakers, [0, 1])]) == ["b", "b", "c", "c"]


@pytest.mark.parametrize("choose", labelling.STRATEGIES.values())
def test_choices_are_distinct_reproducible_and_within_the_clips(choose):
    values = np.random.default_rng(0).normal(size=(30, 4))
    for count in (1, 7, 30):
        chosen = choose(values, count, np.random.default_rng(3))
        assert len(set(chosen.tolist())) == count and set(chosen) <= set(range(30))
        assert np.array_equal(chosen, choose(values, count, np.random.default_rng(3)))
    for count in (0, 31):
        with pytest.raises(ValueError, match="from 1 to 30, the number"):
            choose(values, count, np.random.default_rng(0))


@pytest.mark.parametrize("choose", [labelling.k_centre, labelling.k_means])
def test_rare_kinds_of_clips_are_covered(choose):
    values, groups = islands([40, 3, 2])
    assert set(groups[choose(values, 3, np.random.default_rng(0))]) == {0, 1, 2}
    lucky = [
        set(groups[labelling.at_random(values, 3, np.random.default_rng(seed))]) == {0, 1, 2}
        for seed in range(50)
    ]
    assert np.mean(lucky) < 0.2


def test_k_centre_is_within_twice_the_best_by_brute_force():
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=(12, 2))
        best = min(farthest(values, one) for one in combinations(range(12), 4))
        chosen = labelling.k_centre(values, 4, np.random.default_rng(0))
        assert farthest(values, chosen) <= 2 * best
    more = labelling.k_centre(values, 6, np.random.default_rng(0))
    assert np.array_equal(more[:4], chosen)


@pytest.mark.parametrize("choose", labelling.STRATEGIES.values())
def test_speakers_are_taken_equally_often(choose):
    values = np.random.default_rng(0).normal(size=(40, 3))
    speakers = ["a"] * 30 + ["b"] * 8 + ["c"] * 2
    chosen = choose(values, 9, np.random.default_rng(0), speakers)
    counts = pd.Series(speakers)[chosen].value_counts()
    assert counts.to_dict() == {"a": 4, "b": 3, "c": 2}  # c has no more
    without = choose(values, 9, np.random.default_rng(0))
    assert not np.array_equal(without, chosen)


def test_standardised_channels():
    values = np.random.default_rng(0).normal(3, 5, size=(200, 4))
    values[:, 3] = 1.0
    found = labelling.standardise(values)
    assert found[:, :3].mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert found[:, :3].std(axis=0) == pytest.approx(1)
    assert (found[:, 3] == 0).all()
    values[0, 0] = 1e6
    assert labelling.standardise(values).max() == 5


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "my clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for who in "ab":
        for i in range(4):
            tone = np.sin(2 * np.pi * 100 * (i + 1) * np.arange(4000) / 16000) * 0.3
            soundfile.write(folder / f"{who}_{i}.wav", tone + rng.normal(size=4000) * 0.01, 16000)
    return folder


def test_a_folder_of_clips_without_labels(clips, tmp_path):
    out = tmp_path / "label me.csv"
    done = run("--audio", clips, "--count", 4, "--speaker", "1", "--out", out)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert list(table["speaker"].value_counts()) == [2, 2]
    assert table["emotion"].isna().all()
    again = run("--audio", clips, "--count", 4, "--out", out)
    assert again.exit_code == 2 and "is there already" in again.output
    assert len(run("--audio", clips, "--count", 3).output.split()) == 3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--count", 3], "exactly one of --audio DIR and --task NAME"),
        (["--count", 9, "--audio", "CLIPS"], "there are 8 clips without a label, fewer than 9"),
        (["--count", 3, "--audio", "CLIPS", "--strategy", "kmeans"], "Did you mean 'k_means'?"),
        (["--count", 3, "--audio", "CLIPS", "--speaker", "7"], "no field '7'"),
        (["--count", 3, "--audio", "nowhere"], "there is none at nowhere"),
    ],
)
def test_wrong_wishes(clips, arguments, words):
    done = run(*[clips if argument == "CLIPS" else argument for argument in arguments])
    assert done.exit_code == 2 and words in done.output, done.output


@pytest.fixture
def labelled_task(clips, tmp_path):
    """Options that name a task: five of eight clips have a label, one of them a dropped one."""
    table = tmp_path / "t.csv"
    rows = ["a_0.wav,angry", "b_0.wav,bored", "b_2.wav,sad", "a_2.wav,angry", "b_3.wav,sad"]
    table.write_text("\n".join(["file,emotion", *rows]))
    said = ["--language", "ha", "--licence", "CC0", "--consent", "yes", "--one-speaker", "--yes"]
    made = CliRunner().invoke(
        app,
        ["tasks", "new", "mine", "--audio", str(clips), "--table", str(table), "--ignore-rest"]
        + ["--drop", "bored", "--into", str(tmp_path / "tasks"), *said],
    )
    assert made.exit_code == 0, made.output
    return ["--task", "ha_mine", "--tasks", tmp_path / "tasks", "--data", tmp_path]


@pytest.mark.parametrize("strategy", ["k_centre", "k_means"])
def test_of_a_task_the_clips_whose_kind_has_no_label_yet(labelled_task, strategy):
    """Takes 0 to 3 of both speakers are four tones; only the second tone has no label at all."""
    done = run(*labelled_task, "--count", 1, "--strategy", strategy)
    assert done.stdout.strip() in ("a_1.wav", "b_1.wav"), done.output
    assert "4 clips of ha_mine have a label and count as chosen" in done.stderr


def test_of_a_task_all_clips_without_a_label(labelled_task):
    done = run(*labelled_task, "--count", 3)
    assert sorted(done.stdout.split()) == ["a_1.wav", "a_3.wav", "b_1.wav"]
    many = run(*labelled_task, "--count", 4)
    assert "there are 3 clips without a label, fewer than 4" in many.output
