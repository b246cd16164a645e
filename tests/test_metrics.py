"""Metrics against scikit-learn, audmetric and the written formulas."""

import warnings

import audmetric
import numpy as np
import pytest
import sklearn.metrics

from metaser import metrics

CLASS_SCORES = [metrics.uar, metrics.accuracy, metrics.macro_f1, metrics.weighted_f1]
RATING_SCORES = [metrics.ccc, metrics.pcc, metrics.rmse]
NAMES = np.array(["angry", "happy", "neutral", "sad", "fearful"])


def draws(number=200):
    """Random label pairs: 2 to 5 classes, some absent from one side, as indices or as names."""
    rng = np.random.default_rng(0)
    for index in range(number):
        classes, size = rng.integers(2, 6), rng.integers(1, 40)
        true, predicted = rng.integers(classes, size=(2, size))
        yield (NAMES[true], NAMES[predicted]) if index % 2 else (true, predicted)


def naive(true, predicted):
    """The four class scores by loops over the definitions."""
    recalls, f1, weights = [], [], []
    for label in sorted({*true, *predicted}):
        hits = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        support, claimed = sum(t == label for t in true), sum(p == label for p in predicted)
        if support:
            recalls.append(hits / support)
        precision = hits / claimed if claimed else 0
        recall = hits / support if support else 0
        f1.append(2 * precision * recall / (precision + recall) if hits else 0)
        weights.append(support)
    hits = sum(t == p for t, p in zip(true, predicted, strict=True))
    weighted = sum(w * f for w, f in zip(weights, f1, strict=True)) / sum(weights)
    return sum(recalls) / len(recalls), hits / len(true), sum(f1) / len(f1), weighted


def test_class_scores_against_definitions_and_scikit_learn():
    for true, predicted in draws():
        found = [score(true, predicted) for score in CLASS_SCORES]
        np.testing.assert_allclose(found, naive(true.tolist(), predicted.tolist()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = [
                sklearn.metrics.balanced_accuracy_score(true, predicted),
                sklearn.metrics.accuracy_score(true, predicted),
                sklearn.metrics.f1_score(true, predicted, average="macro", zero_division=0),
                sklearn.metrics.f1_score(true, predicted, average="weighted", zero_division=0),
            ]
        np.testing.assert_allclose(found, oracle)
        assert all(0 <= value <= 1 for value in found)


def test_class_scores_against_audmetric():
    for true, predicted in draws(50):
        occurring = sorted(set(true.tolist()))
        kept = np.isin(predicted, occurring)
        if kept.all():
            oracle = audmetric.unweighted_average_recall(true, predicted, occurring)
            np.testing.assert_allclose(metrics.uar(true, predicted), oracle)
            oracle = audmetric.unweighted_average_fscore(true, predicted, occurring)
            np.testing.assert_allclose(metrics.macro_f1(true, predicted), oracle)
        np.testing.assert_allclose(
            metrics.accuracy(true, predicted), audmetric.accuracy(true, predicted)
        )


def test_uar_ignores_classes_that_are_only_predicted():
    assert metrics.uar([0, 0, 1, 1], [0, 2, 1, 1]) == pytest.approx(0.75)
    assert metrics.macro_f1([0, 0, 1, 1], [0, 2, 1, 1]) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_uar_weighs_classes_not_samples():
    assert metrics.uar([0] * 99 + [1], [0] * 100) == 0.5
    assert metrics.accuracy([0] * 99 + [1], [0] * 100) == 0.99


def test_confusion_counts_rows_true_columns_predicted():
    found = metrics.confusion(["b", "b", "a"], ["a", "b", "a"], ["b", "a", "c"])
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    for true, predicted in draws(50):
        classes = np.random.default_rng(1).permutation(np.unique(np.append(true, predicted)))
        oracle = sklearn.metrics.confusion_matrix(true, predicted, labels=classes)
        np.testing.assert_array_equal(metrics.confusion(true, predicted, classes), oracle)


def test_confusion_refuses_unknown_labels():
    with pytest.raises(ValueError, match=r"must be one of the classes \['sad'\], not \['bored'\]"):
        metrics.confusion(["bored"], ["sad"], ["sad"])
    with pytest.raises(ValueError, match="distinct"):
        metrics.confusion([0], [0], [0, 0])
    assert metrics.confusion([], [], [0, 1]).sum() == 0


def test_rating_scores_against_formulas_and_audmetric():
    rng = np.random.default_rng(0)
    for _ in range(100):
        true = rng.normal(rng.normal(), rng.gamma(1), rng.integers(2, 40))
        predicted = rng.normal() * true + rng.normal(rng.normal(), rng.gamma(1), true.size)
        x, y, n = true.tolist(), predicted.tolist(), true.size
        mean_x, mean_y = sum(x) / n, sum(y) / n
        var_x, var_y = sum((v - mean_x) ** 2 for v in x) / n, sum((v - mean_y) ** 2 for v in y) / n
        cov = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / n
        ccc = 2 * cov / (var_x + var_y + (mean_x - mean_y) ** 2)
        np.testing.assert_allclose(metrics.ccc(true, predicted), ccc, atol=1e-12)
        np.testing.assert_allclose(metrics.ccc(x, y), audmetric.concordance_cc(x, y), atol=1e-12)
        np.testing.assert_allclose(metrics.pcc(x, y), cov / (var_x * var_y) ** 0.5, atol=1e-12)
        np.testing.assert_allclose(metrics.pcc(x, y), np.corrcoef(x, y)[0, 1], atol=1e-12)
        oracle = sklearn.metrics.root_mean_squared_error(true, predicted)
        np.testing.assert_allclose(metrics.rmse(true, predicted), oracle)
        assert -1 <= metrics.ccc(x, y) <= 1 and -1 <= metrics.pcc(x, y) <= 1


def test_ccc_is_never_above_pcc_and_feels_a_shift():
    x = np.linspace(-1, 1, 20)
    assert metrics.ccc(x, x) == pytest.approx(1)
    assert metrics.pcc(x, x + 1) == pytest.approx(1)
    assert metrics.ccc(x, x + 1) < 0.6
    assert metrics.ccc(x, -x) == pytest.approx(-1)


@pytest.mark.parametrize("score", [*CLASS_SCORES, *RATING_SCORES])
def test_nothing_to_score_is_nan_without_a_warning(score):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(score([], []))


def test_undefined_correlation_is_nan():
    assert np.isnan(metrics.pcc([0.1, 0.1, 0.1], [1, 2, 3]))
    assert np.isnan(metrics.ccc([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]))
    assert metrics.ccc([0.1, 0.1, 0.1], [1, 2, 3]) == pytest.approx(0)
    assert np.isnan(metrics.pcc([1], [1])) and np.isnan(metrics.ccc([1], [1]))
    assert all(np.isnan(score([1, 2, np.nan], [1, 2, 3])) for score in RATING_SCORES)


@pytest.mark.parametrize("score", [*CLASS_SCORES, *RATING_SCORES])
def test_unequal_shapes_are_refused(score):
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        score([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="scores instead of classes"):
        score([0, 1], [[0.1, 0.9], [0.4, 0.6]])


def test_class_scores_refuse_what_is_no_label():
    with pytest.raises(
        ValueError, match=r"predicted must hold class labels, not 0\.3.*probabilities"
    ):
        metrics.uar([0, 1], [0.3, 1.0])
    with pytest.raises(ValueError, match="both as indices or both as names"):
        metrics.uar([0, 1], ["a", "b"])
