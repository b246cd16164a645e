"""Sharing work over processes that ``torchrun`` started; a lone process shares with nobody."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes of ``torchrun`` for the length of a ``with`` block.

    They talk by gloo about tensors on the processor, by NCCL about those on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if distributed.is_nccl_available() else "gloo"
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if is_shared() else 0


def from_first(value):
    """What the first process gives, in every process."""
    if not is_shared():
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def share(items: Sequence) -> Sequence:
    """Every n-th item, for the n processes: this one's."""
    return items[rank() :: distributed.get_world_size()] if is_shared() else items


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Put the sum over all processes into each tensor, by one message."""
    if not is_shared() or not tensors:
        return
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(whole)
    for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def is_shared() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized()
