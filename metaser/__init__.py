"""Meta-learning for speech emotion recognition in languages with few labelled clips.

A *task* is one corpus of one language; an *episode* is a support and a query set drawn from it; a
*front end* turns audio into frames, and a *backbone* frames into one embedding per clip; a *method*
says how a model learns and adapts; a *protocol* says what is compared with what.

Names are imported when they are first used, so ``import metaser`` starts at once and without
PyTorch. ``__init__.pyi`` is the one list of them, for this module and for type checkers.
"""

import ast
import functools
import importlib
from pathlib import Path


@functools.cache
def _places() -> dict[str, tuple[str, str]]:
    """Return the module and the name there of each public name; no name for a module itself."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: (node.module, alias.name) if node.module else (alias.name, "")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def __getattr__(name: str) -> object:
    if name == "__version__":
        from metaser.version import version

        return version()
    if name.startswith("_") or name not in _places():
        raise AttributeError(f"module 'metaser' has no attribute {name!r}")
    module, member = _places()[name]
    imported = importlib.import_module(f"metaser.{module}")
    globals()[name] = getattr(imported, member) if member else imported
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*_places(), "__version__"])
