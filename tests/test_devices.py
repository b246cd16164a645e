"""Nothing that trains or adapts makes tensors elsewhere than where the method's parameters are.

PyTorch's device "meta", which has sizes and no values, stands in for a GPU: like one it refuses to
meet tensors of the processor.
"""

import pytest
import torch
from test_meta_batch import EPISODES, SMALL, STACKABLE, _method
from torch import nn

from metaser.devices import CPU, device_of, find_device
from metaser.methods.maml import MAML

ELSEWHERE = torch.device("meta")


def _assert_stays(method: nn.Module) -> None:
    method.to(ELSEWHERE)
    assert device_of(method) == ELSEWHERE
    method.loss(EPISODES[0].to(ELSEWHERE)).backward()
    slopes = [value.grad for value in method.parameters() if value.grad is not None]
    assert slopes and {slope.device for slope in slopes} == {ELSEWHERE}


@pytest.mark.parametrize("name", STACKABLE)
def test_every_method_learns_where_it_is(name):
    _assert_stays(_method(name))


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_learns_where_it_is(backbone, second_order):
    _assert_stays(_method("maml", backbone, second_order=second_order))


@pytest.mark.parametrize("name", ["maml", "anil", "proto_maml", "protonet", "ridge", "multiser"])
def test_adapts_and_predicts_where_it_is(name, monkeypatch):
    module = type(_method(name)).__module__
    monkeypatch.setattr(f"{module}.check_support", lambda support: None)  # it looks at values
    method, episode = _method(name).to(ELSEWHERE), EPISODES[0].to(ELSEWHERE)
    assert method.adapt(episode.support)(episode.query.modalities).device == ELSEWHERE


def test_a_tensor_made_on_the_processor_is_found():
    class Astray(MAML):
        def loss(self, episode):
            return super().loss(episode) * torch.ones(2).mean(dim=0, keepdim=True)

    with pytest.raises(RuntimeError, match="device"):
        _assert_stays(Astray(_method().model))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert find_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "7")  # of eight processes on one machine
    for name in ("gpu", "meta", "cuda"):
        with pytest.raises(ValueError, match=f"device '{name}' is not to be had here"):
            find_device(name)


def test_what_has_no_parameters_is_on_the_processor():
    assert device_of(object()) == CPU
    assert device_of(nn.ReLU()) == CPU
