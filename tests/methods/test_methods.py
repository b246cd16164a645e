"""Every entry of METHODS keeps the contract, on features with a planted pattern."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metaser.backbones import MLP, Recurrent
from metaser.batch import Padded
from metaser.episodes import TaskSampler, tensors
from metaser.losses import cross_entropy
from metaser.methods import METHODS
from metaser.methods.support_gan import SupportGAN
from metaser.metrics import uar
from metaser.model import Model

CLASSES = ("angry", "happy", "neutral", "sad")
CHANNELS = 6
HASTE = {
    "multiser": {"rate": 0.03, "steps": 100},
    "transser": {"rate": 0.03, "steps": 100},
    "transser_released": {"rate": 0.3, "steps": 150},
    "fine_tuning": {"rate": 0.03},
    "head_tuning": {"rate": 0.03, "steps": 100},
    "adversarial": {"rate": 0.03},
    "contrastive": {"rate": 0.03},
    "mldg": {"rate": 0.03},
    "gan_augmentation": {"steps": 100},
    "boil": {"inner_rate": 1.0},
    "from_scratch": {"rate": 0.03},
}
"""Arguments with which an untrained model learns a planted pattern from a support set alone."""

WITH_LOSS = [name for name, kind in METHODS.items() if hasattr(getattr(kind, "func", kind), "loss")]
LEARNS = set(METHODS) - {"zero_shot", "majority", "chance"}


def _make(name: str, hidden=16, **arguments):
    kind = METHODS[name]
    arguments = HASTE.get(name, {}) | arguments
    if "channels" in inspect.signature(kind).parameters:
        arguments |= {"channels": CHANNELS, "classes": len(CLASSES)}
    if "model" not in inspect.signature(kind).parameters:
        return kind(**arguments)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(MLP(CHANNELS, (hidden,)), len(CLASSES), 8)
        if "domains" in inspect.signature(kind).parameters:
            arguments = {"domains": {"speaker": 6, "corpus": 1}} | arguments
        return kind(model=model, **arguments).eval()


def _state(method):
    """All that a method holds, by value."""
    if isinstance(method, nn.Module):
        return {key: value.clone() for key, value in method.state_dict().items()}
    return copy.deepcopy(vars(method))


def _equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, SupportGAN):
        return _equal(vars(one), vars(other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(scope="module")
def episode(make_task, plant):
    task = make_task(clips=10)
    drawn = tensors(TaskSampler(task, CLASSES, 5, 10).episode(0), plant(task))
    return replace(drawn, other=drawn.query)


@pytest.fixture(scope="module")
def lacking(make_task, plant):
    task = make_task(clips=10, classes=("angry", "neutral", "sad"))
    drawn = tensors(TaskSampler(task, CLASSES, 5, 10).episode(0), plant(task))
    return replace(drawn, other=drawn.query)


@pytest.fixture(autouse=True)
def _same_draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


each = pytest.mark.parametrize("name", METHODS)


@each
def test_adapting_never_changes_the_method(name, episode):
    method = _make(name)
    before = _state(method)
    clips = copy.deepcopy(episode)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    method.adapt(episode.support)(episode.query.modalities)
    assert _equal(before, _state(method))
    if isinstance(method, nn.Module):
        assert all(value.grad is None for value in method.parameters())
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])
    for side in ("support", "query"):
        one, other = (getattr(e, side).modalities["audio"].values for e in (clips, episode))
        assert torch.equal(one, other)


@each
@pytest.mark.parametrize("which", ["episode", "lacking"])
def test_the_predictor_scores_every_class_there(request, name, which):
    episode = request.getfixturevalue(which)
    scores = _make(name).adapt(episode.support)(episode.query.modalities)
    assert scores.shape == (len(episode.query), len(CLASSES)) and not scores.requires_grad
    there = episode.support.classes
    assert scores[:, there].isfinite().all()
    assert (scores[:, ~there] == float("-inf")).all()


@each
def test_adapting_again_gives_the_same_scores(name, episode):
    method = _make(name)
    first = method.adapt(episode.support)(episode.query.modalities)
    assert torch.equal(first, method.adapt(episode.support)(episode.query.modalities))
    assert torch.equal(first, _make(name).adapt(episode.support)(episode.query.modalities))


@each
def test_adapting_to_one_episode_leaves_no_trace_in_the_next(name, episode, lacking):
    method = _make(name)
    fresh = method.adapt(lacking.support)(lacking.query.modalities)
    method.adapt(episode.support)
    assert torch.equal(fresh, method.adapt(lacking.support)(lacking.query.modalities))


@pytest.mark.parametrize("name", sorted(LEARNS))
@pytest.mark.parametrize("which", ["episode", "lacking"])
def test_a_planted_pattern_is_learnt_from_the_support_set(request, name, which):
    episode = request.getfixturevalue(which)
    adapts = "adapt_steps" in inspect.signature(METHODS[name]).parameters
    method = _make(name, **({"adapt_steps": 60} if adapts else {}))
    scores = method.adapt(episode.support)(episode.query.modalities)
    score = uar(episode.query.targets.numpy(), scores.argmax(dim=1).numpy())
    assert score > 0.65, score  # chance is 0.25 or 0.33


@pytest.mark.parametrize("name", WITH_LOSS)
@pytest.mark.parametrize("which", ["episode", "lacking"])
def test_the_loss_is_a_scalar_with_a_gradient(request, name, which):
    method = _make(name)
    loss = method.loss(request.getfixturevalue(which))
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    for key, value in method.named_parameters():
        if value.requires_grad:
            assert value.grad is not None and value.grad.isfinite().all(), key
    assert sum(float(v.grad.abs().sum()) for v in method.parameters() if v.grad is not None) > 0
    with torch.no_grad():
        again = method.loss(request.getfixturevalue(which))
    torch.testing.assert_close(again, loss.detach())


@pytest.mark.parametrize("name", ["metaser", "maml", "anil", "boil", "reptile"])
def test_with_everything_frozen_the_loss_is_that_of_the_model_as_it_is(name, episode):
    method = _make(name)
    method.model.requires_grad_(False)
    loss = method.loss(episode)
    expected = cross_entropy(
        method.model(episode.query.modalities), episode.query.targets, episode.query.classes
    )
    assert float(loss) == pytest.approx(0.0 if name == "reptile" else float(expected), rel=1e-5)


@each
def test_what_arrives_after_training_changes_adaptation_alone(name, episode):
    """Methods share a training if they differ in ADAPTATION arguments alone."""
    kind = METHODS[name]
    adaptation = getattr(getattr(kind, "func", kind), "ADAPTATION", ())
    changes = {"steps": 3, "rate": 0.5, "adapt_steps": 3, "adapt_rate": 0.5, "trainable": "head"}
    changes |= {"rehearsal": 2.0, "cycle": "released", "fresh_head": True, "batch_size": 7}
    changes |= {"generated": 2, "gan_steps": 3}
    changes |= {"process": {"noise": 2.0}, "folds": 3, "factor": 0.5, "prior": 0.3}
    preset = getattr(kind, "keywords", {})
    if "adapts" in preset or "head" in preset:  # these adapt by the inner loop alone
        adaptation = {"adapt_steps"}
    for argument in adaptation:
        own = {argument: changes[argument]}
        if argument in ("cycle", "fresh_head", "generated"):
            own["trainable"] = "head"
        if argument == "rehearsal" and "adapt_rate" in adaptation:
            own["adapt_rate"] = 0.5
        one, other = _make(name), _make(name, **own)
        assert _equal(_state(one), _state(other)), argument
        assert torch.equal(one.loss(episode), other.loss(episode)), argument


def test_zero_shot_is_the_model_as_it_is(episode):
    method = _make("zero_shot")
    scores = method.adapt(episode.support)(episode.query.modalities)
    assert torch.equal(scores, method.model(episode.query.modalities))


def test_majority_says_the_most_frequent_class(episode):
    uneven = episode.support[torch.tensor([0, 1, 5, 10, 11, 12, 15])]
    assert uneven.targets.tolist() == [0, 0, 1, 2, 2, 2, 3]
    scores = _make("majority").adapt(uneven)(episode.query.modalities)
    assert set(scores.argmax(dim=1).tolist()) == {2}


def test_chance_guesses_evenly_and_anew_for_every_episode(make_task, plant):
    task = make_task(clips=10)
    features, sampler = plant(task), TaskSampler(task, CLASSES, 1, 10)
    guesses, scores = [], []
    for index in range(100):
        episode = tensors(sampler.episode(index), features)
        predicted = _make("chance").adapt(episode.support)(episode.query.modalities).argmax(dim=1)
        guesses.append(predicted.numpy())
        scores.append(uar(episode.query.targets.numpy(), guesses[-1]))
    assert len({guess.tobytes() for guess in guesses}) == 100
    np.testing.assert_allclose(np.bincount(np.concatenate(guesses)) / 4000, 0.25, atol=0.04)
    assert np.mean(scores) == pytest.approx(0.25, abs=0.03)  # four standard errors
    assert np.std(scores) == pytest.approx(np.sqrt(0.25 * 0.75 / 40), rel=0.35)


def test_logistic_regression_is_its_written_optimum(episode):
    """Mean loss plus half the strength times the squared coefficients: no slope is left."""
    from sklearn.preprocessing import StandardScaler

    strength = 0.1
    scores = _make("logistic_regression", strength=strength).adapt(episode.support)

    def vectors(batch):
        audio = batch.modalities["audio"]
        real = audio.mask.sum(dim=1, keepdim=True)
        return (audio.values.sum(dim=1) / real).double()

    scale = StandardScaler().fit(vectors(episode.support).numpy())
    support, query = (
        torch.from_numpy(scale.transform(vectors(side).numpy()))
        for side in (episode.support, episode.query)
    )
    weight = torch.zeros(CHANNELS, 4, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, offset], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        found = nn.functional.cross_entropy(support @ weight + offset, episode.support.targets)
        found = found + strength / 2 * weight.square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    expected = (query @ weight + offset).log_softmax(dim=1).detach()
    found = scores(episode.query.modalities).double()
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_logistic_regression_learns_from_sources(make_task, plant):
    target, source = make_task("ur_made", clips=10), make_task("it_made", clips=10)
    episode = tensors(TaskSampler(target, CLASSES, 1, 10).episode(0), plant(target, 0.5, seed=1))
    big = tensors(TaskSampler(source, CLASSES, 20, 20).episode(0), plant(source, 0.5)).joined()
    scores = []
    for use in (False, True):
        method = _make("logistic_regression", use_sources=use)
        method.fit([big])
        predicted = method.adapt(episode.support)(episode.query.modalities).argmax(dim=1)
        scores.append(uar(episode.query.targets.numpy(), predicted.numpy()))
    assert scores[1] > scores[0]


def test_multiser_tunes_its_heads_and_not_the_backbone(episode):
    method = _make("multiser")
    seen = []
    handle = method.model.backbone.register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    method.adapt(episode.support)
    method.adapt(episode.support)
    handle.remove()
    assert torch.equal(seen[0], seen[1])
    scores = method.adapt(episode.support)(episode.query.modalities)
    assert not torch.equal(scores, method.model(episode.query.modalities))


def test_multiser_s_heads_are_pulled_together():
    """Mean over the classes of the squared distance from their mean."""
    method = _make("multiser")
    head = method.model.head
    weights = np.stack(np.split(head.dense.weight.detach().numpy(), head.classes))
    expected = np.mean([np.sum((one - weights.mean(axis=0)) ** 2) for one in weights])
    assert float(head.spread().detach()) == pytest.approx(expected, rel=1e-5)


def test_transser_tunes_the_head_and_fine_tuning_everything(episode):
    for name, whole in (("transser", False), ("fine_tuning", True)):
        method = _make(name, steps=5)
        method.model.head.requires_grad_(True)
        scores = method.adapt(episode.support)(episode.query.modalities)
        base = method.model.backbone(**episode.query.modalities)
        # Scores of a tuned head on the same embedding are an affine map of that embedding.
        design = torch.cat([base, torch.ones(len(base), 1)], dim=1).detach().double()
        rest = scores.double() - design @ torch.linalg.lstsq(design, scores.double()).solution
        assert (rest.abs().max() > 1e-3) == whole


def test_the_released_transser_tunes_a_head_of_its_own_by_its_own_rate(episode):
    """Adam's first steps at 1/20 of the highest rate, from a head that no training has seen."""
    method, other = _make("transser_released", steps=1), _make("transser_released", steps=1)
    nn.init.zeros_(other.model.head[0].weight)
    query = episode.query.modalities
    found = method.adapt(episode.support)(query)
    assert torch.equal(found, other.adapt(episode.support)(query))
    start = _make("transser_released", steps=0).adapt(episode.support)(query)
    assert not torch.equal(start, _make("zero_shot").adapt(episode.support)(query))
    far = _make("transser_released", steps=1, cycle="paper").adapt(episode.support)(query)
    step, paper = ((scores - start).abs().max() for scores in (found, far))
    assert 3 < paper / step < 5  # a fifth instead of a twentieth


def test_the_released_multiser_trains_on_the_pool_of_sources_and_support(episode):
    """One step on all clips is one of gradient descent on the binary loss of one emotion."""
    pool = episode.joined()
    method = _make("multiser_released", steps=1, batch_size=len(pool)).double()
    episode = episode.map(
        lambda batch: replace(batch, modalities={"audio": batch.modalities["audio"].map(_double)})
    )
    method.fit([episode.query])
    found = method.adapt(episode.support)(episode.query.modalities)
    pool, distances = episode.joined(), []
    for emotion in range(4):
        model = copy.deepcopy(method.model).train()
        answers = model.head.answers(model.embed(pool.modalities), emotion)
        loss = nn.functional.cross_entropy(answers, (pool.targets == emotion).long())
        own = list(model.parameters())
        slopes = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for value, slope in zip(own, slopes):
                value -= 0.1 * slope
            model.eval()
            yes = [
                model.head.answers(model.embed(episode.query.modalities), k).softmax(dim=1)[:, 1]
                for k in range(4)
            ]
        distances.append((found - torch.stack(yes, dim=1).log()).abs().max())
    assert min(distances) < 1e-9 < 1e-4 < sorted(distances)[1]


def _double(values):
    return values.double() if values.is_floating_point() else values


def test_metaser_adapted_by_adam_is_fine_tuning_from_its_own_start(episode):
    meta = _make("metaser", adapt_steps=7, adapt_rate=3e-3)
    plain = _make("fine_tuning", steps=7, rate=3e-3)
    plain.model.load_state_dict(meta.model.state_dict())
    query = episode.query.modalities
    torch.testing.assert_close(
        meta.adapt(episode.support)(query), plain.adapt(episode.support)(query)
    )


@pytest.mark.parametrize("name", ["metaser", "fine_tuning"])
def test_rehearsal_weighs_sources_as_so_many_clips_of_a_class(name, episode):
    """Of 5 clips a class and rehearsal 15, a quarter of the loss is the support set's."""
    rates = {"adapt_steps": 1, "adapt_rate": 0.05} if name == "metaser" else {"steps": 1}
    method = _make(name, rehearsal=15.0, **rates)
    sources = [episode.query[torch.full((9,), row)] for row in (0, 20)]  # draws do not matter
    method.fit(sources)
    found = method.adapt(episode.support)(episode.query.modalities)

    model = copy.deepcopy(method.model)
    losses = [
        nn.functional.cross_entropy(model(batch.modalities), batch.targets)
        for batch in (episode.support, *sources)
    ]
    loss = 0.25 * losses[0] + 0.75 * (losses[1] + losses[2]) / 2
    slopes = torch.autograd.grad(loss, list(model.parameters()))
    rate = (0.05 if name == "metaser" else HASTE[name]["rate"]) / 5  # where the cycle begins
    with torch.no_grad():
        for value, slope in zip(model.parameters(), slopes):
            value -= rate * slope / (slope.abs() + 1e-8)  # Adam's first step
    torch.testing.assert_close(
        found, model(episode.query.modalities).detach(), rtol=1e-3, atol=1e-3
    )


def test_rehearsal_needs_adam():
    with pytest.raises(ValueError, match="set adapt_rate"):
        _make("metaser", rehearsal=1.0)


@pytest.mark.parametrize("name", ["metaser", "metaser_second_order", "fine_tuning", "multiser"])
def test_methods_wrap_any_backbone(name, episode):
    torch.manual_seed(0)
    model = Model(Recurrent(CHANNELS, 8, 1), len(CLASSES))
    method = METHODS[name](model=model).eval()
    assert method.loss(episode).isfinite()
    scores = method.adapt(episode.support)(episode.query.modalities)
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("transser", {"order": "random"}, "'random'"),
        ("transser", {"trainable": "tail"}, "'tail'"),
        ("transser", {"cycle": "round"}, "'round'"),
        ("fine_tuning", {"fresh_head": True}, "trainable = 'head'"),
        ("chance", {"guess": "luck"}, "'luck'"),
    ],
)
def test_strange_arguments_are_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        _make(name, **arguments)


@each
def test_a_support_set_of_one_class_is_refused(name, episode):
    one = episode.support[episode.support.targets == 2]
    with pytest.raises(ValueError, match=r"5 clips of one class \(index \[2\]\)"):
        _make(name).adapt(one)


@pytest.mark.parametrize("sources", [True, False])
def test_a_channel_that_never_varied_does_not_drown_the_others(episode, sources):
    """Silent in all that the scale comes from, as a dead channel of an encoder is; not later."""

    def with_channel(batch, values):
        audio = batch.modalities["audio"]
        channel = values.to(audio.values).view(-1, 1, 1).expand(-1, audio.values.shape[1], 1)
        joined = Padded(torch.cat([audio.values, channel], dim=2), audio.mask)
        return replace(batch, modalities={"audio": joined})

    silent, heard = torch.zeros(len(episode.support)), torch.linspace(-1, 1, len(episode.support))
    asked = with_channel(episode.query, torch.linspace(-1, 1, len(episode.query)))
    method = _make("logistic_regression", strength=0.1, use_sources=sources)
    if sources:
        method.fit([with_channel(episode.support, silent)])
    support = with_channel(episode.support, heard if sources else silent)
    scores = method.adapt(support)(asked.modalities)
    plain = _make("logistic_regression", strength=0.1, use_sources=sources)
    if sources:
        plain.fit([episode.support])
    expected = plain.adapt(episode.support)(episode.query.modalities)
    truth = episode.query.targets.numpy()
    found = uar(truth, scores.argmax(dim=1).numpy())
    assert found > uar(truth, expected.argmax(dim=1).numpy()) - 0.1
