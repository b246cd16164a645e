"""Intervals and tests against scipy, written formulas, identities and simulation."""

import time
import warnings

import numpy as np
import pytest
import scipy.stats

from metaser import stats


def nested(rng, targets=2, seeds=5, episodes=40, spread=0.03, noise=0.1):
    """Scores (targets, seeds, episodes) whose seeds differ by `spread`, shared by all targets."""
    shift = rng.normal(0, spread, (1, seeds, 1))
    return 0.5 + shift + rng.normal(0, noise, (targets, seeds, episodes))


def naive_means(scores, resamples, rng):
    """The nested bootstrap by its definition, one draw after another."""
    means = []
    for _ in range(resamples):
        seeds = rng.choice(len(scores[0]), len(scores[0]))
        total = [
            np.mean([rng.choice(target[seed], len(target[seed])).mean() for seed in seeds])
            for target in scores
        ]
        means.append(np.mean(total))
    return np.array(means)


def test_interval_of_one_seed_is_the_plain_percentile_bootstrap():
    scores = np.random.default_rng(0).gamma(2, size=60)
    found = stats.interval(scores, resamples=20_000)
    oracle = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(scores.mean())
    assert (found.seeds, found.episodes) == (1, 60)
    np.testing.assert_allclose([found.low, found.high], oracle, atol=0.02)


def test_interval_resamples_seeds_jointly_and_episodes_within():
    scores = nested(np.random.default_rng(3), targets=3, seeds=4, episodes=12)
    found = stats.interval(scores, resamples=20_000)
    oracle = np.quantile(naive_means(scores, 4000, np.random.default_rng(1)), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], oracle, atol=0.003)
    assert found.mean == pytest.approx(scores.mean())
    assert (found.seeds, found.episodes) == (4, 144)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike, unlike = nested(rng, spread=0), nested(rng, spread=0.1)
    widths = [i.high - i.low for i in (stats.interval(alike), stats.interval(unlike))]
    pooled = stats.interval(unlike.reshape(1, -1))
    assert widths[1] > 2 * widths[0]
    assert widths[1] > 2 * (pooled.high - pooled.low)


def test_ragged_seeds_weigh_the_same():
    scores = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0]]
    found = stats.interval(scores)
    assert (found.mean, found.seeds, found.episodes) == (0.5, 2, 6)
    assert (found.low, found.high) == (0, 1)


def test_many_intervals_equal_single_ones_and_repeat():
    rng = np.random.default_rng(0)
    scores = {"a": nested(rng), "b": nested(rng), "one": nested(rng)[0]}
    many = stats.intervals(scores)
    assert list(many) == ["a", "b", "one"]
    for key in ("a", "b"):
        single = stats.interval(scores[key])
        assert (many[key].low, many[key].high) == pytest.approx((single.low, single.high))
    assert stats.intervals(scores) == many
    other = stats.interval(scores["a"], rng=np.random.default_rng(7))
    assert other != many["a"] and other.mean == many["a"].mean


def test_one_score_has_no_interval():
    for scores in ([0.4], [[0.4]], [[[0.4]], [[0.6]]]):
        found = stats.interval(scores)
        assert np.isnan(found.low) and np.isnan(found.high) and found.seeds == 1
    assert stats.interval([[0.4], [0.6]]).low == pytest.approx(0.4)


def test_nan_is_not_left_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = stats.interval([[0.5, np.nan], [0.4, 0.6]])
        test = stats.paired_test([[0.5, np.nan], [0.4, 0.6]], [[0.5, 0.2], [0.4, 0.5]])
    assert np.isnan([found.mean, found.low, found.high]).all()
    assert np.isnan([test.difference, test.low, test.p, test.effect]).all()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 1\] seeds"):
        stats.interval([[[1, 2], [3, 4]], [[1, 2]]])
    with pytest.raises(ValueError, match="no scores"):
        stats.interval([])
    with pytest.raises(ValueError, match="no scores"):
        stats.interval([[1.0], []])
    with pytest.raises(ValueError, match="not in 0 levels"):
        stats.interval(0.5)
    with pytest.raises(ValueError, match="not in 4 levels"):
        stats.interval(np.zeros((1, 1, 1, 2)))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, not 95"):
        stats.interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        stats.interval([1.0, 2.0], resamples=0)
    with pytest.raises(ValueError, match="same episodes"):
        stats.paired_test([[1.0, 2.0]], [[1.0, 2.0, 3.0]])


def test_equal_methods_differ_by_nothing():
    scores = nested(np.random.default_rng(0))
    found = stats.paired_test(scores, scores)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert np.isnan(found.effect)


def test_swapping_the_methods_mirrors_the_result():
    rng = np.random.default_rng(0)
    a, b = nested(rng), nested(rng) - 0.02
    one, two = stats.paired_test(a, b), stats.paired_test(b, a)
    assert one.difference == pytest.approx(-two.difference)
    assert one.effect == pytest.approx(-two.effect)
    assert one.p_seeds == pytest.approx(two.p_seeds)
    assert one.p_bootstrap == pytest.approx(two.p_bootstrap)
    assert one.low == pytest.approx(-two.high, abs=2e-3)


def test_one_episode_a_seed_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.05, 0.1, (6, 1)), rng.normal(0, 0.1, (6, 1))
    found = stats.paired_test(a, b)
    oracle = scipy.stats.ttest_rel(a[:, 0], b[:, 0])
    assert found.p_seeds == pytest.approx(oracle.pvalue)
    assert found.p == max(found.p_seeds, found.p_bootstrap)
    low, high = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    difference = (a - b)[:, 0]
    assert found.effect == pytest.approx(difference.mean() / difference.std(ddof=1))


def test_seed_t_is_taken_over_the_means_of_seeds_across_targets():
    rng = np.random.default_rng(2)
    a, b = nested(rng, targets=3), nested(rng, targets=3)
    oracle = scipy.stats.ttest_1samp((a - b).mean(axis=(0, 2)), 0)
    assert stats.paired_test(a, b).p_seeds == pytest.approx(oracle.pvalue)


def test_bootstrap_p_approaches_the_t_test_with_many_episodes_of_one_seed():
    rng = np.random.default_rng(0)
    a = rng.normal(0.5, 0.1, 400)
    for gain in (0.0, 0.008, 0.012):
        b = a - gain + rng.normal(0, 0.1, 400)
        found = stats.paired_test(a, b, resamples=20_000)
        assert np.isnan(found.p_seeds) and found.p == found.p_bootstrap and found.seeds == 1
        assert found.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.015)


def test_a_clear_difference_is_found_and_its_size_is_right():
    rng = np.random.default_rng(0)
    shared = nested(rng, seeds=5, episodes=100)
    noise = rng.normal(0, 0.1, shared.shape)
    found = stats.paired_test(shared + 0.05 + noise, shared)
    assert found.p < 0.01 and found.low < 0.05 < found.high
    assert found.effect == pytest.approx(0.5, abs=0.1)
    assert (found.seeds, found.episodes) == (5, 1000)


def test_constant_difference_reaches_the_smallest_p():
    scores = nested(np.random.default_rng(0))
    found = stats.paired_test(scores + 0.01, scores, resamples=999)
    assert found.p == pytest.approx(1 / 1000)
    assert found.low == pytest.approx(0.01) and np.isnan(found.effect)


def test_true_nulls_are_rejected_at_most_as_often_as_promised():
    """With few seeds that differ the bootstrap alone fails; the reported p and interval do not."""
    rng = np.random.default_rng(0)
    simulated = {}
    for index in range(600):
        seeds = rng.normal(0, 0.3, (4, 1))
        simulated[index] = (seeds + rng.normal(0, 1, (4, 50)), np.zeros((4, 50)))
    found = stats.paired_tests(simulated, resamples=500).values()
    error = 3 * np.sqrt(0.05 * 0.95 / len(simulated))
    assert np.mean([test.p <= 0.05 for test in found]) < 0.05 + error
    assert np.mean([test.low <= 0 <= test.high for test in found]) > 0.95 - error
    assert np.mean([test.p_bootstrap <= 0.05 for test in found]) > 0.05 + error


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 0.95, 1.0), (0.1, 0.92, 0.99)])
def test_intervals_cover_the_truth_as_documented(spread, least, most):
    rng = np.random.default_rng(1)
    simulated = {
        index: rng.normal(0, spread, (5, 1)) + rng.normal(0, 1, (5, 100)) for index in range(500)
    }
    found = stats.intervals(simulated, resamples=1000).values()
    assert least <= np.mean([value.low <= 0 <= value.high for value in found]) <= most


def test_holm_against_the_written_formula():
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 8)) ** 3
        ordered = sorted(range(len(p)), key=lambda i: p[i])
        for rank, index in enumerate(ordered):
            oracle = max((len(p) - j) * p[ordered[j]] for j in range(rank + 1))
            assert stats.holm(p)[index] == pytest.approx(min(oracle, 1))


def test_holm_keeps_nan_out_of_the_family():
    np.testing.assert_allclose(stats.holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert stats.holm([]).size == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.holm([1.2])


def test_ten_thousand_resamples_are_quick():
    scores = nested(np.random.default_rng(0), targets=2, seeds=5, episodes=100)
    took = []
    for _ in range(3):
        start = time.process_time()  # whatever else the machine does
        stats.interval(scores, resamples=10_000)
        took.append(time.process_time() - start)
    assert min(took) < 0.6
