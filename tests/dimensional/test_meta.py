"""Ratings in the meta-learning: loss, episodes, and languages whose cues are turned round."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metaser.backbones import MLP
from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.dimensional.meta import RatedClips, RatedEpisodes, meta_learnt
from metaser.dimensional.protocol import DimensionalProtocol
from metaser.dimensional.rating import predicted, tuned
from metaser.losses import ccc_loss
from metaser.methods.maml import MAML
from metaser.metrics import ccc
from metaser.model import Model
from metaser.training import Training


def _clips(name="aa_x", sign=1.0, clips=80, speakers=8, seed=0) -> RatedClips:
    """Two ratings; the first is the sum of four channels, times a sign of the language's own."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((clips, 1, 4)).astype(np.float32)
    ratings = np.tanh(np.stack([sign * values[:, 0].sum(axis=1), values[:, 0, 0]], axis=1) / 2)
    audio = Padded(torch.from_numpy(values), torch.ones(clips, 1, dtype=torch.bool))
    units = np.array([f"s{i % speakers}" for i in range(clips)])
    return RatedClips(name, audio, torch.from_numpy(ratings), units)


def _model(hidden=16) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(MLP(4, (hidden,)), 2)


def _double(episode: EpisodeBatch) -> EpisodeBatch:
    def wide(batch: Batch) -> Batch:
        audio = batch.modalities["audio"]
        audio = Padded(audio.values.double(), audio.mask)
        return Batch({"audio": audio}, batch.targets.double(), batch.classes)

    return episode.map(wide)


def test_the_loss_is_the_ccc_loss_of_the_query_clips_after_a_step_in_that_of_the_support_clips():
    episode = _double(RatedEpisodes(_clips(), 8, 12, 0).draw(0))
    method = MAML(_model().double(), inner_steps=1, inner_rate=0.3, second_order=True)
    loss = method.loss(episode)
    own = dict(method.model.named_parameters())
    support, query = (
        lambda own, side=side: ccc_loss(
            functional_call(method.model, own, (side.modalities,)), side.targets
        )
        for side in (episode.support, episode.query)
    )
    slopes = torch.autograd.grad(support(own), list(own.values()), create_graph=True)
    adapted = {name: value - 0.3 * s for (name, value), s in zip(own.items(), slopes)}
    torch.testing.assert_close(loss, query(adapted))
    torch.testing.assert_close(
        torch.autograd.grad(loss, list(own.values()), retain_graph=True),
        torch.autograd.grad(query(adapted), list(own.values())),
    )


def test_stacked_tasks_give_the_losses_of_tasks_in_turn():
    drawn = [_double(RatedEpisodes(_clips(), 8, 12, 0).draw(index)) for index in range(3)]
    method = MAML(_model().double(), inner_steps=2, second_order=True)
    alone = torch.stack([method.loss(episode) for episode in drawn])
    torch.testing.assert_close(method.loss(stack(drawn)), alone)
    assert stack(drawn).joined().targets.shape == (3, 20, 2)
    assert torch.equal(stack(drawn).joined().targets[1], drawn[1].joined().targets)


def test_an_episode_asks_other_speakers_and_is_the_same_whatever_was_drawn():
    clips = _clips()
    clips = RatedClips("aa_x", clips.audio, torch.arange(80.0)[:, None] / 80, clips.units)
    episodes = RatedEpisodes(clips, 8, 30, 3)
    episode = episodes.draw(5)
    who = [
        set(clips.units[(side.targets[:, 0] * 80).round().long().numpy()])
        for side in (episode.support, episode.query)
    ]
    assert len(episode.support) == 8 and len(episode.query) == 30 and not who[0] & who[1]
    episodes.draw(1)
    assert torch.equal(episode.support.targets, episodes.draw(5).support.targets)
    assert not torch.equal(episode.support.targets, episodes.draw(6).support.targets)


def test_few_clips_teach_a_meta_learnt_model_which_way_a_cue_points():
    """In half of the languages the cue is turned round: joint training can only shrug. With no
    inner steps meta-learning is joint training, and fails alike."""
    sources = [_clips(f"aa_{i}", (-1.0) ** i, seed=i) for i in range(4)]
    found = {}
    for steps in (5, 0):
        plan = Training(updates=150, meta_batch=4, validate_every=50, rate=1e-2)
        method = meta_learnt(
            _model(),
            sources,
            shots=[10],
            queries=24,
            training=plan,
            inner_steps=steps,
            inner_rate=0.3,
            adapt_steps=2 * steps,
            seed=0,
        )
        scores = []
        for sign in (1.0, -1.0):
            target = _clips("bb_y", sign, seed=9)
            rate = method.adapt(target[np.arange(10)].batch())
            rated = rate({"audio": target.audio[10:]}).numpy()
            scores.append(ccc(target.ratings[10:, 0].numpy(), rated[:, 0]))
        found[steps] = min(scores)
    assert found[5] > 0.7 and found[0] < 0.2
    every = torch.cat([clips.ratings for clips in sources])
    audio = Padded(*(torch.cat([getattr(c.audio, n) for c in sources]) for n in ("values", "mask")))
    joint = predicted(tuned(_model(), audio, every.float(), steps=150), target.audio).numpy()
    assert ccc(target.ratings[:, 0].numpy(), joint[:, 0]) < 0.2


@pytest.mark.parametrize("value", [0.3, float("nan")])
def test_clips_that_are_rated_alike_teach_nothing(value):
    clips = _clips()[np.arange(6)]
    alike = RatedClips("aa_x", clips.audio, torch.full((6, 2), value), clips.units)
    with pytest.raises(ValueError, match="not 6 clips that are all rated alike"):
        MAML(_model()).adapt(alike.batch())


def test_a_task_of_one_speaker_is_refused():
    with pytest.raises(ValueError, match="aa_x must have at least 2 speakers, .* not 1"):
        meta_learnt(
            _model(),
            [_clips(speakers=1)],
            shots=[4],
            queries=4,
            training=Training(updates=1),
            inner_steps=1,
            inner_rate=0.1,
            adapt_steps=1,
            seed=0,
        )


@pytest.mark.parametrize(
    "changes, words",
    [({"adaptation": None}, r"\[meta\] needs \[adaptation\]"), ({}, "'first' rates frames")],
)
def test_protocols_that_cannot_be_meant(changes, words):
    view = {"frontend": {"name": "statistics"}, "normalise": "corpus"}
    learning = {"steps": 5, "rate": 0.01}
    plan = {
        **dict.fromkeys(("name", "title", "description"), "x"),
        "kind": "dimensional",
        "ratings": ["arousal"],
        "sources": ["de_a"],
        "targets": ["it_b"],
        "seeds": [0],
        "learning": learning,
        "views": {"first": {**view, "network": {"name": "frames"}}},
        "adaptation": {"views": ["first"], "shots": [4], "learning": learning},
        "meta": {"updates": 10, "inner_rate": 0.1},
    }
    with pytest.raises(ValueError, match=words):
        DimensionalProtocol.model_validate(plan | changes)
