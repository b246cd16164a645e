"""The machine at hand: devices, threads, processes that share a training, and memory."""

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Item = TypeVar("Item")

CPU = torch.device("cpu")


def find_device(name: str) -> torch.device:
    """Return the device of a name; under ``torchrun`` "cuda" is the GPU of this process's own.

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
            f"device must be one that PyTorch finds here, not {name!r} ({why}): name another, such "
            "as cpu, or install a PyTorch that is built for it"
        ) from error
    return device


def device_of(method: object) -> torch.device:
    """Return where a method's parameters are; the processor, if it has none."""
    parameters = method.parameters() if isinstance(method, nn.Module) else iter(())
    first = next(parameters, None)
    return CPU if first is None else first.device


def generators(device: torch.device) -> list[torch.device]:
    """Return what ``torch.random.fork_rng`` has to put back besides the processor's generator."""
    return [device] if device.type == "cuda" else []


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Have PyTorch use this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes of ``torchrun`` for the length of a ``with`` block.

    They talk by gloo about tensors on the processor, by NCCL about those on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl"
        if distributed.is_nccl_available() and torch.cuda.is_available()
        else "gloo"
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if is_shared() else 0


def from_first(value: Any) -> Any:
    """Return in every process what the first one gives; the others' values do not matter."""
    if not is_shared():
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share of some items: every n-th one if there are n processes."""
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
    """Return whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized()


CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Limit and use of a container, in the second and the first version of Linux control groups."""


class PeakMemory(TorchDispatchMode):
    """Count the bytes of the tensors that are made inside a ``with`` block.

    Tensors of the "meta" device count with the size they would have, without taking memory.

    Parameters
    ----------
    limit : float
        Bytes beyond which the computation is given up.

    Attributes
    ----------
    now, peak : int
        Bytes of the tensors that are alive, and the largest number so far.

    Raises
    ------
    MemoryError
        Inside the block, as soon as ``now`` is beyond the limit.
    """

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation of PyTorch and count the tensors that it makes."""
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage once, until it is freed."""
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)
            if self.now > self.limit:
                raise MemoryError(f"{self.now} bytes are needed, the limit is {self.limit}")

    def _forget(self, key: int) -> None:
        """Take a freed storage off the count."""
        self.now -= self._sizes.pop(key)


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take: of a GPU, or of machine and container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in CGROUP_FILES:
        if Path(limit).is_file() and (stated := Path(limit).read_text().strip()) != "max":
            free = min(free, int(stated) - int(Path(used).read_text()))
    return max(free, 0)
