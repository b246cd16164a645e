"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def bundled(name: str) -> Path:
    """Return a folder that comes with MetaSER: inside the package, or at the top of a checkout."""
    aboard = Path(__file__).parent / "aboard" / name
    return aboard if aboard.is_dir() else Path(__file__).parent.parent / name


def read_json(path: Path) -> dict:
    """Read an object; empty if there is no such file.

    Raises
    ------
    ValueError
        If the file holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent}") from error


def write_json(path: Path, facts: Mapping) -> None:
    """Write an object, whole or not at all; the caller holds the lock of the cache."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(facts, ensure_ascii=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
