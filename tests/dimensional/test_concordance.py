"""CCC intervals from moments against metrics and a bootstrap written out."""

import numpy as np
import pytest

from metaser import metrics
from metaser.dimensional.concordance import ccc_of_moments, concordances, moments


def _clips(rng, speakers=8, clips=12, noise=0.4, truth=None):
    true = rng.uniform(-1, 1, speakers * clips) if truth is None else truth
    predicted = (
        true + rng.normal(0, noise, true.size) + np.repeat(rng.normal(0, 0.1, speakers), clips)
    )
    return true, predicted, np.repeat(np.arange(speakers), clips)


def _sums(true, predicted, who):
    return np.array(list(moments(true, predicted, who).values()))


def test_added_moments_give_the_ccc_of_all_clips():
    true, predicted, who = _clips(np.random.default_rng(0))
    sums = _sums(true, predicted, who).sum(axis=0)
    assert float(ccc_of_moments(sums)) == pytest.approx(metrics.ccc(true, predicted), abs=1e-12)


def test_unrated_clips_are_left_out_and_counted_so():
    true, predicted, who = _clips(np.random.default_rng(1))
    true[::5] = np.nan
    known = ~np.isnan(true)
    sums = _sums(true, predicted, who).sum(axis=0)
    assert sums[0] == known.sum()
    assert float(ccc_of_moments(sums)) == pytest.approx(
        metrics.ccc(true[known], predicted[known]), abs=1e-12
    )


def test_the_interval_is_that_of_drawing_whole_speakers_again():
    rng = np.random.default_rng(2)
    true, predicted, who = _clips(rng)
    found = concordances({"a": [_sums(true, predicted, who)[None]]})[0]["a"]
    drawn = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(who == s) for s in rng.integers(8, size=8)])
        drawn.append(metrics.ccc(true[rows], predicted[rows]))
    assert found.value == pytest.approx(metrics.ccc(true, predicted), abs=1e-12)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.015)
    assert (found.seeds, found.speakers, found.clips) == (1, 8, 96)


def test_ratings_targets_and_seeds_are_averaged():
    rng = np.random.default_rng(3)
    parts = [[[_clips(rng) for _ in range(2)] for _ in range(2)] for _ in range(2)]
    scores = [np.array([[_sums(*clips) for clips in seeds] for seeds in own]) for own in parts]
    expected = np.mean([metrics.ccc(*c[:2]) for own in parts for seeds in own for c in seeds])
    assert concordances({"a": scores})[0]["a"].value == pytest.approx(expected, abs=1e-12)


def test_a_clear_difference_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(4)
    true, good, who = _clips(rng, noise=0.2)
    other = true + rng.permutation(good - true)
    bad = true + rng.normal(0, 1, true.size)
    scores = {
        name: [_sums(true, predicted, who)[None]]
        for name, predicted in [("good", good), ("other", other), ("bad", bad)]
    }
    pairs = concordances(scores, [("good", "bad"), ("good", "other"), ("good", "good")])[1]
    assert pairs["good", "bad"].p < 0.01 and pairs["good", "bad"].low > 0
    assert pairs["good", "other"].p > 0.05
    assert pairs["good", "good"].p == 1 and pairs["good", "good"].value == 0


def test_a_difference_that_one_seed_makes_is_not_clear():
    """Three trainings, of which one is lucky: speakers agree, seeds do not."""
    rng = np.random.default_rng(6)
    true, base, who = _clips(rng, speakers=30, noise=0.4)
    lucky = true + 0.3 * (base - true)
    a = np.stack([_sums(true, predicted, who) for predicted in (base, base + 0.001, lucky)])
    b = np.stack([_sums(true, base, who)] * 3)
    found = concordances({"a": [a], "b": [b]}, [("a", "b")])[1]["a", "b"]
    assert found.p > 0.3 and found.low < 0 < found.value


def test_coverage_of_the_interval_is_near_its_name():
    rng = np.random.default_rng(5)
    population = _clips(rng, speakers=4000)
    value, hits = metrics.ccc(*population[:2]), 0
    for _ in range(150):
        clips = _clips(rng, speakers=24)
        found = concordances({"a": [_sums(*clips)[None]]}, resamples=300)[0]["a"]
        hits += found.low <= value <= found.high
    assert 0.85 <= hits / 150 <= 0.99


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match="predicted ratings must be finite, not nan as in 1 of 2 clips"
    ):
        moments([0, 1], [0, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match=r"\(2,\), \(1,\) and \(2,\)"):
        moments([0, 1], [0], ["a", "b"])
    one, two = np.ones((1, 3, 6)), np.ones((1, 4, 6))
    with pytest.raises(ValueError, match="same targets, seeds and speakers"):
        concordances({"a": [one], "b": [two]})
