"""Reptile, prototypical networks, ridge heads and MLDG against their written formulas."""

import numpy as np
import pytest
import torch
from builders import draw_batch, small_model
from sklearn.linear_model import Ridge as SklearnRidge
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from metaser.batch import Batch, EpisodeBatch
from metaser.methods.mldg import MLDG
from metaser.methods.protonet import ProtoNet
from metaser.methods.reptile import Reptile
from metaser.methods.ridge import Ridge

CHANNELS = 3


@pytest.fixture(params=[(0, 1, 2, 3), (0, 2, 3)], ids=["all", "lacking"])
def episode(request) -> EpisodeBatch:
    return EpisodeBatch(*(draw_batch(seed, present=request.param) for seed in (0, 1)))


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    scores = model(batch.modalities)
    classes = batch.targets.unique()
    return cross_entropy(scores[:, classes], torch.searchsorted(classes, batch.targets))


def _slopes(loss: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _assert_gradients(method: nn.Module, expected: list[torch.Tensor]) -> None:
    found = [value.grad for value in method.model.parameters()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_one_step_of_reptile_is_the_rate_times_the_joint_gradient(episode):
    method = Reptile(small_model(), inner_steps=1, inner_rate=0.3)
    method.loss(episode).backward()
    expected = _slopes(_loss(method.model, episode.joined()), method.model)
    _assert_gradients(method, [0.3 * slope for slope in expected])


def test_reptile_points_from_where_plain_training_leads(episode):
    method, copy = Reptile(small_model(), inner_steps=4, inner_rate=0.3), small_model()
    for _ in range(4):
        slopes = _slopes(_loss(copy, episode.joined()), copy)
        with torch.no_grad():
            for value, slope in zip(copy.parameters(), slopes):
                value -= 0.3 * slope
    method.loss(episode).backward()
    pairs = zip(method.model.parameters(), copy.parameters())
    _assert_gradients(method, [(start - end).detach() for start, end in pairs])


def test_reptile_is_validated_by_what_it_reaches(episode):
    method, copy = Reptile(small_model(), inner_steps=1, inner_rate=0.3), small_model()
    slopes = _slopes(_loss(copy, episode.support), copy)
    with torch.no_grad():
        for value, slope in zip(copy.parameters(), slopes):
            value -= 0.3 * slope
        found = method.validation_loss(episode)
    torch.testing.assert_close(found, _loss(copy, episode.query).detach())


def test_prototypes_are_class_means_and_scores_negative_squared_distances(episode):
    method = ProtoNet(small_model())
    support, query = (
        method.model.backbone(**side.modalities).detach().numpy()
        for side in (episode.support, episode.query)
    )
    targets = episode.support.targets.numpy()
    scores = method.adapt(episode.support)(episode.query.modalities).numpy()
    for k in range(4):
        if k in targets:
            expected = -((query - support[targets == k].mean(axis=0)) ** 2).mean(axis=1)
            np.testing.assert_allclose(scores[:, k], expected, rtol=1e-7)
        else:
            assert (scores[:, k] == -np.inf).all()
    there = episode.support.classes.numpy()
    logits = scores[:, there] - np.log(np.exp(scores[:, there]).sum(axis=1, keepdims=True))
    place = np.searchsorted(np.flatnonzero(there), episode.query.targets.numpy())
    expected = -logits[np.arange(len(logits)), place].mean()
    assert float(method.loss(episode).detach()) == pytest.approx(expected)


@pytest.mark.parametrize("around_head", [False, True])
def test_the_ridge_head_is_scikit_learn_s(episode, around_head):
    method = Ridge(small_model(), around_head=around_head, strength=0.7).double()
    embed, head = method.model.backbone, method.model.head

    def design(batch):
        hidden = embed(**batch.modalities).detach()
        return np.c_[hidden.numpy() / np.sqrt(hidden.shape[1]), np.ones(len(hidden))]

    def base(batch):
        hidden = embed(**batch.modalities)
        return head(hidden).detach().numpy() if around_head else 0.0

    wanted = one_hot(episode.support.targets, 4).numpy() - base(episode.support)
    strength = float(method.log_strength.exp().detach())
    solver = SklearnRidge(alpha=strength, fit_intercept=False)
    solver.fit(design(episode.support), wanted)
    expected = base(episode.query) + solver.predict(design(episode.query))
    scores = method.adapt(episode.support)(episode.query.modalities).numpy()
    there = episode.support.classes.numpy()
    scale = float(method.log_scale.exp().detach())
    np.testing.assert_allclose(scores[:, there], scale * expected[:, there], rtol=1e-6, atol=1e-8)


def test_mldg_is_the_loss_of_one_domain_and_of_the_other_after_a_step(episode):
    """Written out with the copy's parameters as functions of the original's."""
    for second_order in (True, False):
        method = MLDG(small_model(), inner_rate=0.3, weight=0.5, second_order=second_order)
        method.loss(episode).backward()
        model = small_model()
        own = dict(model.named_parameters())
        here = _loss(model, episode.support)
        slopes = torch.autograd.grad(here, list(own.values()), create_graph=second_order)
        moved = {key: value - 0.3 * s for (key, value), s in zip(own.items(), slopes)}

        def there(modalities, moved=moved, model=model):
            return torch.func.functional_call(model, moved, (modalities,))

        here = _loss(model, episode.support)
        expected = torch.autograd.grad(here + 0.5 * _loss(there, episode.query), list(own.values()))
        _assert_gradients(method, list(expected))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Reptile(small_model(), inner_rate=0.0), "inner_rate must be above 0"),
        (lambda: Reptile(small_model(), inner_steps=-1), "inner_steps must be at least 0"),
        (lambda: Ridge(small_model(), strength=0.0), "strength must be above 0"),
        (lambda: MLDG(small_model(), weight=-1.0), "weight must be at least 0"),
        (lambda: MLDG(small_model(), inner_rate=-0.1), "inner_rate must be above 0"),
    ],
)
def test_strange_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
