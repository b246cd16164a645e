"""How much memory a computation needs, found without doing it, and how much there is."""

import math
import weakref
from pathlib import Path

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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

    def __init__(self, limit: float = math.inf):
        super().__init__()
        self.limit = limit
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)
            if self.now > self.limit:
                raise MemoryError(f"{self.now} bytes are needed, the limit is {self.limit}")

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def available_memory(device: torch.device) -> int:
    """Bytes that this process can still take: of a GPU, or by the machine and the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in CGROUP_FILES:
        if Path(limit).is_file() and (stated := Path(limit).read_text().strip()) != "max":
            free = min(free, int(stated) - int(Path(used).read_text()))
    return max(free, 0)
