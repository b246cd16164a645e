"""Meta-gradients by MetaSER's engines, by other libraries and by a plain loop: ratios first.

Run with ``python benchmarks/speed/meta_learning.py``; README.md beside it tells what is measured.
Needs Linux, for the memory that a process takes.
"""

import argparse
import ctypes
import gc
import itertools
import json
import math
import multiprocessing
import os
import platform
import resource
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from metaser.backbones import MLP, Recurrent
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.machine import device_of
from metaser.methods.learn2learn import maml as learn2learn_maml
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.meta_batch import MetaBatch

ORDERS = ("first", "second")
WAYS, SHOTS, QUERIES = 4, 5, 15
RATE = 1 / 16  # exact in every floating-point format
MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product tells the peak of a processor or GPU."""

Run = Callable[[list[EpisodeBatch]], object]
"""Adds the gradient of the mean query loss of some episodes to ``.grad`` of the parameters."""


# The nets.


class Conv1d(nn.Module):
    """Strided convolutions over time, then the mean frame."""

    dim = 64

    def __init__(self):
        super().__init__()
        layers = [
            nn.Sequential(nn.Conv1d(64, 64, size, stride=2, padding=size // 2), nn.ReLU())
            for size in (5, 5, 3)
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim) of clips that are all as long as the tensor."""
        return self.layers(audio.values.transpose(1, 2)).mean(dim=-1)


class Conv2d(nn.Module):
    """Strided convolutions over time and frequency with group normalisation, then the mean."""

    dim = 64

    def __init__(self):
        super().__init__()
        widths = (1, 16, 32, 32, 64)
        layers = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU()
            )
            for before, after in zip(widths, widths[1:])
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim) of clips that are all as long as the tensor."""
        return self.layers(audio.values.unsqueeze(1)).mean(dim=(-2, -1))


class StockLSTM(nn.Module):
    """``Recurrent`` by PyTorch's own layer, as users of the other libraries have it."""

    dim = 128

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(20, self.dim, num_layers=2, batch_first=True)

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim) of clips that are all as long as the tensor."""
        return self.lstm(audio.values)[0][:, -1]


@dataclass(frozen=True)
class Net:
    """What is trained, and the shape of its input."""

    backbone: Callable[[], nn.Module]
    frames: int
    channels: int
    hidden: int | None = None
    stock: Callable[[], nn.Module] | None = None
    """The same backbone without MetaSER's own layers, for the others; if it has such layers."""

    def model(self, stock: bool, device: str) -> Model:
        """The same parameters each time."""
        torch.manual_seed(0)
        backbone = self.stock if stock and self.stock else self.backbone
        return Model(backbone(), WAYS, self.hidden).to(device)

    def episodes(self, count: int, device: str, frames: int | None = None) -> list[EpisodeBatch]:
        """The same random episodes each time."""
        generator = torch.Generator().manual_seed(1)

        def batch(shots: int) -> Batch:
            size = (WAYS * shots, frames or self.frames, self.channels)
            audio = Padded(
                torch.randn(size, generator=generator), torch.ones(size[:2], dtype=torch.bool)
            )
            targets = torch.arange(WAYS).repeat_interleave(shots)
            return Batch({"audio": audio}, targets, torch.ones(WAYS, dtype=torch.bool))

        return [EpisodeBatch(batch(SHOTS), batch(QUERIES)).to(device) for _ in range(count)]


NETS = {
    "mlp": Net(partial(MLP, 88, (128, 64)), frames=1, channels=88),
    "conv1d": Net(Conv1d, frames=200, channels=64),
    "conv2d": Net(Conv2d, frames=200, channels=64),
    "lstm": Net(partial(Recurrent, 20), frames=120, channels=20, hidden=128, stock=StockLSTM),
}


# The contenders: each takes (model, inner steps, whether second order) and returns a Run.


def loss(scores: Callable[[dict[str, Padded]], Tensor], batch: Batch) -> Tensor:
    """Cross-entropy; every task here has all classes."""
    return cross_entropy(scores(batch.modalities), batch.targets)


def plain(model: Model, steps: int, second_order: bool) -> Run:
    """A loop over the episodes, written by hand."""
    start = dict(model.named_parameters())

    def under(parameters: dict[str, Tensor]) -> Callable[[dict[str, Padded]], Tensor]:
        return lambda modalities: functional_call(model, parameters, (modalities,))

    def run(episodes: list[EpisodeBatch]) -> None:
        for episode in episodes:
            fast = start
            for _ in range(steps):
                gradients = torch.autograd.grad(
                    loss(under(fast), episode.support), fast.values(), create_graph=second_order
                )
                fast = {name: fast[name] - RATE * g for name, g in zip(fast, gradients)}
            (loss(under(fast), episode.query) / len(episodes)).backward()

    return run


def learn2learn(model: Model, steps: int, second_order: bool) -> Run:
    """``MAML``: clone and adapt."""
    learner = learn2learn_maml()(model, lr=RATE, first_order=not second_order)

    def run(episodes: list[EpisodeBatch]) -> None:
        for episode in episodes:
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(loss(clone, episode.support))
            (loss(clone, episode.query) / len(episodes)).backward()

    return run


def higher(model: Model, steps: int, second_order: bool) -> Run:
    """``innerloop_ctx``; first order without its graph, by the gradient at the adapted net."""
    from higher import innerloop_ctx

    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)

    def run(episodes: list[EpisodeBatch]) -> None:
        for episode in episodes:
            with innerloop_ctx(
                model,
                optimiser,
                copy_initial_weights=False,
                track_higher_grads=second_order,
            ) as (net, inner):
                for _ in range(steps):
                    inner.step(loss(net, episode.support))
                judged = loss(net, episode.query) / len(episodes)
                if second_order:
                    judged.backward()
                else:
                    add_gradients(model, torch.autograd.grad(judged, list(net.parameters())))

    return run


def torchopt(model: Model, steps: int, second_order: bool) -> Run:
    """``MetaSGD`` on a clone; first order by ``stop_gradient`` after each step."""
    from torchopt import MetaSGD
    from torchopt.utils import module_clone, stop_gradient

    def run(episodes: list[EpisodeBatch]) -> None:
        for episode in episodes:
            net = module_clone(model, by="reference")
            inner = MetaSGD(net, lr=RATE)
            for _ in range(steps):
                inner.step(loss(net, episode.support))
                if not second_order:
                    stop_gradient(net)
            judged = loss(net, episode.query) / len(episodes)
            if second_order:
                judged.backward()
            else:
                add_gradients(model, torch.autograd.grad(judged, list(net.parameters())))

    return run


def parallel_metalearn(model: Model, steps: int, second_order: bool, back_end: str) -> Run:
    """``MAML.step`` with an outer optimiser that does nothing."""
    from metalearn.algorithms import MAML as Peer
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss import CategoricalAccuracy, CrossEntropy

    class Adapter(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, values: Tensor, **_) -> dict[str, Tensor]:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
            return {"logits": self.model({"audio": Padded(values, mask)})}

        def get_fast_weights(self) -> OrderedDict:
            return OrderedDict(self.named_parameters())

    net = Adapter()
    peer = Peer(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0),
        inner_optimizer=InnerSGD(
            net.get_fast_weights(), first_order=not second_order, inner_lr=RATE, learn_lr=False
        ),
        support_loss_fn=CrossEntropy(metric_fn=CategoricalAccuracy()),
        inner_steps=steps,
        backend=back_end,
        device=device_of(model),
    )

    def side(batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        values = torch.stack([batch.modalities["audio"].values for batch in batches])
        return values, {"labels": torch.stack([batch.targets for batch in batches])}

    def run(episodes: list[EpisodeBatch]) -> None:
        support, query = (
            side([getattr(episode, part) for episode in episodes]) for part in ("support", "query")
        )
        peer.step(iter([(*support, *query)]))

    return run


def metaser(model: Model, steps: int, second_order: bool, checkpoint=False, **engine) -> Run:
    """``MetaBatch`` around ``MAML``."""
    method = MAML(
        model,
        inner_steps=steps,
        inner_rate=RATE,
        second_order=second_order,
        checkpoint_steps=checkpoint,
    )
    return MetaBatch(method, **engine).backward


def add_gradients(model: Model, gradients: tuple[Tensor, ...]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


CONTENDERS: dict[str, Callable[[Model, int, bool], Run]] = {
    "learn2learn": learn2learn,
    "plain": plain,
    "higher": higher,
    "torchopt": torchopt,
    "parallel-metalearn": partial(parallel_metalearn, back_end="vmap"),
    "parallel-metalearn-loop": partial(parallel_metalearn, back_end="sequential"),
    "metaser": metaser,
    "metaser-loop": partial(metaser, engine="loop"),
    "metaser-stacked": partial(metaser, engine="stacked"),
    "metaser-checkpointed": partial(metaser, checkpoint=True),
    "metaser-compiled": partial(metaser, compile=True),
    "metaser-mixed": partial(metaser, mixed_precision=True),
}
COMPILED, MIXED = "metaser-compiled", "metaser-mixed"
ONE_BY_ONE = {
    *("learn2learn", "plain", "higher", "torchopt"),
    *("parallel-metalearn-loop", "metaser-loop"),
}
"""Take one episode after the other, so that fewer tell the time of many."""
CHECKPOINTED = "metaser-checkpointed"
PACKAGES = ("torch", "learn2learn", "higher", "torchopt", "parallel-metalearn")


# Measuring.


@dataclass(frozen=True)
class Cell:
    """One line of conditions; all contenders meet in it."""

    net: str
    order: str
    meta_batch: int
    steps: int

    def start(self, contender: str, device: str) -> tuple[Model, Run]:
        """A fresh model, and the contender that works on it."""
        stock = not contender.startswith("metaser")
        model = NETS[self.net].model(stock, device)
        run = CONTENDERS[contender](model, self.steps, self.order == "second")
        if stock and NETS[self.net].stock and self.order == "second":
            return model, without_cudnn(run)
        return model, run


def without_cudnn(run: Run) -> Run:
    """What PyTorch asks for, as cuDNN's recurrent layers have no second derivative."""

    def run_without(episodes: list[EpisodeBatch]) -> None:
        with torch.backends.cudnn.flags(enabled=False):
            run(episodes)

    return run_without


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Make models and episodes of another floating-point type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def brief(error: BaseException) -> str:
    """One line that says what went wrong."""
    if isinstance(error, ModuleNotFoundError):
        return "not installed"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}".rstrip(": ")


@cache
def gradient(contender: str, net: str, order: str, dtype: torch.dtype, device: str) -> Tensor:
    """The meta-gradient of two short episodes after two steps, all parameters in one vector."""
    with precision(dtype):
        model, run = Cell(net, order, meta_batch=2, steps=2).start(contender, device)
        run(NETS[net].episodes(2, device, frames=min(NETS[net].frames, 24)))
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


@cache
def distance(contender: str, net: str, order: str, dtype: torch.dtype, device: str) -> float:
    """How far a contender's gradient is from the plain loop's, relative to its norm."""
    expected, found = (gradient(c, net, order, dtype, device) for c in ("plain", contender))
    return float((found - expected).norm() / expected.norm())


@cache
def failure(contender: str, net: str, order: str, device: str = "cpu") -> str | None:
    """Why a contender cannot take part: it is absent, fails, or gives another gradient."""
    single = 0.3 if contender == MIXED else 1e-3
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, single)):
        try:
            off = distance(contender, net, order, dtype, device)
        except Exception as error:
            return brief(error)
        if not off <= tolerance:
            return f"another gradient: {off:.1e} off in {dtype}".replace("torch.", "")
    return None


@cache
def flops(net: str, order: str, steps: int) -> int:
    """Floating-point operations of the matrix products and convolutions of one episode.

    Counted on the plain loop in float64, where the LSTM is made of products that are counted.
    """
    with precision(torch.float64):
        _, run = Cell(net, order, 1, steps).start("plain", "cpu")
        episodes = NETS[net].episodes(1, "cpu")
        with FlopCounterMode(display=False) as counter:
            run(episodes)
    return counter.get_total_flops()


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Wall-clock time of one call, until a GPU has done its part, too."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def matrix_peak(device: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of three."""
    side = MATRIX[device]
    a, b = torch.rand(2, side, side, device=device)
    return 2 * side**3 / min(seconds(partial(torch.mm, a, b)) for _ in range(3))


def set_up(options: argparse.Namespace) -> None:
    """Have a process compute as asked, and an allocation fail that would be beyond the limit."""
    torch.set_num_threads(options.threads)
    size = int(options.memory_limit * 2**30)
    if options.device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        return
    torch.backends.cudnn.allow_tf32 = False  # single precision is the same for all
    share = size / torch.cuda.get_device_properties(options.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))


def status(key: str) -> int:
    """A size from the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def peak_memory(cell: Cell, contender: str, options: argparse.Namespace) -> int:
    """Bytes that one meta-gradient takes at its peak; of main memory, in its own process."""
    set_up(options)
    model, run = cell.start(contender, options.device)
    count = 2 if contender in ONE_BY_ONE else cell.meta_batch
    episodes = NETS[cell.net].episodes(count, options.device)
    run(episodes if contender == COMPILED else episodes[:1])  # loads what is loaded once
    model.zero_grad()
    gc.collect()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(episodes)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    run(episodes)
    return status("VmHWM") - before


def own_process() -> ProcessPoolExecutor:
    """One process that has imported the same and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metaser.training.meta_batch", "torch.utils.flop_counter"])
    return ProcessPoolExecutor(1, mp_context=context)


turns: list[Callable[[], float]] = []
"""What times the contender whose process this is."""


def prepare(cell: Cell, contender: str, options: argparse.Namespace) -> float:
    """Warm a contender up in its own process; return its first call's seconds."""
    set_up(options)
    model, run = cell.start(contender, options.device)
    episodes = NETS[cell.net].episodes(cell.meta_batch, options.device)
    budget = options.seconds

    def work() -> None:
        model.zero_grad()
        run(episodes)

    if contender == COMPILED:
        slow, first = False, seconds(work)
    else:
        first = seconds(partial(run, episodes[:1]))
        each = seconds(partial(run, episodes[:1]))
        if contender in ONE_BY_ONE:
            del episodes[max(1, round(budget / each)) :]
        slow = each * len(episodes) > 20 * budget
    repeats = 1 if slow else max(1, round(budget / min(seconds(work), seconds(work))))
    turns.append(lambda: seconds(work, repeats) / len(episodes))
    return first


def take_turn() -> float:
    """Seconds an episode of the contender whose process this is."""
    return turns[-1]()


def measure(cell: Cell, contenders: list[str], options: argparse.Namespace) -> dict:
    """Time the contenders in turns, round by round; also the matrix product."""
    rows, processes, peaks = {}, {}, []
    net, order, device = cell.net, cell.order, options.device
    with ExitStack() as stack:
        for name in contenders:
            row = rows[name] = {"failure": failure(name, net, order, device)}
            try:
                if row["failure"] is None:
                    row["off"] = distance(name, net, order, torch.float32, device)
                    process = stack.enter_context(own_process())
                    if options.memory:  # a GPU's is told by PyTorch, in any process
                        fresh = own_process() if device == "cpu" else nullcontext(process)
                        with fresh as apart:
                            row["memory"] = apart.submit(peak_memory, cell, name, options).result()
                    first = process.submit(prepare, cell, name, options)
                    row["first_call"], row["seconds"] = first.result(), []
                    processes[name] = process
            except Exception as error:
                row["failure"] = brief(error)
        for _ in range(options.rounds):
            peaks.append(matrix_peak(device))
            for name, process in processes.items():
                rows[name]["seconds"].append(process.submit(take_turn).result())
    return {
        "cell": asdict(cell),
        "flops": flops(net, order, cell.steps),
        "matrix_peak": peaks,
        "contenders": rows,
    }


# Reporting.


def machine(options: argparse.Namespace) -> dict[str, str | int]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    gpu = {"GPU": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    return {
        **gpu,
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": options.threads,
        "Python": platform.python_version(),
        **versions,
    }


def ratios(row: dict, reference: dict) -> float | None:
    """How many times faster than the reference, by the median over rounds."""
    if "seconds" not in row or "seconds" not in reference:
        return None
    return median(b / a for a, b in zip(row["seconds"], reference["seconds"]))


def figure(value: float) -> str:
    """Three digits, more before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 0.01))))}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, aligned for reading as it is."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in lines
    )


def report(results: list[dict]) -> str:
    """The machine, the ratios at a glance, and every figure, as Markdown."""
    reasons: list[str] = []

    def note(reason: str) -> str:
        if reason not in reasons:
            reasons.append(reason)
        return f"[{reasons.index(reason) + 1}]"

    names = [name for name in CONTENDERS if any(name in r["contenders"] for r in results)]
    glance, details = [], []
    for result in results:
        cell = [str(value) for value in result["cell"].values()]
        peak = median(result["matrix_peak"])
        reference = result["contenders"].get("learn2learn", {})
        line = dict.fromkeys(names, "")
        for name, row in result["contenders"].items():
            if row["failure"]:
                line[name] = note(row["failure"])
                details.append([*cell, name, line[name], "", "", "", "", ""])
                continue
            ratio = ratios(row, reference)
            speed = 1 / median(row["seconds"])
            line[name] = "" if ratio is None else f"x{ratio:.2f}"
            memory = figure(row["memory"] / 2**20) if "memory" in row else ""
            share = f"{100 * speed * result['flops'] / peak:.0f}"
            first = figure(row["first_call"]) if name == COMPILED else ""
            off = f"{100 * row['off']:.2f}" if "off" in row else ""
            details.append([*cell, name, line[name], figure(speed), memory, share, first, off])
        glance.append([*cell, *line.values()])
    conditions = ["net", "order", "meta-batch", "steps"]
    about = ", ".join(f"{key} {value}" for key, value in results[0]["machine"].items())
    peak = median(p for result in results for p in result["matrix_peak"])
    device = "cuda" if "GPU" in results[0]["machine"] else "cpu"
    side, where = MATRIX[device], "GPU" if device == "cuda" else "main"
    return "\n\n".join(
        [
            f"Machine: {about}; {peak / 1e9:.0f} GFLOP/s in a float32 product of two "
            f"{side} x {side} matrices, median of all cells.",
            "Episodes per second as a multiple of learn2learn's in the same rounds, median of "
            f"{min(len(result['matrix_peak']) for result in results)} rounds or more:",
            table([*conditions, *names], glance),
            f"All figures. Memory is the {where} memory that one meta-gradient takes at its peak; "
            "the share is that of the matrix product's speed, which ran in the same rounds; the "
            "last column is how far the gradient is from the plain loop's, in float32:",
            table(
                [
                    *conditions,
                    *("contender", "x learn2learn", "episodes/s"),
                    *("peak MB", "% of peak", "compile s", "% off"),
                ],
                details,
            ),
            *(f"[{number}] {reason}" for number, reason in enumerate(reasons, 1)),
        ]
    )


def read(path: Path | None) -> list[dict]:
    """The cells that were measured before."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, results: list[dict]) -> None:
    """Replace the file at once, so that an interrupted run leaves whole lines."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(result) + "\n" for result in results))
    part.replace(path)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--meta-batches", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=None)
    parser.add_argument("--compile", action="store_true", help=f"also time {COMPILED}")
    parser.add_argument("--rounds", type=int, default=5, help="fewer only to try it")
    parser.add_argument("--seconds", type=float, default=0.1, help="a contender and round")
    parser.add_argument("--device", choices=MATRIX, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory-limit", type=float, default=8, help="GB, of a contender")
    parser.add_argument("--out", type=Path, help="JSON lines; cells that are there are kept")
    parser.add_argument("--markdown", type=Path, help="write the report there, too")
    options = parser.parse_args()
    usual = [name for name in CONTENDERS if name not in (COMPILED, MIXED)]
    chosen = options.contenders or usual
    options.contenders = [
        name for name in CONTENDERS if name in chosen or (options.compile and name == COMPILED)
    ]
    return options


def main() -> None:
    """Measure the cells that are not there yet, then print the report of all."""
    options = arguments()
    set_up(options)
    here = {**machine(options), "rounds": options.rounds}
    results = read(options.out)
    if any(result["machine"] != here for result in results):
        raise SystemExit(f"{options.out} was measured elsewhere or otherwise: choose another --out")
    seen = {(Cell(**result["cell"]), *result["contenders"]) for result in results}
    product = (options.nets, options.orders, options.meta_batches, options.steps)
    cells = [Cell(*values) for values in itertools.product(*product)]
    interrupted = False
    try:
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("", total=len(cells))
            for cell in cells:
                progress.update(bar, description=" ".join(map(str, asdict(cell).values())))
                names = list(options.contenders)
                if CHECKPOINTED in names and (cell.order == "first" or cell.steps == 1):
                    names.remove(CHECKPOINTED)  # there would be nothing to save
                if (cell, *names) not in seen:
                    results.append({**measure(cell, names, options), "machine": here})
                    if options.out:
                        write(options.out, results)
                progress.advance(bar)
    except KeyboardInterrupt:
        interrupted = True
    if results:
        text = report(results)
        print(text)
        if options.markdown:
            options.markdown.write_text(text + "\n")
    if interrupted:
        raise SystemExit("Interrupted: with --out the same command goes on where this one stopped")


if __name__ == "__main__":
    main()
