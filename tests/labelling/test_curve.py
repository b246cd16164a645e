"""Learning curves against power laws whose numbers are known."""

import numpy as np
import pytest
from typer.testing import CliRunner

from metaser.cli import app
from metaser.labelling import curve as learning_curve
from metaser.labelling.curve import Curve

SHOTS = (1, 2, 5, 10, 20)


def run(*arguments):
    return CliRunner().invoke(app, ["curve", *map(str, arguments)])


def scores(curve, spread=0.05, episodes=200, seed=0, shots=SHOTS):
    rng = np.random.default_rng(seed)
    return {k: list(curve.at(float(k)) + rng.normal(size=episodes) * spread) for k in shots}


@pytest.mark.parametrize("truth", [Curve(0.8, 0.4, 0.5), Curve(0.7, 0.3, 1.0)])
def test_the_fit_finds_the_law_that_made_the_scores(truth):
    exact = learning_curve.fit({k: [truth.at(float(k))] * 2 for k in SHOTS})
    assert (exact.limit, exact.loss, exact.rate) == pytest.approx(
        (truth.limit, truth.loss, truth.rate), abs=1e-3
    )


def test_three_points_are_fitted_with_the_square_root():
    truth = Curve(0.8, 0.4, 0.5)
    found = learning_curve.fit({k: [truth.at(float(k))] * 2 for k in (1, 2, 5)})
    assert (found.limit, found.loss, found.rate) == pytest.approx((0.8, 0.4, 0.5), abs=1e-4)
    with pytest.raises(ValueError, match="three points, but only K = 1, 2"):
        learning_curve.fit({1: [0.3, 0.4], 2: [0.4, 0.5]})


def test_clips_needed_invert_the_curve():
    curve = Curve(0.8, 0.4, 0.5)
    assert curve.needed(0.7) == pytest.approx(16)  # 0.8 - 0.4 / 4
    assert curve.at(curve.needed(0.65)) == pytest.approx(0.65)
    assert curve.needed(0.3) == 1
    assert np.isinf(curve.needed(0.8)) and np.isinf(curve.needed(0.9))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, hits = Curve(0.8, 0.4, 0.5), 0
    for seed in range(10):
        made = scores(truth, seed=seed, episodes=100)
        resampled = learning_curve.resample(made, np.random.default_rng(seed), 50)
        found = learning_curve.need(learning_curve.fit(made), resampled, 0.7)
        hits += found.low <= 16 <= found.high
    assert hits >= 7  # of 10; fewer has a chance of 0.1 % if the interval covers 95 %


def _told(truth, uar):
    made = scores(truth)
    curve = learning_curve.fit(made)
    resampled = learning_curve.resample(made, np.random.default_rng(0), 60)
    return learning_curve.tell(learning_curve.need(curve, resampled, uar), curve, uar, SHOTS)


def test_what_is_told_says_whether_it_was_measured():
    truth = Curve(0.8, 0.4, 0.5)
    assert "extrapolation" not in _told(truth, 0.6)
    assert "needs about 5 clips" in _told(truth, 0.6)
    assert "beyond what was measured (up to 20): an extrapolation" in _told(truth, 0.75)
    assert "cannot be reached: it levels off at 79%" in _told(truth, 0.95)
    with pytest.raises(ValueError, match="must be between 0 and 1, such as 0.7, not 70"):
        _told(truth, 70)


def test_scores_rise_with_clips_where_classes_differ_and_stay_at_chance_where_not(make_task, plant):
    task = make_task(speakers=8, clips=6)
    shots = learning_curve.possible_shots(task, 3, "disjoint")
    assert shots == [1, 2, 5, 10, 20]
    guess = learning_curve.logistic_regression(plant(task, strength=0.7))
    told = learning_curve.measure(task, guess, shots[:4], queries=3, episodes=20)
    means = [np.mean(values) for values in told.values()]
    assert means[0] > 0.3 and means[-1] > means[0] + 0.1
    guess = learning_curve.logistic_regression(plant(task, strength=0.0))
    nothing = learning_curve.measure(task, guess, [5], queries=3, episodes=40)
    assert np.mean(nothing[5]) == pytest.approx(0.25, abs=0.06)


def test_no_speaker_is_on_both_sides_unless_asked(make_task):
    with pytest.raises(ValueError, match="one speaker"):
        learning_curve.possible_shots(make_task(speakers=1), 1, "disjoint")
    assert learning_curve.possible_shots(make_task(speakers=1), 1, "any") == [1, 2]


def test_the_figure_is_written_whole(tmp_path):
    truth = Curve(0.8, 0.4, 0.5)
    made = scores(truth)
    resampled = learning_curve.resample(made, np.random.default_rng(0), 10)
    for name, start in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml")):
        learning_curve.draw(
            tmp_path / name, made, truth, resampled=resampled, title="x", chance=0.25, wanted=0.7
        )
        assert (tmp_path / name).read_bytes().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.svg"]


def test_wrong_wishes_are_told_before_anything_is_heard():
    assert "--want must be a UAR between 0 and 1, not 70" in run("--task", "x", "--want", 70).output
    assert "not 'a.pdf'" in run("--task", "x", "--figure", "a.pdf").output
    assert "there is no task" in run("--task", "it_emovoo").output


def test_the_command_on_made_up_speech(spoken, tmp_path):
    where = ["--data", spoken / "audio", "--tasks", spoken / "tasks", "--cache", tmp_path]
    arguments = ["--task", "it_synthetic", "--episodes", 20, "--want", 0.6, *where]
    done = run(*arguments, "--figure", tmp_path / "f.svg", "--queries", 1)
    assert done.exit_code == 0, done.output
    assert "UAR 60%" in done.output and "fit: UAR(K)" in done.output
    assert "no speaker is both learnt from and tested on" in done.output
    assert (tmp_path / "f.svg").is_file()
    wrong = run(*arguments, "--classes", "angy,sad")
    assert wrong.exit_code == 2 and "Did you mean 'angry'?" in wrong.output


def test_a_model_is_scored_on_the_very_draws_of_logistic_regression(make_task, plant):
    """A model that is logistic regression in disguise gets the same scores, draw by draw."""
    task = make_task(speakers=6, clips=6)
    features = plant(task, strength=0.5)
    drawn = []
    inside = learning_curve.logistic_regression(features)

    def disguised(episode):
        drawn.append((tuple(episode.support), tuple(episode.query)))
        return inside(episode)

    classes = ["sad", "neutral", "happy", "angry"]
    draws = {"queries": 2, "episodes": 10, "seed": 3, "classes": classes}
    first, second = (learning_curve.measure(task, disguised, [1, 5], **draws) for _ in range(2))
    assert first == second and drawn[:20] == drawn[20:] and len(set(drawn)) == 20
