"""Who speaks and in which corpus, as numbers that adversaries learn to tell."""

from collections.abc import Sequence

import numpy as np

from metaser.tasks import Task


def count_domains(tasks: Sequence[Task]) -> dict[str, int]:
    """How many speakers and corpora some tasks have; no voice is taken to be in two of them."""
    return {"speaker": sum(len(_voices(task)) for task in tasks), "corpus": len(tasks)}


def number_domains(tasks: Sequence[Task]) -> list[dict[str, np.ndarray]]:
    """Number the speaker and the corpus of every clip.

    Returns
    -------
    list of dict of str to ndarray
        For each task ``speaker`` and ``corpus``, (clips,) int64 in the order of its table; from 0
        to below the numbers of ``count_domains``, and the same number for no two tasks.
    """
    found, first = [], 0
    for corpus, task in enumerate(tasks):
        voices = _voices(task)
        speaker = first + np.searchsorted(voices, task.table["speaker"].to_numpy(str))
        found.append({"speaker": speaker, "corpus": np.full(len(task.table), corpus)})
        first += len(voices)
    return found


def _voices(task: Task) -> np.ndarray:
    return np.unique(task.table["speaker"].to_numpy(str))
