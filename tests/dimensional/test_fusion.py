"""Fusion, and that nothing is scored on rows that it was fitted on."""

import numpy as np
import pytest

from metaser import metrics
from metaser.dimensional.fusion import fuse, out_of_fold

SPEAKERS, CLIPS, MODELS = 12, 6, 60


@pytest.fixture
def noise():
    """Predictions of many models and ratings that have nothing to do with them."""
    rng = np.random.default_rng(0)
    rows = SPEAKERS * CLIPS
    groups = np.repeat(np.arange(SPEAKERS), CLIPS)
    return rng.normal(size=(rows, MODELS)), rng.uniform(-1, 1, (rows, 2)), groups


def _fit(inputs, ratings, groups, stages):
    def fit(rows):
        fused = fuse(inputs[rows], ratings[rows], groups[rows], stages, strength=1.0, folds=3)
        return lambda others: fused(inputs[others])

    return fit


@pytest.mark.parametrize("stages", [1, 3])
def test_noise_cannot_be_predicted_out_of_fold(noise, stages):
    inputs, ratings, groups = noise
    found = out_of_fold(_fit(inputs, ratings, groups, stages), groups, folds=4)
    assert max(abs(metrics.ccc(ratings[:, d], found[:, d])) for d in range(2)) < 0.3


def test_scored_on_the_rows_it_was_fitted_on_noise_looks_like_knowledge(noise):
    """The mistake of the published script; if this fails, the tests around it prove nothing."""
    inputs, ratings, groups = noise
    rows = np.arange(len(groups))
    found = _fit(inputs, ratings, groups, 1)(rows)(rows)
    assert min(metrics.ccc(ratings[:, d], found[:, d]) for d in range(2)) > 0.7


def test_a_speaker_who_is_predicted_is_never_fitted(noise):
    groups = noise[2]
    met = []

    def fit(rows):
        def predict(others):
            met.append(set(groups[rows]) & set(groups[others]))
            return np.stack([others, others], axis=1)

        return predict

    found = out_of_fold(fit, groups, folds=5)
    assert met == [set()] * 5
    assert (found[:, 0] == np.arange(len(groups))).all()  # every row in its place


def test_knowing_speakers_does_not_help_where_ratings_belong_to_speakers():
    """Inputs that name the speaker give everything away, unless folds are made of speakers."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(SPEAKERS), CLIPS)
    ratings = rng.uniform(-1, 1, SPEAKERS)[groups, None]
    inputs = np.eye(SPEAKERS)[groups]
    fit = _fit(inputs, ratings, groups, 1)
    apart = out_of_fold(fit, groups, folds=4)
    mixed = out_of_fold(fit, np.arange(len(groups)), folds=4)
    assert metrics.ccc(ratings[:, 0], apart[:, 0]) < 0.2
    assert metrics.ccc(ratings[:, 0], mixed[:, 0]) > 0.7


def test_late_fusion_is_better_than_either_model_where_each_knows_one_half():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(20), 10)
    halves = rng.normal(0, 0.4, (200, 2))
    ratings = halves.sum(axis=1, keepdims=True)
    found = out_of_fold(_fit(halves, ratings, groups, 1), groups, 5)
    alone = max(metrics.ccc(ratings[:, 0], halves[:, d]) for d in range(2))
    assert metrics.ccc(ratings[:, 0], found[:, 0]) > alone + 0.1


def test_the_prediction_of_one_rating_helps_another():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 10)
    ratings = rng.normal(0, 0.4, (200, 1)) * [1, -1] + rng.normal(0, 0.05, (200, 2))
    predictions = np.stack([ratings[:, 0], rng.normal(size=200)], axis=1)  # knows arousal alone
    found = out_of_fold(_fit(predictions, ratings, groups, 1), groups, 5)
    assert metrics.ccc(ratings[:, 1], found[:, 1]) > 0.9


def test_rows_without_a_rating_are_not_fitted(noise):
    inputs, ratings, groups = noise
    inputs = inputs[:, :3]
    holes = ratings.copy()
    holes[::3, 0] = np.nan
    kept = ~np.isnan(holes[:, 0])
    whole = fuse(inputs[kept], ratings[kept], groups[kept])(inputs)
    assert fuse(inputs, holes, groups)(inputs)[:, 0] == pytest.approx(whole[:, 0])


def test_bad_input_is_refused(noise):
    inputs, ratings, groups = noise
    with pytest.raises(ValueError, match="stages must be 1 .* to 5, not 6"):
        fuse(inputs, ratings, groups, stages=6)
    with pytest.raises(ValueError, match="not 1 groups in 72 rows"):
        out_of_fold(lambda rows: None, np.zeros(72), 5)
    with pytest.raises(ValueError, match="known of 0 of 72"):
        fuse(inputs, np.full_like(ratings, np.nan), groups)
