"""What is known of a voice in an episode, and how scores by voice and by corpus are mixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metaser.benchmark.voices import Voices, scores_by_voice
from metaser.episodes import TaskSampler, tensors
from metaser.features.voice import gate, normalise_voices, varied_share
from metaser.protocol.schema import Setup, Voice

CLASSES = ("angry", "happy", "neutral", "sad")


@pytest.fixture
def task(make_task):
    return make_task(speakers=6, clips=8)


def test_given_clips_are_counted_and_never_the_query_s(task, plant):
    voices = Voices.of(plant(task), task, Voice(clips=3))
    sampler = TaskSampler(task, CLASSES, 2, 3)
    drawn = set()
    for index in range(5):
        episode = sampler.episode(index)
        known = voices.known(task, episode)
        assert not known[episode.query].any()
        assert (task.table["speaker"][known].value_counts() == 3).all()
        assert set(task.table["speaker"][known]) == set(task.table["speaker"])
        np.testing.assert_array_equal(known, voices.known(task, episode))  # the same again
        drawn.add(tuple(np.flatnonzero(known)))
    assert len(drawn) == 5


def test_a_copy_of_a_query_clip_is_not_given(task, plant):
    episode = TaskSampler(task, CLASSES, 2, 3).episode(0)
    table = task.table.assign(clique=np.where(task.table["emotion"] == "angry", 0, 1))
    known = Voices.of(plant(task), task, Voice(clips=2)).known(
        replace(task, table=table), replace(episode, query=episode.query[:1])
    )
    assert "angry" not in set(table["emotion"][known])


def test_neutral_clips_are_neutral(task, plant):
    voices = Voices.of(plant(task), task, Voice(clips=2, neutral=True))
    known = voices.known(task, TaskSampler(task, CLASSES, 2, 3).episode(0))
    assert set(task.table["emotion"][known]) == {"neutral"}


def test_features_of_an_episode_are_normalised_by_the_known_clips(task, plant):
    raw, episode = plant(task), TaskSampler(task, CLASSES, 2, 3).episode(0)
    voices = Voices.of(raw, task, Voice(clips=2))
    speakers = task.table["speaker"].to_numpy()
    expected = normalise_voices(raw, speakers, voices.known(task, episode))
    found = voices.features(task, episode)[0]
    np.testing.assert_array_equal(np.asarray(found.values), np.asarray(expected.values))


class _Said:
    """A method that says given log-odds, by whether its support is the first or the second."""

    def __init__(self, evidence):
        self.evidence = evidence

    def adapt(self, support):
        which = int(support.modalities["audio"].values[0, 0, 0] > 0)

        class Predictor:
            evidence = None if self.evidence is None else self.evidence[which]

            def __call__(self, modalities):
                clips = len(modalities["audio"])
                return torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]])[which].expand(clips, -1)

        return Predictor()


def _sides(task, plant):
    features, episode = plant(task), TaskSampler(task, CLASSES, 2, 3).episode(0)
    batches = []
    for sign in (-1, 1):
        signed = replace(features, values=sign * np.ones_like(features.values))
        batches.append(tensors(episode, signed))
    speakers = task.table["speaker"].to_numpy()[episode.support]
    return [one.support for one in batches], [one.query for one in batches], speakers


def test_probabilities_are_mixed_as_the_gate_says(task, plant):
    supports, queries, speakers = _sides(task, plant)
    scores, trust = scores_by_voice(_Said((-1.0, -1.4)), supports, queries, speakers)
    share = varied_share(supports[0].targets.numpy(), speakers)
    assert trust == pytest.approx(gate(share, 0.4))
    each = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]]).softmax(dim=1)
    expected = trust * each[0] + (1 - trust) * each[1]
    torch.testing.assert_close(scores.exp(), expected.expand(len(scores), -1))


def test_without_evidence_one_of_the_two_is_taken(task, plant):
    supports, queries, _ = _sides(task, plant)
    targets = supports[0].targets.numpy()
    for speakers, best in ((np.zeros(len(targets)), 0), (targets, 1)):
        scores, trust = scores_by_voice(_Said(None), supports, queries, speakers)
        assert trust == 1 - best and (scores.argmax(dim=1) == best).all()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"normalise": "corpus", "voice": {"clips": 3}}, "voice needs normalise = 'voice'"),
        ({"normalise": "voice", "voice": {"neutral": True}}, "neutral clips must be counted"),
    ],
)
def test_what_is_known_must_make_sense(changes, told):
    setup = {"frontend": {"name": "mfcc"}, "backbone": {"name": "mlp"}, "methods": {"chance": {}}}
    with pytest.raises(ValueError, match=told):
        Setup.model_validate(setup | changes)
