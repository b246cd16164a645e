"""Front ends: a waveform becomes frames of features. ``FRONTENDS`` maps names to constructors.

A variant is an entry with preset arguments. Some are learnt: an ``nn.Module`` that reads what
another front end, its ``extracted``, gives. A class names in ``LIBRARIES`` the packages, besides
those that all need, whose versions decide its numbers. ``TRAINED`` says that it comes trained, at
one rate; ``AS_IS`` that what it reads (if learnt) or gives is neither normalised nor masked.

Those of text and video have a ``modality`` and read a transcript or the path of a file instead.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

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
from metaser.naming import typed

FRONTENDS = {
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
    "ssl_layers": LayerWeights,
    "ssl_lora": SSLEncoder,
    "waveform": Waveform,
    "leaf": Leaf,
}

TEXT_FRONTENDS = {"hashed_ngrams": HashedNgrams, "text_encoder": TextEncoder}
VIDEO_FRONTENDS = {"video_frames": VideoFrames}

FAMILIES = {
    modality: {**family, "vectors": partial(Vectors, modality)}
    for modality, family in (
        ("audio", FRONTENDS),
        ("text", TEXT_FRONTENDS),
        ("video", VIDEO_FRONTENDS),
    )
}
"""Front ends by the modality that they read; every one has the vectors of a task folder."""


def is_learnable(arguments: dict | None) -> bool:
    """Whether the audio's front end of these arguments is an ``nn.Module``; it is not built."""
    kind = FRONTENDS.get((arguments or {}).get("name"))
    return kind is not None and issubclass(getattr(kind, "func", kind), nn.Module)


def make_frontend(arguments: dict, modality: str = "audio") -> Callable:
    """Build a front end from its name and arguments, e.g. ``{"name": "mfcc", "frames": 120}``.

    A learnable one is an ``nn.Module``; ``extracted`` is the front end that it reads.
    """
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if modality not in FAMILIES:
        raise ValueError(f"modality must be one of {sorted(FAMILIES)}, not {modality!r}")
    family = FAMILIES[modality]
    if name not in family:
        own = {other: sorted(names) for other, names in FAMILIES.items() if name in names}
        hint = f"; {name!r} is a front end of {' and '.join(own)}" if own else ""
        what = "front end" if modality == "audio" else f"front end of {modality}"
        raise ValueError(f"{what} must be one of {sorted(family)}, not {name!r}{hint}")
    if isinstance(arguments.get("parts"), list):
        parts = [part if isinstance(part, dict) else {"name": part} for part in arguments["parts"]]
        arguments["parts"] = tuple(map(make_frontend, parts))
    try:
        return family[name](**typed(family[name], arguments))
    except TypeError as error:
        raise ValueError(f"front end {name!r}: {error}") from error
