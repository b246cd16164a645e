"""Names in files and on the command line become objects; a misspelt one names its nearest."""

import inspect
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any


def nearest(word: str, known: Collection[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to `word`, or ``""``."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def typed(make: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as their annotations want them: 10 for a float is 10.0, and "abc" is refused."""
    known = inspect.signature(make).parameters
    wanted = {name: known[name].annotation for name in arguments if name in known}
    made = {
        name: float(value) if wanted.get(name) is float and type(value) is int else value
        for name, value in arguments.items()
    }
    for name, kind in wanted.items():
        if kind in (bool, float, int, str) and type(made[name]) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, not {made[name]!r}")
    return made
