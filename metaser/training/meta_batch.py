"""The gradient of a meta-batch: its tasks are stacked, side by side on threads, or in turn."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.contracts import LearningMethod, changing_losses, method_traits
from metaser.machine import (
    CPU,
    PeakMemory,
    available_memory,
    cpu_threads,
    device_of,
    generators,
)
from metaser.methods.inner_loop import own_kernels

ENGINES = ("auto", "stacked", "loop")
"""How the tasks of a meta-batch can run, see ``MetaBatch``."""

MEGABYTE = 2**20
SPARE = 128 * MEGABYTE
"""A chunk of tasks may need 1.5 times the memory of one task, and this many bytes more."""

SHARE = 4
"""On a GPU a chunk may need 1 / SHARE of the free memory: other processes may use the GPU, too."""

LARGE, LARGE_CONVOLUTION = 64 * MEGABYTE, 8 * MEGABYTE
"""Bytes per task, without and with convolutions, beyond which stacking on a processor is slower:
such operations fill the processor alone, and stacked they no longer fit its cache."""

COMPILED_SIZES = 64
"""Largest number of episode sizes, times methods, that one process compiles."""

LossGradient = tuple[Tensor, Sequence[Tensor | None]]
"""A loss, or one per task, and its gradient in the parameters that learn."""

Gradients = Callable[..., LossGradient]
"""From a method and an episode, and the number to divide by, to loss and gradient."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How the tasks of one size run.

    Attributes
    ----------
    tasks : int
        Number of tasks that run at once.
    stacked : bool
        Whether they run as one stack; if not, side by side on a processor's threads, or in turn.
    memory : int
        Bytes that these tasks need together.
    """

    tasks: int
    stacked: bool
    memory: int


class MetaBatch:
    """Compute the losses of a meta-batch and add their gradient to a method's parameters.

    In a stack, every operation runs once for all tasks, each with its own parameters. That is
    faster where operations are small. Episodes of different size form separate stacks, and stacks
    are cut into chunks to limit the memory. Where operations are large and PyTorch has several
    threads (``torch.set_num_threads``), each thread runs a task of its own, because threads that
    share an operation wait for each other. The gradient is the same in all cases, except for the
    draws of dropout.

    Parameters
    ----------
    method : nn.Module
        A method that learns, see ``contracts.LearningMethod``; its attribute ``stackable`` says
        whether ``loss`` also takes stacks.
    engine : {"auto", "stacked", "loop"}
        Stack the tasks, or run them in turn. "auto" stacks unless a layer cannot be stacked or is
        faster alone (recurrent layers in first order; on a processor, convolutions in two
        dimensions and large operations).
    compile : bool
        Compile the stacked meta-gradient as one piece by ``torch.compile``. This takes about a
        minute at the first call for each episode size. Whether it is faster afterwards depends on
        the model and the machine.
    mixed_precision : bool
        Compute products and convolutions in bfloat16; parameters and everything else keep their
        type. This is faster on processors with AVX512-BF16 or AMX and on recent GPUs, slower on
        others. The gradient is then off by a few per cent, for deep convolutional nets by up to a
        quarter.

    Raises
    ------
    ValueError
        If ``engine`` is unknown; if it is "stacked", but the method or a layer cannot be stacked
        (at the first run); or if ``compile`` meets a loss that changes during the training.
    ImportError
        If ``compile`` is set, but this PyTorch cannot compile a gradient.
    MemoryError
        If a single task needs more memory than is free (before it runs).
    """

    def __init__(
        self,
        method: nn.Module,
        engine: str = "auto",
        *,
        compile: bool = False,
        mixed_precision: bool = False,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, not {engine!r}: choose one of them")
        if compile and engine == "loop":
            raise ValueError(
                "compile is for stacked tasks, so engine must be 'auto' or 'stacked', not 'loop': "
                "set engine, or leave compile out"
            )
        changing = changing_losses(method)
        if compile and changing:
            raise ValueError(
                "compile is for a loss that stays the same during the training, but "
                f"{changing[0]} changes it at every step: leave one of them out"
            )
        self.method = method
        self.engine = engine
        self._gradients = partial(_gradients, mixed=mixed_precision)
        self._stacked_gradients = _compiled(self._gradients) if compile else self._gradients
        self._plans: dict[tuple[int, ...], Plan] = {}

    def backward(self, episodes: Sequence[EpisodeBatch], total: int | None = None) -> list[float]:
        """Add the gradient of the mean loss to ``.grad``; return the loss of each episode.

        Parameters
        ----------
        episodes : sequence of EpisodeBatch
            A meta-batch. An episode whose loss is not finite adds no gradient.
        total : int, optional
            Number of episodes to average over, if other processes have the rest of them; by default
            the number of ``episodes``.

        Returns
        -------
        list of float
            The loss of each episode.
        """
        total = total or len(episodes)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, episode in enumerate(episodes):
            groups.setdefault(_size(episode), []).append(index)
        losses = [0.0] * len(episodes)
        for members in groups.values():
            plan = self.plan(episodes[members[0]])
            together = plan.stacked and plan.tasks > 1 and len(members) > 1
            run = self._run_stacked if together else self._run_alone
            group_losses = run([episodes[index] for index in members], plan.tasks, total)
            for index, loss in zip(members, group_losses):
                losses[index] = loss
        return losses

    def _run_stacked(self, episodes: list[EpisodeBatch], chunk: int, total: int) -> list[float]:
        """Run episodes of one size in stacks of up to ``chunk``; return their losses."""
        losses: list[float] = []
        for first in range(0, len(episodes), chunk):
            members = episodes[first : first + chunk]
            stack_losses, gradient = self._stacked_gradients(self.method, stack(members), total)
            finite = stack_losses.isfinite()
            if finite.all():
                self._add(gradient)
            elif finite.any():  # one that diverged would spoil the others' gradient
                fine = [episode for episode, whether in zip(members, finite) if whether]
                self._run_stacked(fine, chunk, total)
            losses += stack_losses.tolist()
        return losses

    def _run_alone(self, episodes: list[EpisodeBatch], at_once: int, total: int) -> list[float]:
        """Run episodes one by one, in turn or side by side on threads; return their losses."""
        together = at_once > 1 and len(episodes) > 1
        run = partial(_side_by_side, at_once) if together else _in_turn
        losses = []
        for loss, gradient in run(partial(self._gradients, total=total), self.method, episodes):
            if loss.isfinite():
                self._add(gradient)
            losses.append(loss.item())
        return losses

    def _add(self, gradient: Sequence[Tensor | None]) -> None:
        """Add to ``.grad`` of the parameters that learn, in their order."""
        for value, slope in zip(_learnt(self.method), gradient):
            if slope is None:
                continue
            if value.grad is None:
                value.grad = slope.clone()  # two parameters may have received the same tensor
            else:
                value.grad.add_(slope)

    def plan(self, episode: EpisodeBatch) -> Plan:
        """Return how tasks of this episode's size run; the first time, it is measured and logged.

        Raises
        ------
        ValueError
            If ``engine`` is "stacked", but the tasks cannot be stacked.
        MemoryError
            If a single task needs more memory than is free.
        """
        size = _size(episode)
        if size not in self._plans:
            needed = memory_of_task(self.method, _padded(episode))
            free = available_memory(device_of(self.method))
            _refuse_beyond(free, needed, size)
            obstacle = self._obstacle(episode, needed)
            if obstacle and self.engine == "stacked":
                raise ValueError(
                    f"engine must be 'auto' or 'loop', because 'stacked' is impossible here "
                    f"({obstacle}): set engine"
                )
            tasks = self._room(needed, free) // needed
            how = f"up to {tasks} tasks stacked"
            if obstacle:
                tasks = min(tasks, self._threads(episode, needed))
                how = f"{tasks} tasks side by side" if tasks > 1 else "tasks in turn"
                how = f"{how} ({obstacle})"
            log.info(
                "support %d, query %d clips of up to %d frames: %s; %.0f MB per task",
                *size[:3],
                how,
                needed / MEGABYTE,
            )
            self._plans[size] = Plan(tasks, not obstacle, tasks * needed)
        return self._plans[size]

    def _room(self, needed: int, free: int) -> int:
        """Return the bytes that the tasks of a chunk may need together."""
        if device_of(self.method) == CPU:
            return min(3 * needed // 2 + SPARE, free)
        return max(needed, free // SHARE)  # a GPU is idle while small operations are prepared

    def _threads(self, episode: EpisodeBatch, needed: int) -> int:
        """Return how many tasks may run side by side."""
        threads = torch.get_num_threads()
        large = needed > LARGE_CONVOLUTION  # small ones would wait for the interpreter
        alone = self.engine == "loop" or device_of(self.method) != CPU or not large
        if alone or threads == 1 or _draws(self.method, episode):
            return 1
        return threads

    def _obstacle(self, episode: EpisodeBatch, needed: int) -> str:
        """Return why tasks are not stacked, or "" if they are."""
        if self.engine == "loop":
            return "as asked"
        traits = method_traits(self.method)
        if not traits.stackable:
            return f"{type(self.method).__name__} takes one episode at a time"
        layers = list(self.method.modules())
        if any(isinstance(m, _NormBase) for m in layers):
            return "normalisation by batches must not mix tasks"
        if self.engine == "auto" and (reason := self._faster_alone(layers, needed)):
            return reason
        try:
            devices = generators(device_of(self.method))
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                cast(LearningMethod, self.method).loss(stack([episode, episode]))
        except Exception as error:  # whatever a backbone does to tensors that stand for many
            return f"a layer cannot be stacked: {str(error).splitlines()[0]}"
        return ""

    def _faster_alone(self, layers: list[nn.Module], needed: int) -> str:
        """Return which layers or operations make stacking slower, or "" if none do."""
        on_cpu = device_of(self.method) == CPU
        if on_cpu and any(isinstance(m, nn.Conv2d | nn.Conv3d) for m in layers):
            return "2-D convolutions are faster alone"
        first_order = not method_traits(self.method).second_order
        if first_order and any(isinstance(m, nn.RNNBase) for m in layers):
            return "recurrent layers are faster alone in first order"
        large = LARGE_CONVOLUTION if _has_convolutions(self.method) else LARGE
        if on_cpu and needed > large:
            return "operations as large as these are faster alone"
        return ""


def _has_convolutions(method: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv1d) for module in method.modules())


def _learnt(method: nn.Module) -> list[nn.Parameter]:
    return [value for value in method.parameters() if value.requires_grad]


def _gradients(method: nn.Module, episode: EpisodeBatch, total: int, mixed: bool) -> LossGradient:
    """Return the loss of an episode or a stack, and the gradient of its sum / ``total``."""
    if _has_convolutions(method):
        episode = episode.map(_channels_apart)
    with _mixed_precision(method) if mixed else nullcontext():
        losses = cast(LearningMethod, method).loss(episode)
    mean = losses.sum() / total
    return losses.detach(), torch.autograd.grad(mean, _learnt(method), allow_unused=True)


def _mixed_precision(method: nn.Module) -> torch.autocast:
    # Without a cache: one that inner steps fill would hold graphs that they have used up.
    return torch.autocast(device_of(method).type, torch.bfloat16, cache_enabled=False)


def _compiled(gradients: Gradients, backend: str | Callable[..., Any] = "inductor") -> Gradients:
    """Compile loss and gradient as one piece, so that nothing has to be stored in between."""
    settings = {
        "trace_autograd_ops": True,
        "recompile_limit": COMPILED_SIZES,
        "fail_on_recompile_limit_hit": True,  # otherwise it goes on uncompiled, without a word
    }
    if not all(hasattr(torch._dynamo.config, name) for name in settings):
        raise ImportError(
            "compile needs a PyTorch that can compile gradients, from 2.11 on, not "
            f"{torch.__version__}: pip install --upgrade torch, or leave compile out"
        )
    compiled = torch.compile(gradients, dynamic=False, backend=backend)
    return torch._dynamo.config.patch(settings)(compiled)


def _in_turn(
    gradients: Gradients, method: nn.Module, episodes: Sequence[EpisodeBatch]
) -> Iterator[LossGradient]:
    """Yield loss and gradient of each episode, in their order."""
    return (gradients(method, episode) for episode in episodes)


def _side_by_side(
    workers: int, gradients: Gradients, method: nn.Module, episodes: Sequence[EpisodeBatch]
) -> Iterator[LossGradient]:
    """Yield loss and gradient of each episode, in their order; each thread runs one at a time."""
    threads, workers = torch.get_num_threads(), min(workers, len(episodes))
    shared = {id(tensor): tensor for tensor in chain(method.parameters(), method.buffers())}

    def run(episode: EpisodeBatch) -> LossGradient:
        # Calling a module with other parameters changes it during the call. So each task has a
        # module of its own, around the same tensors.
        return gradients(copy.deepcopy(method, dict(shared)), episode)

    # Kernels are chosen for all threads at once: the threads would undo each other's choice.
    kernels = own_kernels(method) if method_traits(method).second_order else nullcontext()
    each = max(threads // workers, 1)
    pool = ThreadPoolExecutor(workers, "task", torch.set_num_threads, (each,))
    with cpu_threads(each), kernels, pool:
        yield from pool.map(run, episodes)


def _draws(method: nn.Module, episode: EpisodeBatch) -> bool:
    """Return whether the loss draws random numbers; threads would draw them in any order."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        cast(LearningMethod, method).loss(episode)
        return not torch.equal(before, torch.get_rng_state())


def memory_of_task(method: nn.Module, episode: EpisodeBatch) -> int:
    """Return the bytes that one episode's loss and gradient need at their peak.

    They are computed on a copy of the method, as long as that takes at most ``SPARE`` and what is
    free. Beyond that the need is derived from sizes alone (PyTorch's "meta" device), which is
    slower but takes no memory. A method that looks at values is computed in any case.
    """
    with torch.random.fork_rng(devices=generators(device_of(method))):
        limit = min(SPARE, available_memory(device_of(method)))
        with suppress(MemoryError):
            return _peak(copy.deepcopy(method), episode, limit)
        try:
            return _peak(copy.deepcopy(method).to("meta"), episode.to("meta"))
        except Exception:  # whatever a backbone does to tensors without values
            return _peak(copy.deepcopy(method), episode)


def _peak(method: nn.Module, episode: EpisodeBatch, limit: float = math.inf) -> int:
    """Return the peak bytes of loss and gradient; MemoryError beyond the limit."""
    with PeakMemory(limit) as memory:
        cast(LearningMethod, method).loss(episode).backward()
    return max(memory.peak, 1)


def _refuse_beyond(available: int, needed: int, size: tuple[int, ...]) -> None:
    """Refuse a task that needs more bytes than are available."""
    if needed > available:
        raise MemoryError(
            f"an episode of {size[0]} support and {size[1]} query clips of {size[2]} frames needs "
            f"{needed / MEGABYTE:.0f} MB, but only {available / MEGABYTE:.0f} MB are free: set "
            "checkpoint_steps = true, take fewer inner steps or clips, or first order"
        )


def _size(episode: EpisodeBatch) -> tuple[int, ...]:
    """Return the number of support clips, query clips, frames (up to a power of 2), other clips."""
    sides = [side for side in (episode.support, episode.query, episode.other) if side is not None]
    frames = max(p.mask.shape[-1] for side in sides for p in side.modalities.values())
    others = 0 if episode.other is None else len(episode.other)
    return len(episode.support), len(episode.query), 1 << (frames - 1).bit_length(), others


def _channels_apart(batch: Batch) -> Batch:
    """Return the same values in the memory layout of convolutions over time.

    Otherwise these would copy the clips in every inner step.
    """
    modalities = {
        name: Padded(padded.values.mT.contiguous().mT, padded.mask)
        for name, padded in batch.modalities.items()
    }
    return replace(batch, modalities=modalities)


def _padded(episode: EpisodeBatch) -> EpisodeBatch:
    """Return the episode padded to the largest of its size."""
    frames = _size(episode)[2]

    def longest(batch: Batch) -> Batch:
        modalities = {name: padded.lengthened(frames) for name, padded in batch.modalities.items()}
        return replace(batch, modalities=modalities)

    return episode.map(longest)
