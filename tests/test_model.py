"""BatchNorm never carries anything from one episode into the next."""

import pytest
import torch
from builders import draw_batch
from torch import nn

from metaser.batch import EpisodeBatch
from metaser.methods import METHODS
from metaser.methods.maml import MAML
from metaser.model import Model, settle_batch_norm
from metaser.training.meta_batch import MetaBatch


class Normed(nn.Module):
    """A backbone with a BatchNorm layer inside."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.dim = 8

    def forward(self, audio):
        return self.block(audio.mean())


def _episode(seed: int) -> EpisodeBatch:
    return EpisodeBatch(draw_batch(seed, clips=8), draw_batch(seed + 1, clips=8))


def _normed() -> Normed:
    torch.manual_seed(0)
    backbone = Normed()
    nn.init.uniform_(backbone.block[1].weight, 0.5, 2)
    nn.init.uniform_(backbone.block[1].bias)
    return backbone.double()


def test_batch_norm_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"Normed must not have layers with running.*\(block\.1\).*'task'.*'gr"
    ):
        Model(_normed(), 4)


def test_task_statistics_are_those_of_the_batch():
    backbone = _normed()
    x = torch.randn(20, 3, dtype=torch.float64)
    hidden = backbone.block[0](x)
    layer = backbone.block[1]
    centred = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, correction=0) + layer.eps).sqrt()
    expected = torch.relu(centred * layer.weight + layer.bias)
    settle_batch_norm(backbone, "task")
    for mode in (True, False):
        torch.testing.assert_close(backbone.train(mode).block(x), expected)
    assert not list(backbone.buffers())


def test_group_norm_looks_at_one_clip_alone():
    backbone = _normed()
    scale = backbone.block[1].weight.detach().clone()
    settle_batch_norm(backbone, "group")
    assert isinstance(backbone.block[1], nn.GroupNorm)
    assert torch.equal(backbone.block[1].weight, scale)
    x = torch.randn(20, 3, dtype=torch.float64)
    torch.testing.assert_close(backbone.block(x)[:1], backbone.block(x[:1]))


@pytest.mark.parametrize("how", ["task", "group"])
def test_an_episode_leaves_no_trace_in_the_next(how):
    model = Model(_normed(), 4, batch_norm=how)
    method = MAML(model, second_order=True).double().train()
    one, other = (
        EpisodeBatch(draw_batch(seed, clips=8), draw_batch(seed + 1, clips=8)) for seed in (0, 5)
    )
    alone = float(method.loss(other).detach())
    method.loss(one)
    assert float(method.loss(other).detach()) == alone
    losses = MetaBatch(method).backward([one, other])
    assert losses[1] == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", ["maml", "anil", "proto_maml", "protonet", "ridge", "fine_tuning"])
def test_statistics_of_a_task_do_not_mix_with_those_of_others(name):
    model = Model(_normed(), 4, batch_norm="task")
    method = METHODS[name](model=model).double()
    episodes = [
        EpisodeBatch(draw_batch(seed, clips=8), draw_batch(seed + 1, clips=8)) for seed in (0, 5)
    ]
    losses = MetaBatch(method).backward(episodes)
    assert losses == pytest.approx([float(method.loss(e).detach()) for e in episodes], rel=1e-12)


def test_frozen_layers_stay_frozen_and_shared_ones_shared():
    backbone = _normed().requires_grad_(False)
    backbone.again = backbone.block[1]
    settle_batch_norm(backbone, "task")
    assert not any(value.requires_grad for value in backbone.parameters())
    assert not backbone.again.track_running_stats


def test_other_layers_with_running_statistics_are_refused_and_replaced():
    whole = nn.Sequential(nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    with pytest.raises(ValueError, match="running statistics"):
        settle_batch_norm(whole, "refuse")
    settle_batch_norm(whole, "group")
    assert not list(whole.buffers())


def test_layers_that_keep_nothing_stay():
    layer = nn.BatchNorm1d(3, track_running_stats=False)
    whole = nn.Sequential(layer)
    settle_batch_norm(whole, "refuse")
    assert whole[0] is layer


def test_strange_choices_are_refused():
    with pytest.raises(ValueError, match="'instance'"):
        Model(Normed(), 4, batch_norm="instance")
