"""Front ends: a waveform becomes frames of features. ``FRONTENDS`` maps names to constructors.

A variant is an entry with preset arguments. Some are learnt: an ``nn.Module`` that reads what
another front end, its ``extracted``, gives. A class names in ``LIBRARIES`` the packages, besides
those that all need, whose versions decide its numbers. ``TRAINED`` says that it comes trained, at
one rate; ``AS_IS`` that what it reads (if learnt) or gives is neither normalised nor masked.

Those of text and video have a ``modality`` and read a transcript or the path of a file instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from metaser.contracts import check_frontend, frontend_traits
from metaser.frontends.egemaps import OpenSmile
from metaser.frontends.joined import Joined
from metaser.frontends.leaf import Leaf
from metaser.frontends.prosody import Prosody
from metaser.frontends.speaker import SpeakerEmbedding
from metaser.frontends.spectral import MFCC, LogMel, Statistics
from metaser.frontends.ssl import SSL, LayerWeights, SSLEncoder
from metaser.frontends.text import HashedNgrams, TextEncoder
from metaser.frontends.vectors import Vectors
from metaser.frontends.video import VideoFrames
from metaser.frontends.waveform import Waveform
from metaser.naming import construct, one_of
from metaser.outside import lookup

FRONTENDS: dict[str, Callable[..., Any]] = {
    "mfcc": MFCC,
    "mfcc40": partial(MFCC, coefficients=40, deltas=2, frames=300),
    "log_mel": LogMel,
    "statistics": Statistics,
    "prosody": Prosody,
    "egemaps": OpenSmile,
    "egemaps_lld": partial(OpenSmile, level="lld"),
    "compare": partial(OpenSmile, features="ComParE_2016"),
    "speaker": SpeakerEmbedding,
    "joined": Joined,
    "ssl": SSL,
    "whisper": partial(
        SSL, model="openai/whisper-tiny.en", layer=(1, 2, 3), pooling="mean", seconds=30.0
    ),
    "ssl_layers": LayerWeights,
    "ssl_lora": SSLEncoder,
    "waveform": Waveform,
    "leaf": Leaf,
}

TEXT_FRONTENDS: dict[str, Callable[..., Any]] = {
    "hashed_ngrams": HashedNgrams,
    "text_encoder": TextEncoder,
}
VIDEO_FRONTENDS: dict[str, Callable[..., Any]] = {"video_frames": VideoFrames}

FAMILIES: dict[str, dict[str, Callable[..., Any]]] = {
    modality: {**family, "vectors": partial(Vectors, modality)}
    for modality, family in (
        ("audio", FRONTENDS),
        ("text", TEXT_FRONTENDS),
        ("video", VIDEO_FRONTENDS),
    )
}
"""Front ends by the modality that they read; every one has the vectors of a task folder."""


def frontend_class(name: object, modality: str = "audio") -> Callable:
    """Return the class, or the entry with presets, that a front end's name stands for.

    Raises
    ------
    ValueError
        If there is no such front end, or no such modality.
    ModuleNotFoundError, FileNotFoundError
        If it comes from outside and is not there.
    """
    family = one_of(modality, FAMILIES, "modality")
    others = [other for other, names in FAMILIES.items() if name in names]
    if isinstance(name, str) and name not in family and others:
        raise ValueError(
            f"front end of {modality} must be one of {', '.join(sorted(family))}, not {name!r}, "
            f"which is a front end of {' and '.join(others)}"
        )
    return lookup(name, family, "metaser.frontends", "front end")


def is_learnable(arguments: dict[str, Any] | None) -> bool:
    """Return whether the audio's front end of these arguments is learnt; it is not built."""
    return arguments is not None and frontend_traits(frontend_class(arguments["name"])).learnable


def make_frontend(arguments: dict[str, Any], modality: str = "audio") -> Any:
    """Build a front end from its name and arguments, e.g. ``{"name": "mfcc", "frames": 120}``.

    Parameters
    ----------
    arguments : dict
        "name", an entry of ``FAMILIES[modality]`` or where a class of one's own is, and arguments
        of its constructor.
    modality : {"audio", "text", "video"}
        What it is to read.

    Returns
    -------
    FrontEnd or nn.Module
        A learnable one is an ``nn.Module``; ``extracted`` is the front end that it reads.

    Raises
    ------
    ValueError
        If there is no such front end or argument (the nearest known one is named), a value is of
        the wrong type or out of range, or a class from outside is no front end.
    ModuleNotFoundError, FileNotFoundError
        As in ``frontend_class``.
    """
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    make = frontend_class(name, modality)
    if isinstance(arguments.get("parts"), list):
        parts = [part if isinstance(part, dict) else {"name": part} for part in arguments["parts"]]
        arguments["parts"] = tuple(map(make_frontend, parts))
    frontend = construct(make, arguments, f"front end {name!r}")
    check_frontend(frontend, str(name))
    return frontend
