"""Backbones that cannot learn are named before a training, and those that can are let through."""

import logging

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods import METHODS
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.diagnosis import diagnose


def _batch() -> Batch:
    padded = Padded(torch.randn(8, 5, 8), torch.ones(8, 5, dtype=torch.bool))
    return Batch({"audio": padded}, torch.arange(4).repeat(2), torch.ones(4, dtype=torch.bool))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Cube(nn.Module):
    def forward(self, x):
        return Once.apply(x)


class Backbone(nn.Module):
    """What it does after its first layer is given."""

    def __init__(self, after):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.after = after
        self.dim = 8

    def forward(self, audio):
        return self.after(self.first(audio.values)).mean(dim=1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


def _diagnose(after: nn.Module, second_order=True) -> None:
    torch.manual_seed(0)
    method = MAML(Model(Backbone(after), 4), second_order=second_order)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    diagnose(method, EpisodeBatch(_batch(), _batch()))
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert all(value.grad is None for value in method.parameters())


@pytest.mark.parametrize("second_order", [False, True])
def test_fused_attention_works_in_both_orders(second_order, caplog):
    _diagnose(Attention(), second_order)
    assert not caplog.records


def test_a_layer_without_second_derivative_is_named_with_the_remedy():
    _diagnose(Cube(), second_order=False)
    with pytest.raises(ValueError, match=r"backbone\.after \(Cube\).*second_order = false"):
        _diagnose(Cube())


class CubicFrontend(nn.Module):
    """A learnable front end, whose layer stands below it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.cube = Cube()

    def forward(self, audio: Padded) -> Padded:
        return Padded(self.cube(self.first(audio.values)), audio.mask)


class OwnCubicFrontend(CubicFrontend):
    """The same in one module."""

    def forward(self, audio: Padded) -> Padded:
        return Padded(Once.apply(self.first(audio.values)), audio.mask)


@pytest.mark.parametrize(
    "frontend, named",
    [(CubicFrontend, r"frontend\.cube \(Cube\)"), (OwnCubicFrontend, r"frontend \(OwnCubic")],
)
def test_a_front_end_without_second_derivative_is_named(frontend, named):
    method = MAML(Model(Backbone(nn.Identity()), 4, frontend=frontend()), second_order=True)
    with pytest.raises(ValueError, match=f"no second derivative in {named}"):
        diagnose(method, EpisodeBatch(_batch(), _batch()))


def test_a_backbone_that_does_not_use_its_parameters_is_refused():
    with pytest.raises(ValueError, match="Backbone must depend on its parameters.*first"):
        _diagnose(Detached())


def test_parameters_without_gradient_are_named(caplog):
    spare = nn.Sequential(nn.ReLU())
    spare.register_parameter("forgotten", nn.Parameter(torch.zeros(2)))
    with caplog.at_level(logging.WARNING, "metaser"):
        _diagnose(spare)
    assert "receive no gradient: model.backbone.after.forgotten" in caplog.text


def test_a_head_of_zeros_is_no_reason_to_refuse():
    method = METHODS["fine_tuning"](model=Model(Backbone(nn.Identity()), 4))
    nn.init.zeros_(method.model.head.weight)
    diagnose(method, EpisodeBatch(_batch(), _batch()))


def test_a_loss_without_learning_parameters_is_refused():
    method = METHODS["fine_tuning"](model=Model(Backbone(nn.Identity()), 4).requires_grad_(False))
    with pytest.raises(ValueError, match="must depend on a parameter that learns"):
        diagnose(method, EpisodeBatch(_batch(), _batch()))
