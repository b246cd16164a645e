"""A learnable front end before any backbone, under every method."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from builders import draw_batch
from torch import nn

from metaser.backbones import MLP, Recurrent
from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.frontends import Waveform
from metaser.methods import METHODS
from metaser.methods.inner_loop import heard
from metaser.methods.maml import MAML
from metaser.model import HEARD, Model

CHANNELS = 6
DOMAINS = {"speaker": 5, "corpus": 2}


class Mixer(nn.Module):
    """A front end that mixes the channels of each frame."""

    extracted = Waveform(hop=CHANNELS)

    def __init__(self, adapts: bool):
        super().__init__()
        self.mix = nn.Linear(CHANNELS, 4)
        self.channels = 4
        self.adapts = adapts

    def forward(self, audio: Padded) -> Padded:
        return Padded(torch.tanh(self.mix(audio.values)) * audio.mask.unsqueeze(-1), audio.mask)


class Merged(nn.Module):
    """The same as one backbone."""

    def __init__(self, frontend: nn.Module, backbone: nn.Module):
        super().__init__()
        self.frontend, self.backbone, self.dim = frontend, backbone, backbone.dim

    def forward(self, audio: Padded) -> torch.Tensor:
        return self.backbone(self.frontend(audio))


def _batch(seed: int, frames: int = 3) -> Batch:
    domains = {name: torch.arange(12) % count for name, count in DOMAINS.items()}
    return replace(draw_batch(seed, frames=frames, channels=CHANNELS), domains=domains)


EPISODES = [EpisodeBatch(*(_batch(first + side) for side in range(3))) for first in (0, 3)]


def _model(adapts: bool, merged: bool = False, backbone=MLP, **size) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        frontend, own = Mixer(adapts), backbone(4, **(size or {"hidden": (5,)}))
        if merged:
            model = Model(Merged(frontend, own), 4)
        else:
            model = Model(own, 4, frontend=frontend)
        return model.double()


WITH_MODEL = [
    name
    for name, kind in METHODS.items()
    if {"model", "channels"} & set(inspect.signature(kind).parameters) == {"model"}
]


def _make(name: str, model: Model) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = inspect.signature(METHODS[name]).parameters
        method = METHODS[name](model, **({"domains": DOMAINS} if "domains" in known else {}))
        method = method.double().eval()
    if getattr(method, "use_sources", False):
        method.fit([_batch(7), _batch(8)])
    return method


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_front_end_that_adapts_is_part_of_the_backbone(name):
    apart, merged = (_make(name, _model(True, merged)) for merged in (False, True))
    if hasattr(apart, "loss"):
        one, other = apart.loss(EPISODES[0]), merged.loss(EPISODES[0])
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    query = EPISODES[0].query.modalities
    one, other = (method.adapt(EPISODES[0].support)(query) for method in (apart, merged))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_front_end_left_alone_is_like_clips_heard_beforehand(name):
    method = _make(name, _model(False))
    plain = copy.deepcopy(method)
    plain.model.frontend = None
    before = [heard(method.model, clips) for clips in (EPISODES[0].support, EPISODES[0].query)]
    if getattr(method, "use_sources", False):
        plain.fit([heard(method.model, batch) for batch in method.sources])
    one = method.adapt(EPISODES[0].support)(EPISODES[0].query.modalities)
    other = plain.adapt(before[0])(before[1].modalities)
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("adapts", ["all", "head", "backbone"])
def test_its_gradient_is_that_of_clips_heard_beforehand_by_the_chain_rule(adapts, second_order):
    method = MAML(_model(False), inner_steps=2, adapts=adapts, second_order=second_order)
    method.loss(EPISODES[0]).backward()
    found = method.model.frontend.mix.weight.grad

    mixer, plain = method.model.frontend, copy.deepcopy(method)
    plain.model.frontend = None
    sides = [heard(method.model, side) for side in (EPISODES[0].support, EPISODES[0].query)]
    outputs = [side.modalities["audio"].values for side in sides]
    leaves = [output.detach().requires_grad_() for output in outputs]
    clips = [
        Batch({"audio": Padded(leaf, side.modalities["audio"].mask)}, side.targets, side.classes)
        for leaf, side in zip(leaves, sides)
    ]
    slopes = torch.autograd.grad(plain.loss(EpisodeBatch(*clips)), leaves, materialize_grads=True)
    expected = torch.autograd.grad(outputs, mixer.mix.weight, slopes)[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("name", WITH_MODEL)
def test_stacked_tasks_are_as_tasks_in_turn(name, adapts):
    method = _make(name, _model(adapts))
    if not getattr(method, "stackable", False):
        pytest.skip("takes one episode at a time")
    alone = torch.stack([method.loss(episode) for episode in EPISODES])
    torch.testing.assert_close(method.loss(stack(EPISODES)), alone, rtol=1e-10, atol=1e-12)


def test_before_a_recurrent_backbone_tasks_can_be_stacked():
    method = MAML(_model(False, backbone=Recurrent, hidden=5), second_order=True)
    alone = torch.stack([method.loss(episode) for episode in EPISODES])
    torch.testing.assert_close(method.loss(stack(EPISODES)), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in WITH_MODEL if hasattr(METHODS[name], "loss")])
def test_adapting_changes_neither_the_method_nor_a_front_end_left_alone(name):
    method = _make(name, _model(False))
    before = copy.deepcopy(method.state_dict())
    method.adapt(EPISODES[0].support)
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_learn2learn_refuses_a_front_end_that_does_not_adapt():
    with pytest.raises(ValueError, match="front end"):
        MAML(_model(False), back_end="learn2learn")


def test_many_clips_are_heard_some_at_a_time_where_no_gradient_is_wanted():
    model, batch = _model(adapts=True), _batch(0)
    audio = Padded(*(torch.cat([x] * 4) for x in vars(batch.modalities["audio"]).values()))
    heard_at_once, sizes = model.frontend(audio), []
    model.frontend.register_forward_pre_hook(lambda _, clips: sizes.append(len(clips[0])))
    with torch.no_grad():
        found = model.hear(audio)
    torch.testing.assert_close(found.values, heard_at_once.values, rtol=0, atol=1e-14)
    assert torch.equal(found.mask, audio.mask) and sum(sizes) == len(audio) and max(sizes) <= HEARD
    model.hear(audio)
    assert sizes[-1] == len(audio)
