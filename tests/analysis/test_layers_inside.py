import copy

import numpy as np
import pytest
import torch
from torch import nn

from metaser.analysis.layers import activations, cka, probe, relative_change
from metaser.backbones import BACKBONES
from metaser.batch import Padded
from metaser.episodes import TaskSampler, tensors
from metaser.methods import METHODS
from metaser.model import Model

CLASSES = ("angry", "happy", "neutral", "sad")


@pytest.fixture
def x():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def episode(make_task, plant):
    task = make_task()
    return tensors(TaskSampler(task, CLASSES, 2, 3).episode(0), plant(task))


def test_cka_is_one_for_the_same_up_to_rotation_scale_and_offset(x):
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, -3 * x @ rotation + 7) == pytest.approx(1)
    assert cka(x, x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1]))) < 0.95


def test_cka_is_the_feature_form(x):
    """Kornblith et al., equation 4: ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), instead of Gram matrices."""
    y = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    a, b = ((side - side.mean(0)).double().numpy() for side in (x, y))
    norm = np.linalg.norm
    assert cka(x, y) == pytest.approx(norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b)))


def test_cka_of_unrelated_directions_is_zero():
    a = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    b = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert cka(a, b) == pytest.approx(0)
    assert np.isnan(cka(a, torch.ones(4, 2)))


def test_relative_change_by_hand():
    before = {"a.weight": torch.tensor([3.0, 0.0]), "a.bias": torch.tensor([4.0])}
    before["b.c.weight"], before["z.bias"] = torch.tensor([2.0]), torch.zeros(1)
    after = {"a.weight": torch.tensor([3.0, 1.0]), "b.c.weight": torch.tensor([1.0])}
    found = relative_change(before, after)
    assert found["a"] == pytest.approx(1 / 5) and found["b.c"] == pytest.approx(1 / 2)
    assert np.isnan(found["z"]) and list(found) == ["a", "b.c", "z"]


def test_activations_are_what_the_layers_give():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    own = {name: value.detach() for name, value in net.named_parameters()}
    other = {name: value + 1 for name, value in own.items()}
    inputs = torch.randn(5, 3)
    found = activations(net, other, inputs)
    hidden = inputs @ other["0.weight"].T + other["0.bias"]
    assert set(found) == {"0", "2"}
    torch.testing.assert_close(found["0"], hidden)
    torch.testing.assert_close(found["2"], hidden.relu() @ other["2.weight"].T + other["2.bias"])
    assert all(torch.equal(own[name], value) for name, value in net.named_parameters())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    "backbone, options", [("mlp", {"hidden": [8]}), ("multiscale_cnn", {"filters": 2})]
)
def test_probing_an_adapted_network(episode, backbone, options):
    model = Model(BACKBONES[backbone](6, **options), 4)
    method = METHODS["fine_tuning"](model=model, steps=3, rate=1e-2).eval()
    before = copy.deepcopy(method.state_dict())
    table = probe(method, episode).set_index("layer")
    assert list(table.index)[-1] == "head" and (table["change"] > 0).all()
    assert table["cka"].between(0, 1 - 1e-9).all()
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_what_does_not_adapt_does_not_change(episode):
    model = Model(BACKBONES["mlp"](6, hidden=[8]), 4)
    table = probe(METHODS["head_tuning"](model=model, steps=3, rate=1e-2), episode)
    table = table.set_index("layer")
    assert table.loc["backbone.layers.0.0", "change"] == 0
    assert table.loc["backbone.layers.0.0", "cka"] == pytest.approx(1)
    assert table.loc["head", "change"] > 0 and table.loc["head", "cka"] < 1


def test_layers_that_give_more_than_a_tensor_are_left_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)
            self.last = nn.Linear(3, 2)

        def forward(self, modalities):
            return self.last(self.rnn(modalities["audio"].values)[0][:, -1])

    clips = {"audio": Padded(torch.randn(4, 5, 2), torch.ones(4, 5, dtype=torch.bool))}
    assert set(activations(Odd(), {}, clips)) == {"last"}
