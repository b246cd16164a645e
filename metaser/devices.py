"""Where tensors are: the processor, or an accelerator."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """The device of a name; under ``torchrun`` "cuda" is the GPU of this process's own.

    Raises
    ------
    ValueError
        If there is no such device here.
    """
    local = os.environ.get("LOCAL_RANK")
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" and local else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(
            f"device {name!r} is not to be had here ({why}): name another, such as cpu, or install "
            "a PyTorch that is built for it"
        ) from error
    return device


def device_of(method) -> torch.device:
    """Where a method's parameters are; the processor, if it has none."""
    parameters = method.parameters() if isinstance(method, nn.Module) else iter(())
    first = next(parameters, None)
    return CPU if first is None else first.device


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Have PyTorch use this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
