"""Losses of ratings against metrics' formula and audmetric."""

import audmetric
import numpy as np
import pytest
import torch

from metaser import metrics
from metaser.losses import ccc_loss, mse_loss


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (40, 3))
    predicted = 0.6 * true + rng.normal(0, 0.3, true.shape) + 0.1
    return torch.from_numpy(predicted), torch.from_numpy(true)


def test_ccc_loss_is_one_minus_the_ccc_of_audmetric_and_of_metrics(pair):
    predicted, true = pair
    loss = ccc_loss(predicted[:, :1], true[:, :1], epsilon=0.0)
    x, y = true[:, 0].numpy(), predicted[:, 0].numpy()
    assert float(loss) == pytest.approx(1 - audmetric.concordance_cc(x, y), abs=1e-12)
    assert float(loss) == pytest.approx(1 - metrics.ccc(x, y), abs=1e-12)


def test_weights_of_the_ratings_add_up(pair):
    predicted, true = pair
    weights = torch.tensor([0.7, 0.2, 1.0])
    each = [1 - metrics.ccc(true[:, d].numpy(), predicted[:, d].numpy()) for d in range(3)]
    loss = ccc_loss(predicted, true, weights, epsilon=0.0)
    assert float(loss) == pytest.approx(np.dot([0.7, 0.2, 1.0], each), rel=1e-6)


def test_unrated_clips_take_no_part(pair):
    predicted, true = pair
    holes = true.clone()
    holes[:7, 0] = float("nan")
    for loss in (ccc_loss, mse_loss):
        whole = loss(predicted[7:, :1], true[7:, :1])
        assert torch.allclose(loss(predicted[:, :1], holes[:, :1]), whole)


def test_ccc_loss_has_the_slope_of_finite_differences(pair):
    predicted, true = (part[:4, :2].clone() for part in pair)
    true[0, 1] = float("nan")
    assert torch.autograd.gradcheck(lambda x: ccc_loss(x, true), predicted.requires_grad_())


@pytest.mark.parametrize(
    "true, predicted",
    [
        ([[0.3]], [[0.1]]),
        ([[0.5], [0.5], [0.5]], [[0.5], [0.5], [0.5]]),
        ([[0.5], [0.5]], [[0.1], [0.2]]),
        ([[0.1], [0.9]], [[0.4], [0.4]]),
        ([[float("nan")], [float("nan")]], [[0.4], [0.3]]),
    ],
    ids=["one clip", "all the same", "constant truth", "constant prediction", "nothing rated"],
)
def test_loss_and_slope_stay_finite_where_the_ccc_is_undefined(true, predicted):
    predicted = torch.tensor(predicted, requires_grad=True)
    loss = ccc_loss(predicted, torch.tensor(true))
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert predicted.grad.isfinite().all()


def test_a_scaled_prediction_costs_ccc_and_not_correlation(pair):
    """The mechanism that tells CCC from correlation: a wrong spread and a wrong mean are errors."""
    _, true = pair
    assert float(ccc_loss(true, true, epsilon=0.0)) == pytest.approx(0, abs=1e-12)
    assert float(ccc_loss(0.5 * true, true)) > 0.3
    assert float(ccc_loss(true + 1, true)) > 0.3


def test_batches_of_several_tasks_give_one_loss_each(pair):
    predicted, true = pair
    stacked = ccc_loss(torch.stack([predicted, true]), torch.stack([true, true]))
    assert torch.allclose(stacked, torch.stack([ccc_loss(predicted, true), ccc_loss(true, true)]))


def test_other_shapes_are_refused(pair):
    predicted, true = pair
    with pytest.raises(ValueError, match=r"\(40, 1\) and \(40, 3\)"):
        ccc_loss(predicted[:, :1], true)
