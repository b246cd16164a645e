"""Gradient reversal, contrast and the terms of the outer loss against formulas and other code."""

import math

import numpy as np
import pytest
import torch
from builders import small_model
from torch import nn
from torch.nn.functional import cross_entropy

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.losses import gradient_reversal, reversal_ramp, supervised_contrast
from metaser.methods import METHODS
from metaser.methods.outer_terms import OuterTerms, make_terms

CHANNELS = 3
DOMAINS = {"speaker": 4, "corpus": 2}


def _batch(seed: int, clips=8, named=True) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(clips, 1, CHANNELS, generator=draw, dtype=torch.float64)
    padded = Padded(values, torch.ones(clips, 1, dtype=torch.bool))
    domains = {
        name: torch.randint(count, (clips,), generator=draw) for name, count in DOMAINS.items()
    }
    return Batch(
        {"audio": padded},
        torch.arange(clips) % 4,
        torch.ones(4, dtype=torch.bool),
        domains if named else {},
    )


def _method(name: str, **arguments) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return METHODS[name](small_model(), domains=DOMAINS, **arguments).double()


def _episode(**named) -> EpisodeBatch:
    return EpisodeBatch(_batch(0, **named), _batch(1, **named), _batch(2, **named))


def test_reversal_is_identity_with_the_gradient_turned_round():
    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    reversed_ = gradient_reversal(values, 0.3)
    assert torch.equal(reversed_, values)
    (slope,) = torch.autograd.grad((reversed_**3).sum(), values)
    torch.testing.assert_close(slope, -0.3 * 3 * values.detach() ** 2)


def test_the_ramp_is_that_of_dann():
    assert [reversal_ramp(0.0), reversal_ramp(1.0)] == pytest.approx([0, math.tanh(5)])
    assert reversal_ramp(0.1) == pytest.approx(math.tanh(0.5))  # 2 / (1 + e^-x) - 1 = tanh(x / 2)


def test_contrast_is_its_written_formula():
    draw = np.random.default_rng(0)
    vectors, targets = draw.standard_normal((7, 3)), np.array([0, 1, 0, 2, 1, 0, 3])
    z = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for i in range(7):
        others = [a for a in range(7) if a != i]
        total = sum(np.exp(z[i] @ z[a] / 0.4) for a in others)
        alike = [p for p in others if targets[p] == targets[i]]
        if alike:
            losses.append(-np.mean([np.log(np.exp(z[i] @ z[p] / 0.4) / total) for p in alike]))
    found = supervised_contrast(torch.from_numpy(vectors), torch.from_numpy(targets), 0.4)
    assert len(losses) == 5 and float(found) == pytest.approx(np.mean(losses))


def test_contrast_of_clips_without_a_pair_is_zero_and_has_a_gradient():
    vectors = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrast(vectors, torch.arange(3))
    loss.backward()
    assert float(loss.detach()) == 0 and not vectors.grad.any()


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_the_gradients_are_those_of_the_two_players(balance):
    """Backbone: L_e - strength (b L_s + (1 - b) L_c); adversaries: b L_s + (1 - b) L_c."""
    method = _method("adversarial", terms={"adversary": 0.7, "balance": balance})
    method.progress = 0.2
    episode = _episode()
    method.loss(episode).backward()
    clips, strength = episode.joined(), 0.7 * math.tanh(1.0)
    embeddings = method.model.backbone(**clips.modalities)
    emotion = cross_entropy(method.model.head(embeddings), clips.targets)
    shares = {"speaker": balance, "corpus": 1 - balance}
    told = sum(
        share * cross_entropy(method.terms.adversaries[name](embeddings), clips.domains[name])
        for name, share in shares.items()
        if share
    )
    backbone = list(method.model.backbone.parameters())
    for value, slope in zip(
        backbone, torch.autograd.grad(emotion - strength * told, backbone, retain_graph=True)
    ):
        torch.testing.assert_close(value.grad, slope)
    own = list(method.terms.parameters())
    for value, slope in zip(own, torch.autograd.grad(told, own)):
        torch.testing.assert_close(value.grad, slope)
    assert set(method.terms.adversaries) == {name for name, share in shares.items() if share}


def test_adversaries_catch_up_by_gradient_descent_on_standardised_embeddings():
    """Against PyTorch's SGD on the written loss; the model and the embedding's scale stay out."""
    terms = {"adversary": 0.7, "balance": 0.3, "adversary_steps": 4, "adversary_rate": 0.5}
    method, other = _method("adversarial", terms=terms), _method("adversarial", terms=terms)
    episodes = [_episode(), EpisodeBatch(_batch(3, clips=4), _batch(4))]
    before = [value.clone() for value in method.model.parameters()]
    method.terms.catch_up(method.model, episodes, 2)
    assert all(map(torch.equal, before, method.model.parameters()))

    clips = [episode.joined() for episode in episodes]
    embeddings = [method.model.backbone(**each.modalities).detach() for each in clips]
    weights = np.concatenate([np.full(len(each), 1 / len(each)) for each in clips])
    whole = torch.cat(embeddings).numpy()
    centre = np.average(whole, axis=0, weights=weights)
    spread = np.average((whole - centre) ** 2, axis=0, weights=weights) ** 0.5
    centre, spread = torch.from_numpy(centre), torch.from_numpy(spread) + 1e-3
    adversaries = other.terms.adversaries
    optimiser = torch.optim.SGD(adversaries.parameters(), lr=0.5)
    for _ in range(4):
        optimiser.zero_grad()
        for each, vectors in zip(clips, embeddings):
            for name, share in (("speaker", 0.3), ("corpus", 0.7)):
                scores = adversaries[name]((vectors - centre) / spread)
                (share * cross_entropy(scores, each.domains[name]) / 2).backward()
        optimiser.step()
    for ours, theirs in zip(method.terms.adversaries.parameters(), adversaries.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_adversaries_that_diverge_are_named():
    terms = {"adversary": 1.0, "adversary_steps": 50, "adversary_rate": 1e200}
    method = _method("adversarial", terms=terms)
    with pytest.raises(FloatingPointError, match="lower adversary_rate, which is 1e"):
        method.terms.catch_up(method.model, [_episode()], 1)


def test_without_adversaries_or_episodes_nothing_catches_up():
    method = _method("adversarial", terms={"adversary": 1.0})
    before = [value.clone() for value in method.parameters()]
    method.terms.catch_up(method.model, [], 2)  # a process whose share is empty
    assert all(map(torch.equal, before, method.parameters()))
    for terms in ({"contrast": 1.0}, {"adversary": 1.0, "adversary_steps": 0}):
        method = _method("adversarial", terms=terms)
        before = [value.clone() for value in method.state_dict().values()]
        method.terms.catch_up(method.model, [_episode()], 1)
        assert all(map(torch.equal, before, method.state_dict().values()))


def test_without_progress_the_backbone_does_not_listen_to_the_adversaries():
    plain, method = _method("fine_tuning"), _method("adversarial", terms={"adversary": 5.0})
    method.progress = 0.0
    for one in (plain, method):
        one.loss(_episode()).backward()
    for own, other in zip(method.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize("name", ["metaser_adversarial", "metaser_contrastive"])
def test_the_inner_loop_never_sees_the_terms(name):
    """The meta-gradient is MAML's plus that of the terms at the initialisation, and adapting
    is MAML's."""
    method, plain = _method(name, second_order=True), _method("maml")
    episode = _episode()
    method.loss(episode).backward()
    plain.loss(episode).backward()
    term = method.terms(method.model, episode, 1.0)
    values = list(method.model.backbone.parameters())
    for value, base, slope in zip(
        values, plain.model.backbone.parameters(), torch.autograd.grad(term, values)
    ):
        assert slope.abs().max() > 1e-6
        torch.testing.assert_close(value.grad, base.grad + slope)
    support, query = episode.support, episode.query.modalities
    assert torch.equal(method.adapt(support)(query), plain.adapt(support)(query))
    with torch.no_grad():
        torch.testing.assert_close(method.validation_loss(episode), plain.loss(episode))


def test_positives_of_another_language_count():
    """Only they can: every clip of the episode itself is alone in its class."""
    method = _method("contrastive")
    one, two = _batch(0)[torch.tensor([0, 1])], _batch(1)[torch.tensor([2, 3])]
    none = EpisodeBatch(one, two, _batch(2)[torch.tensor([], dtype=torch.long)])
    some = EpisodeBatch(one, two, _batch(2)[torch.arange(4)])
    with torch.no_grad():
        assert float(method.terms(method.model, none, 1.0)) == 0
        assert float(method.terms(method.model, some, 1.0)) > 0


@pytest.mark.parametrize(
    "terms, episode, words",
    [
        ({"adversary": 1.0}, _episode(named=False), r"'speaker'.*balance = 0"),
        ({"adversary": 1.0, "balance": 0.0}, _episode(named=False), r"'corpus'.*balance = 1"),
        ({"contrast": 1.0}, EpisodeBatch(_batch(0), _batch(1)), "EpisodeBatch.other"),
    ],
)
def test_what_a_term_lacks_is_said(terms, episode, words):
    with pytest.raises(ValueError, match=words):
        _method("fine_tuning", terms=terms).loss(episode)


def test_unknown_numbers_of_speakers_are_refused_when_training_and_not_when_adapting():
    method = METHODS["adversarial"](small_model())
    method.adapt(_batch(0))
    with pytest.raises(ValueError, match="how many there are"):
        method.loss(_episode())


def test_corpus_alone_needs_no_speakers():
    episode = _episode().map(
        lambda batch: Batch(
            batch.modalities, batch.targets, batch.classes, {"corpus": batch.domains["corpus"]}
        )
    )
    assert _method("adversarial", terms={"adversary": 1.0, "balance": 0.0}).loss(episode).isfinite()


@pytest.mark.parametrize(
    "terms, words",
    [
        ({"adversry": 1.0}, "Did you mean 'adversary'"),
        ({"adversary": -1.0}, "adversary must be at least 0, not -1"),
        ({"adversary": 1.0, "adversary_rate": 0.0}, "adversary_rate must be above 0, not 0"),
        ({"adversary": 1.0, "adversary_steps": -1}, "adversary_steps must be at least 0, not -1"),
        ({"adversary": 1.0, "balance": 2.0}, r"balance must be in \[0, 1\], not 2"),
        ({"contrast": 1.0, "temperature": 0.0}, "temperature must be above 0, not 0"),
    ],
)
def test_strange_terms_are_refused(terms, words):
    with pytest.raises(ValueError, match=words):
        make_terms(small_model(), terms, DOMAINS)


def test_no_terms_leave_a_method_as_it_was():
    assert make_terms(small_model(), None, DOMAINS) is None
    assert not list(OuterTerms(small_model(), DOMAINS).parameters())
