"""Where tensors are is asked of the parameters, and a device that is not there is refused."""

import pytest
from torch import nn

from metaser.machine import CPU, device_of, find_device


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert find_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "7")  # of eight processes on one machine
    for name in ("gpu", "meta", "cuda"):
        with pytest.raises(ValueError, match=f"device must be .*not '{name}'"):
            find_device(name)


def test_what_has_no_parameters_is_on_the_processor():
    assert device_of(object()) == CPU
    assert device_of(nn.ReLU()) == CPU
