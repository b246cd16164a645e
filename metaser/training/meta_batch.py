"""The gradient of a meta-batch: its tasks adapted together, in chunks, or one after the other."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.contracts import changing_losses, method_traits
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
MEGABYTE = 2**20
SPARE = 128 * MEGABYTE
"""A chunk of tasks may need this much more than one and a half times what one task needs."""

SHARE = 4
"""On a GPU a chunk may need this part of the free memory: other processes may use the GPU, too."""

LARGE, LARGE_CONVOLUTION = 64 * MEGABYTE, 8 * MEGABYTE
"""A task that needs more than this has operations that fill a processor by themselves: stacked,
they no longer fit its cache, and take longer."""

COMPILED_SIZES = 64
"""Different sizes of episodes, and methods in one process, that may be compiled."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How the tasks of one size run.

    Attributes
    ----------
    tasks : int
        Tasks that run at once.
    stacked : bool
        As one stack; otherwise side by side on a processor's threads, or one after the other.
    memory : int
        Bytes that so many tasks need together.
    """

    tasks: int
    stacked: bool
    memory: int


class MetaBatch:
    """Runs a method's loss over the episodes of a meta-batch, and backwards.

    Stacked, every operation runs once for all tasks, each of which has its own parameters: that
    pays where operations are small. Episodes of different size are stacked apart, and stacks are
    cut into chunks of bounded memory. Where operations are large, and PyTorch has several threads
    (``torch.set_num_threads``), each thread has a task of its own, because threads that share one
    operation wait for each other. The gradient is the same in any case, but for the draws of
    dropout.

    Parameters
    ----------
    method : nn.Module
        Has ``loss(episode)``; its attribute ``stackable`` tells whether that takes stacks too.
    engine : {"auto", "stacked", "loop"}
        Stack the tasks, or take them in turn. "auto" stacks unless the model has a layer that is
        faster alone (recurrent layers in first order; on a processor, convolutions in two
        dimensions and whatever is large) or that cannot be stacked.
    compile : bool
        Compile the stacked meta-gradient by ``torch.compile``, as one piece: a minute or so at the
        first call for each size of episode. Whether it pays afterwards depends on the model and
        the machine.
    mixed_precision : bool
        Take products and convolutions in bfloat16, the parameters and all else as they are: faster
        on processors (AVX512-BF16, AMX) and GPUs that are made for it, slower on others. The
        gradient is then some per cent off, of deep convolutional nets up to a quarter.

    Raises
    ------
    ValueError
        If stacking is asked for, but the method or a layer cannot be stacked (when it first runs);
        if compiling is asked for of a loss that changes while it trains.
    ImportError
        If compiling is asked for of a PyTorch that cannot compile a gradient.
    MemoryError
        If one task alone needs more memory than there is (before it runs).
    """

    def __init__(
        self,
        method: nn.Module,
        engine: str = "auto",
        compile: bool = False,
        mixed_precision: bool = False,
    ):
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, not {engine!r}")
        if compile and engine == "loop":
            raise ValueError(
                "compile is for stacked tasks, not for engine = 'loop': set engine to 'auto' or "
                "'stacked'"
            )
        changing = changing_losses(method)
        if compile and changing:
            raise ValueError(
                f"compile is for a loss that stays the same while it trains, which {changing[0]} "
                "changes at every step: leave one of them out"
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
            Divide by this instead of the number of episodes, where other processes have the rest.
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
            found = run([episodes[index] for index in members], plan.tasks, total)
            for index, loss in zip(members, found):
                losses[index] = loss
        return losses

    def _run_stacked(self, episodes: list[EpisodeBatch], chunk: int, total: int) -> list[float]:
        """Run episodes of one size in stacks of up to ``chunk``."""
        losses = []
        for first in range(0, len(episodes), chunk):
            own = episodes[first : first + chunk]
            found, slopes = self._stacked_gradients(self.method, stack(own), total)
            finite = found.isfinite()
            if finite.all():
                self._add(slopes)
            elif finite.any():  # one that diverged would spoil the others' gradient
                fine = [episode for episode, whether in zip(own, finite) if whether]
                self._run_stacked(fine, chunk, total)
            losses += found.tolist()
        return losses

    def _run_alone(self, episodes: list[EpisodeBatch], at_once: int, total: int) -> list[float]:
        """Run episodes each for itself, in turn or side by side on threads."""
        together = at_once > 1 and len(episodes) > 1
        run = partial(_side_by_side, at_once) if together else _in_turn
        losses = []
        for loss, slopes in run(partial(self._gradients, total=total), self.method, episodes):
            if loss.isfinite():
                self._add(slopes)
            losses.append(loss.item())
        return losses

    def _add(self, slopes: Sequence[Tensor | None]) -> None:
        for value, slope in zip(_learnt(self.method), slopes):
            if slope is not None and value.grad is None:
                value.grad = slope.clone()  # two parameters may have got one tensor
            elif slope is not None:
                value.grad.add_(slope)

    def plan(self, episode: EpisodeBatch) -> Plan:
        """How tasks of this size run."""
        size = _size(episode)
        if size not in self._plans:
            needed = memory_of_task(self.method, _padded(episode))
            free = available_memory(device_of(self.method))
            _refuse_beyond(free, needed, size)
            obstacle = self._obstacle(episode, needed)
            if obstacle and self.engine == "stacked":
                raise ValueError(
                    f"engine = 'stacked' is impossible here ({obstacle}): set engine to 'auto' or "
                    "'loop'"
                )
            tasks = self._room(needed, free) // needed
            how = f"up to {tasks} tasks stacked"
            if obstacle:
                tasks = min(tasks, self._threads(episode, needed))
                how = f"{tasks} tasks side by side" if tasks > 1 else "tasks in turn"
                how = f"{how} ({obstacle})"
            log.info(
                "support %d, query %d clips of up to %d frames: %s; %.0f MB a task",
                *size[:3],
                how,
                needed / MEGABYTE,
            )
            self._plans[size] = Plan(tasks, not obstacle, tasks * needed)
        return self._plans[size]

    def _room(self, needed: int, free: int) -> int:
        """Bytes that the tasks of a chunk may need together."""
        if device_of(self.method) == CPU:
            return min(3 * needed // 2 + SPARE, free)
        return max(needed, free // SHARE)  # a GPU is idle while small operations are prepared

    def _threads(self, episode: EpisodeBatch, needed: int) -> int:
        """How many tasks may run side by side."""
        threads = torch.get_num_threads()
        large = needed > LARGE_CONVOLUTION  # small ones would wait for the interpreter
        alone = self.engine == "loop" or device_of(self.method) != CPU or not large
        if alone or threads == 1 or _draws(self.method, episode):
            return 1
        return threads

    def _obstacle(self, episode: EpisodeBatch, needed: int) -> str:
        """Why tasks are not stacked; empty if they are."""
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
            own = generators(device_of(self.method))
            with torch.no_grad(), torch.random.fork_rng(devices=own):
                self.method.loss(stack([episode, episode]))
        except Exception as error:  # whatever a backbone does to tensors that stand for many
            return f"a layer cannot be stacked: {str(error).splitlines()[0]}"
        return ""

    def _faster_alone(self, layers: list[nn.Module], needed: int) -> str:
        """Which layers or operations make stacking slower; empty if none do."""
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


def _gradients(
    method: nn.Module, episode: EpisodeBatch, total: int, mixed: bool
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Loss of an episode, or losses of a stack; gradient of their sum divided by ``total``."""
    if _has_convolutions(method):
        episode = episode.map(_channels_apart)
    with _mixed_precision(method) if mixed else nullcontext():
        losses = method.loss(episode)
    mean = losses.sum() / total
    return losses.detach(), torch.autograd.grad(mean, _learnt(method), allow_unused=True)


def _mixed_precision(method: nn.Module) -> torch.autocast:
    # Without a cache: one that inner steps fill would hold graphs that they have used up.
    return torch.autocast(device_of(method).type, torch.bfloat16, cache_enabled=False)


def _compiled(gradients: Callable, backend="inductor") -> Callable:
    """Compile loss and gradient as one piece, which saves what two would have to hand over."""
    settings = {
        "trace_autograd_ops": True,
        "recompile_limit": COMPILED_SIZES,
        "fail_on_recompile_limit_hit": True,  # it would go on uncompiled and say so to nobody
    }
    if not all(hasattr(torch._dynamo.config, name) for name in settings):
        raise ImportError(
            f"compile needs a PyTorch that can compile gradients, from 2.11 on, not "
            f"{torch.__version__}: pip install --upgrade torch, or leave compile out"
        )
    compiled = torch.compile(gradients, dynamic=False, backend=backend)
    return torch._dynamo.config.patch(settings)(compiled)


def _in_turn(gradients: Callable, method: nn.Module, episodes: Sequence[EpisodeBatch]) -> Iterator:
    return (gradients(method, episode) for episode in episodes)


def _side_by_side(
    workers: int, gradients: Callable, method: nn.Module, episodes: Sequence[EpisodeBatch]
) -> Iterator:
    """What ``gradients`` gives of each episode, in their order, by threads with a task each."""
    threads, workers = torch.get_num_threads(), min(workers, len(episodes))
    shared = {id(tensor): tensor for tensor in chain(method.parameters(), method.buffers())}

    def run(episode: EpisodeBatch):
        # To call a module with other parameters is to change it for that time. So each has a
        # module of its own, around the same tensors.
        return gradients(copy.deepcopy(method, dict(shared)), episode)

    # The choice of kernels is made for all threads, which would undo it for each other.
    kernels = own_kernels(method) if method_traits(method).second_order else nullcontext()
    each = max(threads // workers, 1)
    pool = ThreadPoolExecutor(workers, "task", torch.set_num_threads, (each,))
    with cpu_threads(each), kernels, pool:
        yield from pool.map(run, episodes)


def _draws(method: nn.Module, episode: EpisodeBatch) -> bool:
    """Whether the loss draws random numbers: side by side, chance would say which task's first."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        method.loss(episode)
        return not torch.equal(before, torch.get_rng_state())


def memory_of_task(method: nn.Module, episode: EpisodeBatch) -> int:
    """Bytes that one episode's loss and gradient need at their peak.

    Found by doing it on a copy, as long as that takes less than ``SPARE``, or all that is free;
    beyond, from sizes alone, which is slower, but takes no memory. A method that looks at values
    has to do it in any case.
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
