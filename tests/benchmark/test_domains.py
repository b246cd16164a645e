"""Numbers of speakers and corpora, and how they and other tasks' clips reach a training."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from metaser.backbones import MLP
from metaser.batch import join, stack
from metaser.benchmark.materials import count_domains, number_domains
from metaser.episodes import TaskSampler, tensors
from metaser.methods import METHODS
from metaser.model import Model
from metaser.training import Source, Training, train

CLASSES = ("angry", "happy", "neutral", "sad")


def test_no_two_tasks_share_a_number(make_task):
    """Also where their speakers have the same names."""
    tasks = [make_task("it_made", speakers=3), make_task("ur_made", speakers=2)]
    assert count_domains(tasks) == {"speaker": 5, "corpus": 2}
    one, two = number_domains(tasks)
    assert set(one["speaker"]) == {0, 1, 2} and set(two["speaker"]) == {3, 4}
    assert set(one["corpus"]) == {0} and set(two["corpus"]) == {1}
    for task, found in zip(tasks, (one, two)):
        pairs = set(zip(task.table["speaker"], found["speaker"]))
        assert len(pairs) == task.table["speaker"].nunique()
        assert len(found["corpus"]) == len(task.table)


def test_numbers_go_with_their_clips(make_task, plant):
    task = make_task()
    features = plant(task)
    drawn = [TaskSampler(task, CLASSES, 2, 3).episode(index) for index in range(2)]
    batches = [tensors(episode, features) for episode in drawn]
    speakers = features.domains["speaker"]
    for episode, batch in zip(drawn, batches):
        both = np.concatenate([episode.support, episode.query])
        assert batch.joined().domains["speaker"].tolist() == speakers[both].tolist()
        rows = torch.tensor([3, 0])
        found = batch.query[rows].domains["speaker"].tolist()
        assert found == speakers[episode.query[rows.numpy()]].tolist()
    whole = stack(batches)
    for index, batch in enumerate(batches):
        assert torch.equal(whole.query.domains["speaker"][index], batch.query.domains["speaker"])
    assert stack(batches).joined().domains["speaker"].shape == (2, 20)


def test_joined_batches_have_the_classes_of_any(make_task, plant):
    tasks = make_task(classes=("angry", "sad")), make_task("ur_made", classes=("angry", "happy"))
    sides = [
        tensors(TaskSampler(task, CLASSES, 2, 3).episode(0), plant(task)).support for task in tasks
    ]
    both = join(sides)
    assert both.classes.tolist() == [True, True, False, True]
    assert both.targets.tolist() == [0, 0, 3, 3, 0, 0, 1, 1]
    assert len(both.modalities["audio"]) == 8


class Listener(nn.Module):
    """Notes the corpora of what it hears."""

    hears_other = True

    def __init__(self):
        super().__init__()
        self.model = Model(MLP(6, (4,)), 4)
        self.heard = []

    def loss(self, episode):
        numbers = [
            set(side.domains["corpus"].tolist())
            for side in (episode.support, episode.query, episode.other)
        ]
        self.heard.append(numbers)
        return self.model(episode.support.modalities).square().mean()

    def validation_loss(self, episode):
        assert episode.other is None
        return self.model(episode.support.modalities).square().mean()


def _sources(make_task, plant) -> list[Source]:
    tasks = [make_task("it_made"), make_task("ur_made"), make_task("fa_made")]
    return [
        Source(TaskSampler(task, CLASSES, 2, 2), replace(plant(task), domains=numbers))
        for task, numbers in zip(tasks, number_domains(tasks))
    ]


def test_the_other_clips_are_of_another_task(make_task, plant):
    sources, method = _sources(make_task, plant), Listener()
    plan = Training(updates=10, meta_batch=4, validate_every=5, validation_episodes=3)
    train(method, sources, sources, plan)
    heard = [numbers for numbers in method.heard if numbers[2] != numbers[1]]
    assert len(heard) >= 39  # of 40; the first look at the method takes one of its own
    assert all(support == query for support, query, _ in heard)
    assert {min(other) for _, _, other in heard} == {0, 1, 2}


def test_methods_with_terms_train_and_keep_nothing_of_them_when_validated(make_task, plant):
    sources = _sources(make_task, plant)
    plan = Training(updates=4, meta_batch=3, validate_every=2, validation_episodes=3)
    for name in ("metaser_adversarial", "contrastive"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            domains = {"speaker": 18, "corpus": 3}
            method = METHODS[name](Model(MLP(6, (5,)), 4), domains=domains)
        before = [value.clone() for value in method.terms.parameters()]
        history = train(method, sources, sources, plan)
        assert np.isfinite([entry["validation"] for entry in history]).all()
        after = list(method.terms.parameters())
        assert not any(torch.equal(a, b) for a, b in zip(before, after))
