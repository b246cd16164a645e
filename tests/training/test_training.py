import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from metaser.backbones import MLP
from metaser.episodes import TaskSampler
from metaser.methods.maml import MAML
from metaser.methods.transfer import Transfer
from metaser.model import Model
from metaser.training import Source, Training, loop, train, validation_loss

CLASSES = ("angry", "happy", "neutral", "sad")
SHORT = Training(updates=12, meta_batch=2, validate_every=3, validation_episodes=4, rate=1e-2)


def untimed(history):
    """The entries of a history without the seconds, which differ from run to run."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def _method(kind=MAML, **arguments) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(Model(MLP(6, (8,), dropout=0.3), 4), **arguments)


class Scripted(nn.Module):
    """A method whose losses are given: of training one by one, of validation by episodes seen."""

    def __init__(self, losses=(), validations=()):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.losses, self.validations = list(losses), dict(validations)
        self.seen = 0

    def loss(self, episode):
        if not self.training:
            return torch.tensor(self.validations.get(self.seen, 9.0))
        self.seen += 1
        value = self.losses.pop(0) if self.losses else 0.0
        return value - self.weight.sum()  # every step raises the weight


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", [MAML, Transfer])
@pytest.mark.parametrize("stop", [6, 9])
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(sources, tmp_path, kind, stop):
    whole, parts = _method(kind), _method(kind)
    history = train(whole, *sources, SHORT, seed=3)

    def interrupt(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    path = tmp_path / "deep" / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(parts, *sources, SHORT, seed=3, checkpoint=path, progress=interrupt)
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]
    fresh = _method(kind)
    with torch.no_grad():
        for value in fresh.parameters():
            value.add_(1)  # the checkpoint decides, not where the method starts
    resumed = train(fresh, *sources, SHORT, seed=3, checkpoint=path)
    assert untimed(resumed) == untimed(history)
    assert _same(whole.state_dict(), fresh.state_dict())
    assert not _same(whole.state_dict(), _method(kind).state_dict())


def test_adversaries_catch_up_while_training_and_resume_bit_by_bit(sources, tmp_path):
    def number(source, corpus):
        clips = len(source.sampler.task.table)
        domains = {"corpus": np.full(clips, corpus)}
        return replace(source, features=replace(source.features, domains=domains))

    numbered = [[number(source, corpus) for corpus, source in enumerate(s)] for s in sources]
    terms = {"adversary": 1.0, "balance": 0.0}
    whole, parts = (_method(Transfer, terms=terms, domains={"corpus": 2}) for _ in range(2))
    train(whole, *numbered, SHORT)
    assert whole.terms.centre.any()

    def interrupt(step, loss):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, *numbered, SHORT, checkpoint=tmp_path / "a.pt", progress=interrupt)
    train(parts, *numbered, SHORT, checkpoint=tmp_path / "a.pt")
    assert _same(whole.state_dict(), parts.state_dict())


def test_a_finished_run_is_not_run_again(sources, tmp_path):
    first, second = _method(), _method()
    history = train(first, *sources, SHORT, checkpoint=tmp_path / "run.pt")
    steps = []
    again = train(
        second,
        *sources,
        SHORT,
        checkpoint=tmp_path / "run.pt",
        progress=lambda step, loss: steps.append(step),
    )
    assert again == history and not steps
    assert _same(first.state_dict(), second.state_dict())


def test_the_same_seed_trains_the_same_and_another_seed_otherwise(sources):
    methods = [_method() for _ in range(3)]
    for method, seed in zip(methods, (1, 1, 2)):
        train(method, *sources, SHORT, seed=seed)
    assert _same(methods[0].state_dict(), methods[1].state_dict())
    assert not _same(methods[0].state_dict(), methods[2].state_dict())


def test_the_best_state_is_restored(sources):
    method = _method(Transfer)
    plan = SHORT.model_copy(
        update=dict(rate=0.5, clip=100.0, patience=100)
    )  # far too fast: it gets worse
    history = train(method, *sources, plan)
    losses = [entry["validation"] for entry in history]
    assert losses.index(min(losses)) < len(losses) - 1
    assert validation_loss(method, sources[1], 4) == min(losses)
    assert not method.training


def test_training_learns(sources):
    method = _method(Transfer)
    before = validation_loss(method, sources[1], 20)
    train(method, *sources, SHORT.model_copy(update=dict(updates=60, validate_every=20)))
    assert validation_loss(method, sources[1], 20) < before - 0.1


def test_it_stops_when_validation_gains_nothing(sources):
    gains = {1: 5.0, 2: 4.0, 3: 4.5, 4: 3.0, 5: 3.0, 6: 3.5}
    steps = []

    weights = {}
    method = Scripted(validations=gains)

    def note(step, loss):
        steps.append(step)
        weights[step] = float(method.weight.detach())

    plan = Training(updates=50, meta_batch=1, validate_every=1, validation_episodes=2, patience=2)
    history = train(method, *sources, plan, progress=note)
    assert steps == [1, 2, 3, 4, 5, 6]  # a tie is no gain
    assert [entry["validation"] for entry in history] == [5.0, 4.0, 4.5, 3.0, 3.0, 3.5]
    assert float(method.weight.detach()) == weights[4] and len(set(weights.values())) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_episode(sources, value):
    method = Scripted(losses=[1.0] * 5 + [value])
    plan = SHORT.model_copy(update=dict(validate_every=100))
    with pytest.raises(FloatingPointError, match="episode 5 of (it|ur)_made.*step 2.*lower"):
        train(method, sources[0], sources[1], plan)


def test_diverged_episodes_are_left_out_and_counted_if_asked(sources):
    method = Scripted(losses=[1.0, float("nan"), 2.0, float("inf"), float("nan"), float("nan")])
    plan = Training(updates=3, meta_batch=2, validate_every=1, validation_episodes=2, patience=9)
    history = train(method, *sources, plan.model_copy(update=dict(diverged="skip")))
    assert [entry["skipped"] for entry in history] == [1, 2, 4]
    assert [entry["loss"] for entry in history][:2] == pytest.approx([1.0, 2.0], abs=0.1)
    assert np.isnan(history[2]["loss"])


class Steep(nn.Module):
    """A method whose loss is finite where its slope is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = 0

    def loss(self, episode):
        self.seen += self.training
        if self.training and self.seen == 2:
            return (self.weight * 0).sqrt().sum() + 1
        return self.weight.sum()


def test_a_gradient_that_is_not_finite_stops_the_run_or_is_counted(sources):
    plan = Training(updates=3, meta_batch=1, validate_every=1, validation_episodes=2, patience=9)
    names = "|".join(source.sampler.task.name for source in sources[0])
    told = rf"gradient of step 1 must be finite, not nan.*\(1 of ({names})\)"
    with pytest.raises(FloatingPointError, match=told):
        train(Steep(), *sources, plan)
    method = Steep()
    history = train(method, *sources, plan.model_copy(update=dict(diverged="skip")))
    assert [entry["skipped"] for entry in history] == [0, 1, 1]
    assert method.weight.isfinite().all()


def test_what_to_do_about_divergence_is_stop_or_skip():
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        Training(diverged="ignore")


class Progressing(Scripted):
    def __init__(self):
        super().__init__()
        self.progress, self.told = 1.0, []

    def loss(self, episode):
        if self.training:
            self.told.append(self.progress)
        return super().loss(episode)


def test_a_method_is_told_how_far_the_training_is(sources):
    method = Progressing()
    train(method, *sources, SHORT.model_copy(update=dict(meta_batch=1, updates=4)))
    assert method.told == [0, 0.25, 0.5, 0.75]


def test_pairs_come_from_two_tasks(make_task, plant):
    class Pairing(Noting):
        pairs_tasks = True

        def loss(self, episode):
            sides = (episode.support, episode.query)
            if self.training:
                self.seen.append(tuple(int(s.modalities["audio"].values.max()) for s in sides))
            return self.weight.sum()

    found = _marked(make_task, plant, ["aa_made", "bb_made", "cc_made"])
    method = Pairing("mixed")
    train(
        method,
        found,
        found,
        SHORT.model_copy(update=dict(updates=30, meta_batch=4, validate_every=30)),
    )
    assert len(method.seen) == 120
    assert set(method.seen) == {(a, b) for a in range(3) for b in range(3) if a != b}
    with pytest.raises(ValueError, match="two source tasks, but aa_made is the only one"):
        train(Pairing("mixed"), found[:1], found[:1], SHORT)


def test_a_method_may_be_validated_by_something_else_than_its_loss(sources):
    class Measured(Scripted):
        def validation_loss(self, episode):
            return torch.tensor(7.0)

    history = train(Measured(), *sources, SHORT)
    assert {entry["validation"] for entry in history} == {7.0}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training": SHORT.model_copy(update=dict(rate=0.1))},
        {"method": MAML(Model(MLP(6, (9,)), 4))},
        {"method": Transfer(Model(MLP(6, (8,)), 4))},
        {"version": "0.0.0"},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_foreign_checkpoint_is_refused(sources, tmp_path, change, monkeypatch):
    path = tmp_path / "run.pt"
    train(_method(), *sources, SHORT, seed=0, checkpoint=path)
    method = change.get("method", _method())
    if "version" in change:
        monkeypatch.setattr(loop, "version", lambda: change["version"])
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(ValueError, match="run.pt must be a checkpoint of this run.*delete it"):
        train(
            method,
            *sources,
            change.get("training", SHORT),
            seed=change.get("seed", 0),
            checkpoint=path,
        )
    assert _same(before, method.state_dict())


@pytest.mark.parametrize("harm", ["cut", "empty", "text", "list"])
def test_a_corrupt_checkpoint_is_refused(sources, tmp_path, harm):
    path = tmp_path / "run.pt"
    train(_method(), *sources, SHORT, checkpoint=path)
    content = path.read_bytes()
    if harm == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "text": b"garbage"}[harm]
        )
    with pytest.raises(ValueError, match="run.pt must be a checkpoint.*not readable.*delete it"):
        train(_method(), *sources, SHORT, checkpoint=path)


def test_a_full_disk_leaves_the_last_checkpoint(sources, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    save, calls = torch.save, []

    def full(content, file):
        calls.append(file)
        if len(calls) == 3:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(torch, "save", full)
        train(_method(), *sources, SHORT, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    assert torch.load(path, weights_only=True)["state"]["step"] == 6


def _marked(make_task, plant, names) -> list[Source]:
    """Sources whose features are the number of their task."""
    found = []
    for number, name in enumerate(sorted(names)):
        task = make_task(name)
        features = plant(task)
        values = np.full_like(features.values, number)
        found.append(Source(TaskSampler(task, CLASSES, 1, 1), replace(features, values=values)))
    return found


class Noting(nn.Module):
    """Notes which task every training episode is of."""

    def __init__(self, order):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.order = order
        self.seen = []

    def loss(self, episode):
        if self.training:
            self.seen.append(int(episode.support.modalities["audio"].values.max()))
        return self.weight.sum()


def test_sequential_order_goes_one_corpus_after_the_other(make_task, plant):
    sources = _marked(make_task, plant, ["de_a", "fa_b", "ur_c"])
    method = Noting("sequential")
    plan = Training(updates=30, meta_batch=2, validate_every=10, validation_episodes=1, patience=9)
    train(method, sources, sources[:1], plan)
    assert method.seen == [0] * 20 + [1] * 20 + [2] * 20


def test_in_sequential_order_the_rate_falls_anew_in_every_turn(make_task, plant, monkeypatch):
    sources = _marked(make_task, plant, ["de_a", "fa_b", "ur_c"])
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)),
    )
    plan = Training(updates=30, meta_batch=1, validate_every=10, validation_episodes=1, rate=0.1)
    method = Noting("sequential")
    train(method, sources, sources[:1], plan)
    turn = [0.05 * (1 + np.cos(np.pi * place / 10)) for place in range(10)]
    np.testing.assert_allclose(rates, turn * 3, atol=1e-12)


def test_mixed_order_draws_the_corpora_evenly_whatever_their_number_of_sources(make_task, plant):
    sources = _marked(make_task, plant, ["de_a", "fa_b", "ur_c"])
    method = Noting("mixed")
    plan = Training(updates=100, meta_batch=6, validate_every=50, validation_episodes=1)
    train(method, [*sources, sources[0], sources[0]], sources[:1], plan)
    counts = np.bincount(method.seen)
    assert counts.sum() == 600 and np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)
    assert all(len(set(method.seen[i : i + 6])) > 1 for i in range(0, 60, 6))


def test_global_random_state_is_left_alone(sources):
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(_method(), *sources, SHORT)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_global_random_state_does_not_matter(sources):
    methods = [_method(), _method()]
    for number, method in enumerate(methods):
        torch.manual_seed(number)
        train(method, *sources, SHORT)
    assert _same(methods[0].state_dict(), methods[1].state_dict())


def test_what_requires_no_gradient_is_not_trained(sources):
    method = _method(Transfer)
    method.model.backbone.requires_grad_(False)
    before = copy.deepcopy(method.model.backbone.state_dict())
    train(method, *sources, SHORT)
    assert _same(before, method.model.backbone.state_dict())


def test_a_checkpoint_of_other_settings_is_refused(sources, tmp_path):
    train(_method(inner_steps=1), *sources, SHORT, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match="settings was .*inner_steps.*and is now"):
        train(_method(inner_steps=2), *sources, SHORT, checkpoint=tmp_path / "run.pt")
    for later in ({"adapt_steps": 3}, {"adapt_rate": 0.1, "rehearsal": 5.0}):  # after training
        method = _method(inner_steps=1, **later)
        train(method, *sources, SHORT, checkpoint=tmp_path / "run.pt")


def test_without_anything_to_train_it_says_so(sources):
    method = _method()
    method.requires_grad_(False)
    with pytest.raises(ValueError, match="MAML must have parameters that learn"):
        train(method, *sources, SHORT)


def test_validation_episodes_that_diverge_are_left_out_if_asked(sources):
    class Half(Scripted):
        def validation_loss(self, episode):
            self.seen += 1
            return torch.tensor(float("nan") if self.seen % 2 else 3.0)

    with pytest.raises(FloatingPointError, match="validation episode 0 of it_made"):
        train(Half(), *sources, SHORT)
    history = train(Half(), *sources, SHORT.model_copy(update=dict(diverged="skip")))
    assert {entry["validation"] for entry in history} == {3.0}


def test_masks_change_the_training_alone_and_by_the_seed(sources):
    def history(**masks):
        return train(_method(), *sources, SHORT.model_copy(update=dict(**masks)), seed=1)

    plain, masked, again = history(), history(mask_channels=3), history(mask_channels=3)
    assert [entry["loss"] for entry in masked] == [entry["loss"] for entry in again]
    assert plain[0]["loss"] != masked[0]["loss"]
    untrained = SHORT.model_copy(update=dict(rate=0.0))
    one, other = (
        train(_method(), *sources, untrained.model_copy(update=dict(mask_channels=width)), seed=1)
        for width in (0, 3)
    )
    assert one[0]["validation"] == other[0]["validation"]


def test_a_checkpoint_leaves_out_what_is_frozen(sources, tmp_path):
    def frozen():
        method = _method()
        method.model.backbone.requires_grad_(False)
        return method

    train(whole := frozen(), *sources, SHORT)
    train(frozen(), *sources, SHORT, checkpoint=tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    for state in (saved["method"], saved["best"]):
        assert state and not any(name.startswith("model.backbone") for name in state)
    train(resumed := frozen(), *sources, SHORT, checkpoint=tmp_path / "run.pt")
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
