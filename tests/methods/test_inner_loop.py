"""The engine against oracles, in double precision."""

import importlib.util

import numpy as np
import pytest
import torch
from builders import draw_batch, small_model
from torch import nn
from torch.func import functional_call

from metaser.backbones import MLP, Recurrent
from metaser.batch import EpisodeBatch, stack
from metaser.losses import cross_entropy
from metaser.methods.inner_loop import gradient_descent, predictor, task_loss
from metaser.methods.maml import MAML
from metaser.methods.mldg import MLDG
from metaser.model import Model

CHANNELS, CLASSES = 3, 4
RATE = float(torch.tensor(0.3).log().double().exp())  # learnt rates begin in single precision
needs_learn2learn = pytest.mark.skipif(
    importlib.util.find_spec("learn2learn") is None,
    reason="needs learn2learn: pip install --no-deps -r requirements-learn2learn.txt",
)


@pytest.fixture
def episode() -> EpisodeBatch:
    return EpisodeBatch(draw_batch(0), draw_batch(1))


@pytest.fixture
def lacking() -> EpisodeBatch:
    return EpisodeBatch(*(draw_batch(seed, clips=9, present=(0, 2, 3)) for seed in (0, 1)))


def _maml(model=None, **arguments) -> MAML:
    return MAML(
        model or small_model(), **{"inner_rate": RATE, "inner_steps": 3, **arguments}
    ).double()


def _gradients(method: MAML, episode: EpisodeBatch) -> dict[str, torch.Tensor]:
    method.zero_grad()
    method.loss(episode).backward()
    return {key: value.grad.clone() for key, value in method.model.named_parameters()}


def _close(found: dict, expected: dict, relative: float) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=relative, atol=relative * scale)


@pytest.mark.parametrize("second_order", [False, True])
def test_without_inner_steps_it_is_the_gradient_of_the_query_loss(episode, second_order):
    method = _maml(inner_steps=0, second_order=second_order)
    model = method.model
    scores = model(episode.query.modalities)
    loss = nn.functional.cross_entropy(scores, episode.query.targets)
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    expected = {key: slope for (key, _), slope in zip(model.named_parameters(), slopes)}
    _close(_gradients(method, episode), expected, 1e-12)


def test_first_order_is_the_query_gradient_at_the_adapted_point(episode):
    method = _maml()
    adapted = small_model()
    for _ in range(3):  # plain gradient descent on a copy
        adapted.zero_grad()
        scores = adapted(episode.support.modalities)
        nn.functional.cross_entropy(scores, episode.support.targets).backward()
        with torch.no_grad():
            for value in adapted.parameters():
                value -= RATE * value.grad
    adapted.zero_grad()
    scores = adapted(episode.query.modalities)
    nn.functional.cross_entropy(scores, episode.query.targets).backward()
    expected = {key: value.grad for key, value in adapted.named_parameters()}
    _close(_gradients(method, episode), expected, 1e-12)


@pytest.mark.parametrize("which", ["episode", "lacking"])
@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
def test_second_order_agrees_with_finite_differences(request, which, kind):
    episode = request.getfixturevalue(which)
    backbone = Recurrent(CHANNELS, 2, 1) if kind == "recurrent" else None
    method = _maml(small_model(backbone), second_order=True, inner_steps=2)
    found = _gradients(method, episode)
    first = _gradients(_maml(small_model(backbone), inner_steps=2), episode)
    start = {key: value.clone() for key, value in method.state_dict().items()}
    step, missed = 1e-5, []
    for seed in range(6):  # random directions: an error in any entry shows
        generator = torch.Generator().manual_seed(seed)
        way = {
            key: torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for key, value in found.items()
        }
        losses = []
        for sign in (1, -1):
            moved = {f"model.{key}": start[f"model.{key}"] + sign * step * way[key] for key in way}
            method.load_state_dict(start | moved)
            losses.append(float(method.loss(episode).detach()))
        slope = (losses[0] - losses[1]) / (2 * step)
        exact, rough = (
            float(sum((g[key] * way[key]).sum() for key in way)) for g in (found, first)
        )
        assert exact == pytest.approx(slope, rel=1e-6, abs=1e-8)
        missed.append(abs(rough - slope))
    assert max(missed) > 1e-3  # the first-order approximation would not pass


def _unrolled_loss(weights: list, episode: EpisodeBatch, rate: float, steps: int):
    """MAML of a network with one hidden layer, its inner gradients derived by hand."""

    def forward(w, b, v, c, x):
        hidden = (x @ w.T + b).relu()
        return hidden, hidden @ v.T + c

    w, b, v, c = weights
    x, y = episode.support.modalities["audio"].values[:, 0], episode.support.targets
    wanted = torch.eye(CLASSES, dtype=torch.float64)[y]
    for _ in range(steps):
        hidden, scores = forward(w, b, v, c, x)
        error = (scores.exp() / scores.exp().sum(dim=1, keepdim=True) - wanted) / len(y)
        back = (error @ v) * (hidden > 0)
        w, b, v, c = (
            w - rate * back.T @ x,
            b - rate * back.sum(dim=0),
            v - rate * error.T @ hidden,
            c - rate * error.sum(dim=0),
        )
    x, y = episode.query.modalities["audio"].values[:, 0], episode.query.targets
    _, scores = forward(w, b, v, c, x)
    chosen = scores[torch.arange(len(y)), y]
    return (scores.exp().sum(dim=1).log() - chosen).mean()


def test_second_order_agrees_with_a_network_unrolled_by_hand(episode):
    method = _maml(second_order=True, inner_steps=4)
    names = [key for key, _ in method.model.named_parameters()]
    weights = [value.detach().clone().requires_grad_() for value in method.model.parameters()]
    loss = _unrolled_loss(weights, episode, RATE, 4)
    torch.testing.assert_close(method.loss(episode), loss, rtol=1e-12, atol=0)
    expected = dict(zip(names, torch.autograd.grad(loss, weights)))
    _close(_gradients(method, episode), expected, 1e-10)


@pytest.mark.parametrize("second_order", [False, True])
def test_equal_learnable_rates_are_maml(episode, second_order):
    plain = _maml(second_order=second_order)
    learnt = _maml(second_order=second_order, rates="element")
    _close(_gradients(learnt, episode), _gradients(plain, episode), 1e-10)
    assert all(value.grad.abs().sum() > 0 for value in learnt.log_rates.values())
    assert all(value.grad is None for value in plain.log_rates.values())


def test_the_slope_of_a_learnable_rate_agrees_with_finite_differences(episode):
    method = _maml(second_order=True, rates="element")
    method.loss(episode).backward()
    with torch.no_grad():
        for value in method.log_rates.values():
            losses = []
            for sign in (1, -1):
                value.view(-1)[0] += sign * 1e-5
                losses.append(float(method.loss(episode)))
                value.view(-1)[0] -= sign * 1e-5
            slope = (losses[0] - losses[1]) / 2e-5
            assert float(value.grad.view(-1)[0]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@needs_learn2learn
@pytest.mark.parametrize("which", ["episode", "lacking"])
@pytest.mark.parametrize("second_order", [False, True])
def test_learn2learn_gives_the_same_gradients(request, which, second_order):
    episode = request.getfixturevalue(which)
    native = _maml(second_order=second_order)
    theirs = _maml(second_order=second_order, back_end="learn2learn")
    torch.testing.assert_close(native.loss(episode), theirs.loss(episode), rtol=1e-12, atol=0)
    _close(_gradients(theirs, episode), _gradients(native, episode), 1e-10)


@needs_learn2learn
def test_learn2learn_leaves_the_model_as_it_is(episode):
    method = _maml(back_end="learn2learn")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    names = [key for key, _ in method.named_parameters()]
    identities = [id(value) for value in method.parameters()]
    method.loss(episode)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert [id(value) for value in method.parameters()] == identities
    assert [key for key, _ in method.named_parameters()] == names


@needs_learn2learn
def test_learn2learn_can_be_validated_without_gradients(episode):
    with torch.no_grad():
        losses = [float(_maml(back_end=kind).loss(episode)) for kind in ("native", "learn2learn")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_learn2learn_refuses_learnable_rates_and_strange_back_ends_are_refused():
    with pytest.raises(ValueError, match="one fixed rate"):
        _maml(back_end="learn2learn", rates="element")
    with pytest.raises(ValueError, match="native.*learn2learn.*not 'higher'"):
        _maml(back_end="higher")


def test_absent_learn2learn_is_told_with_the_remedy(episode, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "learn2learn", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install.*native back end"):
        _maml(back_end="learn2learn").loss(episode)


def test_gradient_descent_descends_and_changes_nothing(episode):
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    rates = {key: torch.tensor(0.3, dtype=torch.float64) for key in parameters}
    losses = []
    with torch.no_grad():  # adapting needs gradients inside, whoever calls
        for steps in (0, 1, 5, 50):
            adapted = gradient_descent(
                lambda own: task_loss(model, own, episode.support), parameters, [rates] * steps
            )
            losses.append(float(task_loss(model, adapted, episode.support)))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


class Watching(MLP):
    """Notes what is forbidden while it runs, and has a recurrent layer if asked."""

    def __init__(self, recurs: bool):
        super().__init__(CHANNELS, (4,))
        self.layer = nn.GRU(1, 1) if recurs else nn.Conv1d(1, 1, 1)
        self.seen = set()

    def forward(self, audio):
        self.seen.add((torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()))
        return super().forward(audio)


@pytest.mark.parametrize("recurs", [True, False])
def test_only_a_model_with_recurrent_layers_does_without_cudnn(recurs, episode):
    """cuDNN's convolutions can be stacked and differentiated twice, fused attention cannot."""
    model = Model(Watching(recurs), CLASSES).double()
    method = MAML(model, inner_steps=1, second_order=True)
    method.loss(episode)
    assert model.backbone.seen == {(not recurs, False), (True, True)}  # the query needs no second
    model.backbone.seen.clear()
    method.loss(stack([episode, episode]))
    assert model.backbone.seen == {(not recurs, False)}
    model.backbone.seen.clear()
    MLDG(model).loss(episode)
    assert model.backbone.seen == {(not recurs, False), (True, True)}


def test_parameters_that_are_not_given_stay(episode):
    model = small_model()
    own = {key: value for key, value in model.named_parameters() if key.startswith("head")}
    rates = {key: torch.tensor(0.3, dtype=torch.float64) for key in own}
    adapted = gradient_descent(
        lambda given: task_loss(model, given, episode.support), own, [rates] * 2
    )
    assert adapted.keys() == own.keys()
    assert all((adapted[key] != own[key]).any() for key in own)


def test_frozen_parameters_do_not_adapt(episode):
    model = small_model()
    model.backbone.requires_grad_(False)
    method = _maml(model)
    assert all(key.startswith("head") for key in method._own())
    method.loss(episode).backward()
    assert all(value.grad is None for value in model.backbone.parameters())


def test_cross_entropy_is_over_the_classes_there():
    scores = torch.tensor([[1.0, 9.0, 2.0, -1.0], [0.0, 9.0, 0.5, 3.0]], dtype=torch.float64)
    targets, classes = torch.tensor([0, 3]), torch.tensor([True, False, True, True])
    kept = scores.numpy()[:, [0, 2, 3]]
    chosen = scores.numpy()[[0, 1], [0, 3]]
    expected = np.mean(np.log(np.exp(kept).sum(axis=1)) - chosen)
    assert float(cross_entropy(scores, targets, classes)) == pytest.approx(expected)
    scores.requires_grad_()
    slopes = torch.autograd.grad(cross_entropy(scores, targets, classes), scores)[0]
    assert (slopes[:, 1] == 0).all() and (slopes[:, [0, 2, 3]] != 0).all()


def test_the_predictor_scores_under_the_adapted_parameters(lacking):
    model = small_model()
    adapted = {key: value + 0.1 for key, value in model.named_parameters()}
    scores = predictor(model, adapted, lacking.support.classes)(lacking.query.modalities)
    expected = functional_call(model, adapted, (lacking.query.modalities,))
    assert torch.equal(scores[:, [0, 2, 3]], expected[:, [0, 2, 3]])
    assert (scores[:, 1] == float("-inf")).all() and not scores.requires_grad
