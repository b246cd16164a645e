"""What one does with MetaSER in Python, by paths and names; ``import metaser`` offers it all."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from metaser.adaptation import adapt as adapting
from metaser.adaptation import evaluate as evaluating
from metaser.adaptation import predict as predicting
from metaser.adaptation.clips import Clips, labelled_folder, labelled_table
from metaser.adaptation.evaluate import Evaluation
from metaser.adaptation.model_file import ModelFile, load, save
from metaser.adaptation.recipe import read_recipe
from metaser.adaptation.train import train_model as train_file
from metaser.benchmark import run
from metaser.features import extract
from metaser.files import Places
from metaser.protocol import Protocol, read_protocol
from metaser.tasks import Task, read_task, require_audio, restrict


def run_benchmark(protocol: str | Path | Protocol, out: str | Path, **options: Any) -> Path:
    """Measure what a results folder lacks of a protocol.

    Parameters
    ----------
    protocol : str, Path or Protocol
        Name of a bundled protocol, path of a TOML file, or a protocol that was read.
    out : str or Path
        Results folder. A run that was stopped goes on in the same folder.
    **options
        ``data``, ``task_folders``, ``targets``, ``methods``, ``jobs``, ``cache``, ``scheduler``,
        ``device``: see ``metaser.benchmark.run``.

    Returns
    -------
    Path
        The file of rows, one JSON object per cell.
    """
    plan = protocol if isinstance(protocol, Protocol) else read_protocol(protocol)
    return run(plan, out, **options)


def train_model(
    out: str | Path,
    *,
    protocol: str | Path | None = None,
    setup: str | None = None,
    method: str | None = None,
    sources: Sequence[str] = (),
    measured_on: Sequence[str] = (),
    data: str | Path | None = None,
    folders: str | Path | Iterable[str | Path] = (),
    cache: str | Path | None = None,
    jobs: int = 1,
    **options: Any,
) -> ModelFile:
    """Train a model on all corpora at hand, measure it on languages left out, and write its file.

    Parameters
    ----------
    out : str or Path
        Model file to write. Training that was stopped goes on.
    protocol, setup, method, sources, measured_on
        What to train: see ``metaser.adaptation.recipe.read_recipe``.
    data, folders, cache, jobs
        Data root, folders of further tasks, feature cache and number of processes.
    **options
        ``seed``, ``draws``, ``console``: see ``metaser.adaptation.train.train_model``.
    """
    recipe = read_recipe(protocol, setup, method, sources, measured_on)
    train_file(out, recipe, Places.at(data, folders, cache, jobs), **options)
    return load(out)


def load_model(path: str | Path, encoder: str | Path | None = None) -> ModelFile:
    """Read a model file, for all functions that take a model.

    Parameters
    ----------
    path : str or Path
        The file, or the name of a model aboard.
    encoder : str or Path, optional
        Folder of the pretrained encoder by which the model hears, in place of where the file says.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError, ValueError
        As in ``metaser.adaptation.model_file.load``.
    """
    return load(path, encoder)


def save_model(model: ModelFile, path: str | Path) -> None:
    """Write a model file, whole or not at all."""
    save(path, model)


def adapt(
    model: str | Path | ModelFile,
    clips: str | Path | Clips | Task,
    *,
    labels: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    speaker: str | None = None,
    shots: int | None = None,
    seed: int = 0,
) -> ModelFile:
    """Adapt a model to a language by a few labelled clips.

    Parameters
    ----------
    model : str, Path or ModelFile
        As ``train_model`` made it; not changed.
    clips : str, Path, Clips or Task
        A folder with sub-folders named by emotion (and speaker below), a table of labels in the
        folder of its clips, labelled files, or a task.
    labels : mapping of str to str, optional
        What the name of a sub-folder means, such as ``{"arrabbiato": "angry"}``.
    drop : sequence of str
        Names of sub-folders to leave out.
    speaker : str, optional
        Who speaks in a folder's clips: "one", "file" or a regular expression, as in ``predict``; by
        default the folders below those of the emotions, if there are any.
    shots : int, optional
        Clips per class, drawn at random; all if not given.
    seed : int
        Chooses them.

    Returns
    -------
    ModelFile
        ``header.adaptation.expected`` is the UAR to expect on new clips of other speakers.
    """
    file = _model(model)
    classes = file.header.classes
    options: dict[str, Any] = {}
    if isinstance(clips, Task):
        task = restrict(require_audio(clips), classes)
        paths = tuple(task.audio / name for name in task.table["file"])
        options = {
            "name": task.name,
            "task_version": task.version,
            "synthetic": task.synthetic,
        }
        clips = Clips(paths, tuple(task.table["emotion"]), tuple(task.table["speaker"]))
    elif not isinstance(clips, Clips):
        options = {"name": Path(clips).resolve().name}
        read = labelled_table if Path(clips).is_file() else labelled_folder
        clips = read(clips, classes, labels, drop, speaker=speaker)
    return adapting.adapt(file, clips, shots=shots, seed=seed, **options)


def predict(
    model: str | Path | ModelFile,
    files: str | Path | Sequence[str | Path],
    *,
    window: float | None = None,
    hop: float | None = None,
    abstain: float = 0.0,
    speaker: str | None = None,
    voice: str | Path | Sequence[str | Path] = (),
    neutral: str | Path | Sequence[str | Path] = (),
) -> pd.DataFrame:
    """Recognise the emotion of clips, or of each window of long recordings.

    Parameters
    ----------
    model : str, Path or ModelFile
        Adapted to a language, or as ``train_model`` made it.
    files : str, Path or sequence of them
        Audio files, and folders of them.
    window, hop : float, optional
        Length of the windows and their distance in seconds; without a window a file is one clip.
    abstain : float
        Probability, in [0, 1], below which the emotion is "unsure".
    speaker : str, optional
        Who speaks: "one" for one speaker in all files, "file" for another one in each, or a regular
        expression whose group in a file's name is the speaker.
    voice, neutral : str, Path or sequence of them
        Files and folders: given clips of the voice, or neutral ones; of several speakers, one
        sub-folder for each.

    Returns
    -------
    DataFrame
        One row per clip or window: ``file``, ``start`` and ``end`` in seconds, ``emotion``,
        ``confidence``, and the probability of each class.
    """
    return predicting.predict(
        _model(model),
        _paths(files),
        window=window,
        hop=hop,
        abstain=abstain,
        speaker=speaker,
        voice=_paths(voice),
        neutral=_paths(neutral),
        tell=warnings.warn,
    )


def evaluate(
    model: str | Path | ModelFile,
    task: str | Path | Task,
    *,
    data: str | Path | None = None,
    folders: str | Path | Iterable[str | Path] = (),
    cache: str | Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score a model on a task's clips, but for those that it was adapted to.

    Parameters
    ----------
    model : str, Path or ModelFile
        Adapted, or as ``train_model`` made it.
    task : str, Path or Task
        Name or folder of a task, or a task that was read.
    data, folders, cache
        Data root, folders of further tasks and feature cache.
    seed : int
        Of the bootstrap.
    """
    file, places = _model(model), Places.at(data, folders, cache)
    if not isinstance(task, Task):
        task = read_task(task, places.data, places.folders)
    task = restrict(require_audio(task), file.header.classes)
    features = extract(task, file.frontend(), places.cache)
    return evaluating.evaluate(file, task.table, features, seed)


def _paths(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def _model(model: str | Path | ModelFile) -> ModelFile:
    return model if isinstance(model, ModelFile) else load(model)
