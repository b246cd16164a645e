"""Tasks: one corpus of one language, described by a folder that holds `task.toml` and no code.

A task folder is named `<language>_<corpus>`. Its `task.toml` says where the audio lies below the
data root, how a clip's name (or a table) gives speaker and emotion, which classes the codes mean,
and which clips are the same recording. `read_task` turns it into a `Task` with one row per clip.
"""

from typing import Any

from metaser.tasks.matching import of_clips, without_extension
from metaser.tasks.schema import TaskFile, language_name, read_facts
from metaser.tasks.table import name_reader
from metaser.tasks.task import (
    BUNDLED,
    Task,
    data_root,
    find_task,
    join_same_audio,
    list_tasks,
    read_task,
    require_audio,
    restrict,
)

__all__ = [
    "BUNDLED",
    "Check",
    "Task",
    "TaskFile",
    "check_task",
    "data_root",
    "find_task",
    "join_same_audio",
    "language_name",
    "list_tasks",
    "name_reader",
    "of_clips",
    "read_facts",
    "read_task",
    "require_audio",
    "restrict",
    "without_extension",
]


def __getattr__(name: str) -> Any:
    if name in ("Check", "check_task"):  # they look at sound, which listing tasks need not wait for
        from metaser.tasks import check

        return getattr(check, name)
    raise AttributeError(f"module 'metaser.tasks' has no attribute {name!r}")
