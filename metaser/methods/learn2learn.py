"""MAML of learn2learn, without the rest of that package, which needs gym and torchvision."""

import importlib
import importlib.util
import sys
from types import ModuleType

INSTALL = "pip install --no-deps -r requirements-learn2learn.txt"
"""The command that installs learn2learn, in a clone of MetaSER."""


def maml() -> type:
    """Return the class ``MAML`` of learn2learn.

    Raises
    ------
    ModuleNotFoundError
        If learn2learn is not installed; the message names the command that installs it.
    """
    if "learn2learn" not in sys.modules:
        spec = importlib.util.find_spec("learn2learn")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(
                f"back_end = 'learn2learn' needs learn2learn 0.2.0: run `{INSTALL}` in a clone of "
                "MetaSER, or use the native back end, which gives the same gradients"
            )
        package = ModuleType("learn2learn")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["learn2learn"] = package
    return importlib.import_module("learn2learn.algorithms.maml").MAML
