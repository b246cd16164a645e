"""Pretrained models of transformers, by name on the Hugging Face hub or from a folder."""

import hashlib
import importlib
import os
import pickle
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


class OwnCodeError(ValueError):
    """A model needs code that comes with it, which is never run."""


def need(package: str) -> ModuleType:
    """Import a package of the extra ``ssl``.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message says how.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"pretrained encoders need {package}: pip install 'metaser[ssl]'"
        ) from error


def pretrained(kind: str, model: str, revision: str, **options: Any) -> Any:
    """Load a part of a model by a class of transformers; code that comes with it is never run.

    Parameters
    ----------
    kind : str
        Name of the class, such as "AutoModel".
    model, revision : str
        Name on the hub, or a folder, and its commit.
    **options
        Passed on to ``from_pretrained``.

    Raises
    ------
    OwnCodeError
        If the model needs code of its own.
    FileNotFoundError
        If its weights cannot be read.
    """
    from safetensors import SafetensorError

    try:
        return getattr(need("transformers"), kind).from_pretrained(
            model, revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise OwnCodeError(
            f"{model} must be of an architecture that transformers has, but it brings code of its "
            "own, which MetaSER never runs: name another model, or save this one with the "
            "architecture of transformers that it is made of"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights of {model} cannot be read ({str(error).strip().splitlines()[0]}): they "
            "are damaged, or a Git LFS pointer in place of the file; fetch them again, for "
            "example by `git lfs pull`"
        ) from error


def local(model: str) -> str:
    """Return the folder of a model of the hub that lies in ``METASER_ENCODERS``, or its name.

    With ``METASER_ENCODERS=/models``, "openai/whisper-tiny.en" is read from
    ``/models/whisper-tiny.en`` if there is such a folder, and needs no network.
    """
    folder = os.environ.get("METASER_ENCODERS")
    found = Path(folder) / Path(model).name if folder else None
    return str(found) if found and found.is_dir() and not Path(model).is_dir() else model


def revision(model: str, wanted: str, save: str) -> str:
    """Digest of a folder's files, or commit of a model of the hub; settles what the model is.

    Parameters
    ----------
    model : str
        Name on the hub, or a folder.
    wanted : str
        Version of the model: on the hub a commit, tag or branch, of a folder its digest. Empty for
        whatever is there.
    save : str
        How to write the model to a folder, for the message of an error.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    ValueError
        If the folder's digest is another.
    """
    if Path(model).is_dir():
        found = _digest(Path(model))
        if wanted not in ("", found):
            raise ValueError(
                f"the files in {model} have the digest {found}, not {wanted}: they have changed or "
                "are of another model"
            )
        return found
    hub = need("huggingface_hub")
    try:
        config = hub.hf_hub_download(model, "config.json", revision=wanted or None)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no model {model!r}: there is no such folder, and the Hugging Face hub did not give "
            f"it ({str(error).strip().splitlines()[0]}). Without network, name a folder, for a "
            f"model file by --encoder, or set METASER_ENCODERS to where the folder "
            f"{Path(model).name} lies: elsewhere, {save}"
        ) from error
    return Path(config).parent.name


def _digest(folder: Path) -> str:
    """Digest of configuration, weights and vocabulary, the files that decide the numbers."""
    state = hashlib.blake2b(digest_size=8)
    for pattern in ("*config.json", "*.safetensors", "*.bin", *VOCABULARIES):
        for path in sorted(folder.glob(pattern)):
            facts = path.stat()
            state.update(_file_digest(path, facts.st_size, facts.st_mtime_ns))
    return state.hexdigest()


VOCABULARIES = ("tokenizer.json", "vocab.*", "merges.txt", "*.model")
"""Files of tokenizers."""


@cache
def _file_digest(path: Path, size: int, changed: int) -> bytes:  # noqa: ARG001 (keys of the cache)
    """Read a file of perhaps gigabytes once, unless it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
