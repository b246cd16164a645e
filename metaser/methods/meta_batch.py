"""The gradient of a meta-batch: its tasks adapted together, in chunks, or one after the other."""

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.devices import CPU, device_of
from metaser.memory import PeakMemory, available_memory

MODES = ("auto", "stacked", "loop")
MEGABYTE = 2**20
SPARE = 128 * MEGABYTE
"""A chunk of tasks may need this much more than one and a half times what one task needs."""

LARGE, LARGE_CONVOLUTION = 64 * MEGABYTE, 8 * MEGABYTE
"""A task that needs more than this has operations that fill a processor by themselves: stacked,
they no longer fit its cache, and take longer."""

log = logging.getLogger(__name__)


class MetaBatch:
    """Runs a method's loss over the episodes of a meta-batch, and backwards.

    Stacked, every operation runs once for all tasks, each of which has its own parameters: that
    pays where operations are small. Episodes of different size are stacked apart, and stacks are
    cut into chunks of bounded memory. The gradient is the same either way, but for the draws of
    dropout.

    Parameters
    ----------
    method : nn.Module
        Has ``loss(episode)``; its attribute ``stackable`` tells whether that takes stacks too.
    mode : {"auto", "stacked", "loop"}
        Stack the tasks, or take them in turn. "auto" stacks unless the model has a layer that is
        faster alone (convolutions in two dimensions; recurrent layers in first order; on a
        processor, whatever is large) or that cannot be stacked.
    compile : bool
        Compile the stacked loss by ``torch.compile``: a minute or more at the first call for each
        size of episode. Whether it pays afterwards depends on the model and the machine.

    Raises
    ------
    ValueError
        If stacking is asked for, but the method or a layer cannot be stacked (when it first runs).
    MemoryError
        If one task alone needs more memory than there is (before it runs).
    """

    def __init__(self, method: nn.Module, mode: str = "auto", compile: bool = False):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
        if compile and mode == "loop":
            raise ValueError("compile is for stacked tasks: leave mode at 'auto' or 'stacked'")
        self.method = method
        self.mode = mode
        self._loss = torch.compile(method.loss, dynamic=False) if compile else method.loss
        self._plans: dict[tuple[int, ...], tuple[int, int]] = {}

    def backward(self, episodes: Sequence[EpisodeBatch], total: int | None = None) -> list[float]:
        """Add the gradient of the mean loss to ``.grad``; return the loss of each episode.

        Parameters
        ----------
        episodes : sequence of EpisodeBatch
            A meta-batch. An episode whose loss is not finite adds no gradient.
        total : int, optional
            Divide by this instead of the number of episodes, where other processes have the rest.
        """
        total = total or len(episodes)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, episode in enumerate(episodes):
            groups.setdefault(_size(episode), []).append(index)
        losses = [0.0] * len(episodes)
        for members in groups.values():
            chunk, _ = self.plan(episodes[members[0]])
            for first in range(0, len(members), chunk):
                own = members[first : first + chunk]
                found = self._run([episodes[index] for index in own], total)
                for index, loss in zip(own, found):
                    losses[index] = loss
        return losses

    def _run(self, episodes: list[EpisodeBatch], total: int) -> list[float]:
        """Run episodes of one size at once, each with weight 1 / ``total``."""
        if self._has_convolutions():
            episodes = [episode.map(_channels_apart) for episode in episodes]
        if len(episodes) == 1:
            losses = self.method.loss(episodes[0]).unsqueeze(0)
        else:
            losses = self._loss(stack(episodes))
        finite = losses.detach().isfinite()
        if finite.all():
            (losses.sum() / total).backward()
        losses = losses.detach()  # and with it goes the graph
        if finite.any() and not finite.all():  # one that diverged would spoil the others' gradient
            self._run([episode for episode, fine in zip(episodes, finite) if fine], total)
        return losses.tolist()

    def plan(self, episode: EpisodeBatch) -> tuple[int, int]:
        """How many tasks of this size run at once, and the bytes that they need together."""
        size = _size(episode)
        if size not in self._plans:
            needed = memory_of_task(self.method, _padded(episode))
            free = available_memory(device_of(self.method))
            _refuse_beyond(free, needed, size)
            obstacle = self._obstacle(episode, needed)
            if obstacle and self.mode == "stacked":
                raise ValueError(
                    f"mode = 'stacked' is impossible: {obstacle}; use 'auto' or 'loop'"
                )
            chunk = 1 if obstacle else min(3 * needed // 2 + SPARE, free) // needed
            how = f"tasks in turn ({obstacle})" if obstacle else f"up to {chunk} tasks stacked"
            log.info(
                "support %d, query %d clips of up to %d frames: %s; %.0f MB a task",
                *size[:3],
                how,
                needed / MEGABYTE,
            )
            self._plans[size] = chunk, chunk * needed
        return self._plans[size]

    def _has_convolutions(self) -> bool:
        return any(isinstance(module, nn.Conv1d) for module in self.method.modules())

    def _obstacle(self, episode: EpisodeBatch, needed: int) -> str:
        """Why tasks are not stacked; empty if they are."""
        if self.mode == "loop":
            return "as asked"
        if not getattr(self.method, "stackable", False):
            return f"{type(self.method).__name__} takes one episode at a time"
        layers = list(self.method.modules())
        if any(isinstance(m, _NormBase) for m in layers):
            return "normalisation by batches must not mix tasks"
        if self.mode == "auto" and any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in layers):
            return "2-D convolutions are faster alone"
        first_order = not getattr(self.method, "second_order", False)
        if self.mode == "auto" and first_order and any(isinstance(m, nn.RNNBase) for m in layers):
            return "recurrent layers are faster alone in first order"
        large = LARGE_CONVOLUTION if self._has_convolutions() else LARGE
        if self.mode == "auto" and needed > large and device_of(self.method) == CPU:
            return "operations as large as these are faster alone"
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self.method.loss(stack([episode, episode]))
        except Exception as error:  # whatever a backbone does to tensors that stand for many
            return f"a layer cannot be stacked: {str(error).splitlines()[0]}"
        return ""


def memory_of_task(method: nn.Module, episode: EpisodeBatch) -> int:
    """Bytes that one episode's loss and gradient need at their peak.

    Found by doing it on a copy, as long as that takes less than ``SPARE``, or all that is free;
    beyond, from sizes alone, which is slower, but takes no memory. A method that looks at values
    has to do it in any case.
    """
    with torch.random.fork_rng(devices=[]):
        limit = min(SPARE, available_memory(device_of(method)))
        with suppress(MemoryError):
            return _peak(copy.deepcopy(method), episode, limit)
        try:
            return _peak(copy.deepcopy(method).to("meta"), episode.to("meta"))
        except Exception:  # whatever a backbone does to tensors without values
            return _peak(copy.deepcopy(method), episode)


def _peak(method: nn.Module, episode: EpisodeBatch, limit: float = math.inf) -> int:
    with PeakMemory(limit) as memory:
        method.loss(episode).backward()
    return max(memory.peak, 1)


def _refuse_beyond(available: int, needed: int, size: tuple[int, ...]) -> None:
    if needed > available:
        raise MemoryError(
            f"an episode of {size[0]} support and {size[1]} query clips of {size[2]} frames needs "
            f"{needed / MEGABYTE:.0f} MB and {available / MEGABYTE:.0f} MB are free: set "
            "checkpoint_steps = true, take fewer inner steps or clips, or first order"
        )


def _size(episode: EpisodeBatch) -> tuple[int, ...]:
    """Support clips, query clips, frames of the longest, rounded up to a power of two; others."""
    sides = [side for side in (episode.support, episode.query, episode.other) if side is not None]
    frames = max(p.mask.shape[-1] for side in sides for p in side.modalities.values())
    others = 0 if episode.other is None else len(episode.other)
    return len(episode.support), len(episode.query), 1 << (frames - 1).bit_length(), others


def _channels_apart(batch: Batch) -> Batch:
    """The same values, laid out in memory as convolutions over time want them.

    They would otherwise copy the clips in every inner step.
    """
    modalities = {
        name: Padded(padded.values.mT.contiguous().mT, padded.mask)
        for name, padded in batch.modalities.items()
    }
    return replace(batch, modalities=modalities)


def _padded(episode: EpisodeBatch) -> EpisodeBatch:
    """An episode as large as any of its size."""
    frames = _size(episode)[2]

    def longest(batch: Batch) -> Batch:
        modalities = {name: padded.lengthened(frames) for name, padded in batch.modalities.items()}
        return replace(batch, modalities=modalities)

    return episode.map(longest)
