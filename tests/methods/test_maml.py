"""MAML's relatives against identities and networks written out by hand, in double precision."""

import pytest
import torch
from builders import draw_batch
from torch import nn
from torch.nn.functional import cross_entropy

from metaser.backbones import MLP
from metaser.batch import EpisodeBatch
from metaser.methods import METHODS
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.meta_batch import MetaBatch

CHANNELS, CLASSES = 3, 4


@pytest.fixture
def episode() -> EpisodeBatch:
    return EpisodeBatch(draw_batch(0), draw_batch(1))


def _method(name: str, **arguments) -> MAML:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        arguments = {"inner_rate": 0.3, **arguments}
        method = METHODS[name](model=Model(MLP(CHANNELS, (5,)), CLASSES), **arguments).double()
    with torch.no_grad():  # the logarithm was taken in single precision
        for value in method.log_rates.values():
            value.fill_(torch.tensor(0.3, dtype=torch.float64).log())
    return method


def _gradients(method: MAML, episode: EpisodeBatch) -> dict[str, torch.Tensor]:
    method.zero_grad()
    method.loss(episode).backward()
    return {key: v.grad.clone() for key, v in method.model.named_parameters() if v.grad is not None}


def _close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and found
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-13)


def _unrolled(method: MAML, episode: EpisodeBatch, adapts, steps=5, weights=None) -> dict:
    """Gradients of MAML that changes the parameters named in ``adapts``, on a two-layer network."""
    start = {k: v.detach().clone().requires_grad_() for k, v in method.model.named_parameters()}
    names = ["backbone.layers.0.0.weight", "backbone.layers.0.0.bias", "head.weight", "head.bias"]
    assert list(start) == names

    def loss(own, batch):
        first, offset, second, bias = (own[name] for name in names)
        hidden = torch.relu(batch.modalities["audio"].values[:, 0] @ first.T + offset)
        return cross_entropy(hidden @ second.T + bias, batch.targets)

    weights = weights or [0] * (steps - 1) + [1]
    own, total = dict(start), 0
    for weight in weights:
        slopes = torch.autograd.grad(
            loss(own, episode.support), [own[name] for name in adapts], create_graph=True
        )
        own |= {name: own[name] - 0.3 * slope for name, slope in zip(adapts, slopes)}
        total = total + weight * loss(own, episode.query)
    return dict(zip(names, torch.autograd.grad(total, list(start.values()))))


NAMES = ["backbone.layers.0.0.weight", "backbone.layers.0.0.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize(
    "name, adapts", [("maml", NAMES), ("anil", NAMES[2:]), ("boil", NAMES[:2])]
)
def test_each_relative_adapts_its_part(episode, name, adapts):
    method = _method(name)
    _close(_gradients(method, episode), _unrolled(method, episode, adapts))


def test_equal_rates_of_elements_and_of_steps_are_maml(episode):
    expected = _gradients(_method("maml"), episode)
    _close(_gradients(_method("meta_sgd"), episode), expected)
    _close(_gradients(_method("maml_plus_plus").eval(), episode), expected)


def test_a_rate_of_a_step_is_that_step_s(episode):
    """Two steps, of which one has a rate of (nearly) nothing, are one step."""
    expected = _gradients(_method("maml", inner_steps=1), episode)
    for idle in range(2):
        method = _method("maml_plus_plus", inner_steps=2).eval()
        with torch.no_grad():
            for value in method.log_rates.values():
                value[idle] = -700
        _close(_gradients(method, episode), expected)


def test_steps_beyond_the_trained_ones_take_the_last_rate():
    method = _method("maml_plus_plus", inner_steps=2)
    with torch.no_grad():
        for value in method.log_rates.values():
            value.copy_(torch.tensor([0.5, 0.25]).log())
    rates = [float(own["head.bias"].detach()) for own in method._rates(4, {})]
    assert rates == pytest.approx([0.5, 0.25, 0.25, 0.25])


def test_the_query_losses_of_all_steps_count_less_and_less(episode):
    method = _method("maml_plus_plus", first_order_share=0.0, multi_step_share=0.5).train()
    for progress, weights in [
        (0.0, [0.2] * 5),
        (0.25, [0.1] * 4 + [0.6]),
        (0.5, [0, 0, 0, 0, 1]),
        (0.9, [0, 0, 0, 0, 1]),
    ]:
        method.progress = progress
        _close(_gradients(method, episode), _unrolled(method, episode, NAMES, weights=weights))


def test_second_derivatives_set_in_after_their_share(episode):
    method = _method("maml_plus_plus", first_order_share=0.5, multi_step_share=0.0).train()
    for progress, name in [(0.0, "fomaml"), (0.49, "fomaml"), (0.5, "maml"), (1.0, "maml")]:
        method.progress = progress
        _close(_gradients(method, episode), _gradients(_method(name), episode))


def test_prototypes_without_inner_steps_are_prototypical_networks(episode):
    """Linear in the embedding, 2 c x - c c differs from the squared distance by x x alone."""
    method = _method("proto_maml", inner_steps=0)
    hidden = [method.model.backbone(**side.modalities) for side in (episode.support, episode.query)]
    centres = torch.stack([hidden[0][episode.support.targets == k].mean(dim=0) for k in range(4)])
    distance = (hidden[1][:, None] - centres).square().sum(dim=-1)
    expected = cross_entropy(-distance, episode.query.targets)
    torch.testing.assert_close(method.loss(episode), expected, rtol=1e-12, atol=0)


def test_the_first_step_from_prototypes_does_not_see_how_they_were_made(episode):
    method = _method("proto_maml", inner_steps=1, second_order=False)
    backbone = method.model.backbone
    with torch.no_grad():
        hidden = backbone(**episode.support.modalities)
        centres = torch.stack([hidden[episode.support.targets == k].mean(dim=0) for k in range(4)])
    head = nn.Linear(5, 4).double()
    head.load_state_dict({"weight": 2 * centres, "bias": -centres.square().sum(dim=1)})
    whole = nn.Sequential(backbone.layers, head)

    def loss(batch):
        return cross_entropy(whole(batch.modalities["audio"].values[:, 0]), batch.targets)

    slopes = torch.autograd.grad(loss(episode.support), list(whole.parameters()))
    with torch.no_grad():
        for value, slope in zip(whole.parameters(), slopes):
            value -= 0.3 * slope
    expected = float(loss(episode.query).detach())
    with torch.no_grad():
        for value, slope in zip(whole.parameters(), slopes):
            value += 0.3 * slope
    assert float(method.loss(episode).detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["maml", "meta_sgd", "maml_plus_plus", "anil", "boil"])
def test_zero_inner_steps_are_the_query_loss_of_the_initialisation(episode, name):
    method = _method(name, inner_steps=0)
    scores = method.model(episode.query.modalities)
    expected = cross_entropy(scores, episode.query.targets)
    torch.testing.assert_close(method.loss(episode), expected, rtol=1e-12, atol=0)


def test_unused_and_frozen_parameters_need_no_flags(episode):
    method = _method("maml")
    method.model.spare = nn.Linear(2, 2).double()
    method.model.backbone.layers[0][0].bias.requires_grad_(False)
    fresh = MAML(method.model, second_order=True, rates="element").double()
    fresh.loss(episode).backward()
    assert fresh.model.backbone.layers[0][0].bias.grad is None
    unused = fresh.model.spare.weight.grad
    assert unused is None or not unused.any()
    fresh.adapt(episode.support)(episode.query.modalities)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"rates": "fast"}, "rates must be one of.*'fast'"),
        ({"adapts": "tail"}, "adapts must be one of.*'tail'"),
        ({"head": "none"}, "head must be one of.*'none'"),
        ({"inner_steps": -1}, "inner_steps must be at least 0, not -1"),
        ({"adapt_steps": -2}, "adapt_steps must be at least 0, not -2"),
        ({"inner_rate": 0.0}, "inner_rate must be above 0"),
        (
            {"adapts": "backbone", "head": "prototypes"},
            "adapts must be 'all' or 'head' with a head of prototypes",
        ),
        (
            {"back_end": "learn2learn", "adapts": "head"},
            "'native' unless MAML is plain.*not 'learn2learn'",
        ),
    ],
)
def test_strange_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        _method("fomaml", **arguments)


@pytest.mark.parametrize("name", ["anil", "boil", "proto_maml"])
def test_what_adapts_a_part_is_not_tuned_by_adam(name):
    with pytest.raises(ValueError, match="adapt_rate, which tunes everything"):
        _method(name, adapt_rate=1e-3)


def test_a_class_without_clips_gets_no_prototype(episode):
    known = EpisodeBatch(episode.support[episode.support.targets != 3], episode.query)
    for name in ("proto_maml", "protonet"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model(MLP(CHANNELS, (5,)), CLASSES).double()
        method = METHODS[name](model=model).double()
        scores = method.adapt(known.support)(known.query.modalities)
        assert (scores.argmax(dim=1) != 3).all()


class Gained(nn.Module):
    """A backbone with a parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CHANNELS, 5)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.dim = 5

    def forward(self, audio):
        return self.gain * self.layer(audio.mean())


@pytest.mark.parametrize("name", ["maml", "meta_sgd", "reptile", "mldg"])
def test_a_parameter_may_be_one_number(name, episode):
    method = METHODS[name](model=Model(Gained(), CLASSES)).double()
    MetaBatch(method, "stacked").backward([episode, episode])
    assert method.model.backbone.gain.grad


@pytest.mark.parametrize("name", ["maml", "anil", "boil", "reptile", "mldg", "fine_tuning"])
def test_a_frozen_model_adapts_to_itself(name, episode):
    model = Model(MLP(CHANNELS, (5,)), CLASSES).double().requires_grad_(False)
    method = METHODS[name](model=model).eval()
    scores = method.adapt(episode.support)(episode.query.modalities)
    torch.testing.assert_close(scores, model(episode.query.modalities))


@pytest.mark.parametrize("name", ["maml", "anil", "protonet", "ridge", "zero_shot"])
def test_a_predictor_stays_whatever_becomes_of_the_method(name, episode):
    model = Model(MLP(CHANNELS, (5,), dropout=0.5), CLASSES).double()
    method = METHODS[name](model=model).double().train()
    predict = method.adapt(episode.support)
    before = predict(episode.query.modalities)
    with torch.no_grad():
        for value in method.parameters():
            value.add_(1)
    assert torch.equal(before, predict(episode.query.modalities))
    assert method.training


def test_parameters_thawed_too_late_are_named(episode):
    model = Model(MLP(CHANNELS, (5,)), CLASSES).double()
    model.backbone.requires_grad_(False)
    method = MAML(model, rates="element")
    model.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match="backbone.*thaw parameters before"):
        method.loss(episode)
