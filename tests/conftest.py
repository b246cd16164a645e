"""Fixtures that several test files share."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from metaser.benchmark.materials import number_domains
from metaser.episodes import TaskSampler
from metaser.features import Features
from metaser.tasks import Task
from metaser.training import Source

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _torch_draws() -> Iterator[None]:
    """PyTorch draws the same in a test whichever tests ran before it, and in those after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A CUDA GPU; without one the test is skipped, visibly."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and a PyTorch that is built for it")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Data root with real corpora; without one the test is skipped, visibly."""
    root = Path(os.environ.get("METASER_DATA") or SHARED / "corpora")
    if not root.is_dir():
        pytest.skip(f"needs real corpora: set METASER_DATA (looked at {root})")
    return root


@pytest.fixture(scope="session")
def encoders() -> Path:
    """Folder with real pretrained encoders; skipped, visibly, without one."""
    path = Path(os.environ.get("METASER_ENCODERS") or SHARED / "models")
    if not (path / "whisper-tiny.en").is_dir():
        pytest.skip(f"needs whisper-tiny.en: set METASER_ENCODERS (looked at {path})")
    return path


@pytest.fixture(scope="session")
def shemo_list() -> Path:
    """List of the files of ShEMO with speaker and emotion; skipped, visibly, without one."""
    path = Path(os.environ.get("METASER_SHEMO_LIST") or SHARED / "docs" / "shemo_files.csv")
    if not path.is_file():
        pytest.skip(f"needs the list of ShEMO's files: set METASER_SHEMO_LIST (looked at {path})")
    return path


CLASSES = ("angry", "happy", "neutral", "sad")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Make a task in memory: each speaker says ``clips`` clips of each class."""

    def make(name="it_made", speakers=6, clips=4, classes=CLASSES, **columns) -> Task:
        rows = [
            (f"{speaker}_{emotion}_{take}.wav", f"s{speaker}", emotion, speaker)
            for speaker in range(speakers)
            for emotion in classes
            for take in range(clips)
        ]
        table = pd.DataFrame(rows, columns=["file", "speaker", "emotion", "unit"])
        table["clique"] = np.arange(len(table))
        return Task(
            name=name,
            language=name[:2],
            corpus=name[3:],
            version=1,
            speakers=speakers,
            utterances=len(table),
            licence="made up",
            homepage="https://example.org",
            reference="none",
            synthetic=True,
            folder=Path(name),
            classes=tuple(classes),
            table=table.assign(**columns),
        )

    return make


@pytest.fixture(scope="session")
def plant() -> Callable[..., Features]:
    """Make features in which the classes of a task have means of their own."""

    def make(task: Task, strength=2.0, channels=6, frames=3, seed=0) -> Features:
        rng = np.random.default_rng(seed)
        means = np.random.default_rng(99).standard_normal((len(CLASSES), channels)) * strength
        lengths = rng.integers(1, frames + 1, len(task.table))
        values = rng.standard_normal((len(task.table), frames, channels))
        values += means[[CLASSES.index(name) for name in task.table["emotion"]], None]
        values *= (np.arange(frames) < lengths[:, None])[..., None]
        hashes = np.array([f"{row:032x}" for row in range(len(lengths))])
        (domains,) = number_domains([task])
        return Features(values.astype(np.float32), lengths, hashes, domains=domains)

    return make


@pytest.fixture
def sources(make_task, plant) -> tuple[list[Source], list[Source]]:
    """Sources and validation sources: two tasks, the speakers apart."""
    found = []
    for units in ((0, 1, 2, 3), (4, 5)):
        for seed, name in enumerate(("it_made", "ur_made")):
            task = make_task(name)
            sampler = TaskSampler(task, CLASSES, 1, 2, units=units)
            found.append(Source(sampler, plant(task, 0.5, seed=seed)))
    return found[:2], found[2:]


@pytest.fixture(scope="session")
def spoken(tmp_path_factory) -> Path:
    """Folder of a small made-up corpus (synthetic speech) in three languages."""
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip('needs espeakng_loader: pip install "metaser[synthetic]"')
    from metaser.synthetic import generate

    folder = tmp_path_factory.mktemp("spoken") / "made"
    return generate(folder, ("fa", "it", "ur"), speakers=4, sentences=2)
