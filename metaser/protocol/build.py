"""From a protocol's values to the objects that it names, checked before any work."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metaser.backbones import (
    BACKBONES,
    check_backbone_arguments,
    make_backbone,
    takes_modalities,
)
from metaser.contracts import check_method, extracted, frontend_traits, method_traits
from metaser.frontends import FAMILIES, frontend_class, is_learnable, make_frontend
from metaser.methods import METHODS
from metaser.methods.baselines import LogisticRegression
from metaser.model import Model
from metaser.naming import check_arguments, construct, kind_of
from metaser.outside import comes_from_outside, lookup, source_digest
from metaser.protocol.schema import Protocol, Setup, TrainingPlan
from metaser.recording import Situation, draw_situation

SELECTION = {"title", "description", "targets", "seeds", "leave_one_language_out"}
"""Keys of a protocol that choose which cells there are, but do not change a cell's score."""

NOT_TRAINING = {"methods", "choose", "voice"}
"""Keys of a setup that a training does not depend on, besides its sources."""

LATER = {"clip": 1.0}
"""Training settings that digests hold only where they differ from this: version 0.1.0 had none."""


class Settled(NamedTuple):
    """A setup that is ready to run.

    Attributes
    ----------
    setup : Setup
        As in the protocol, but for the versions of pretrained front ends, which are pinned.
    frontends : dict of str to FrontEnd
        The front end of each modality, built once.
    """

    setup: Setup
    frontends: dict[str, Any]


def settle(protocol: Protocol) -> dict[str, Settled]:
    """Build and check what all setups name before any work, and pin pretrained front ends.

    Raises
    ------
    ValueError
        If a name or an argument is wrong, or parts of a setup do not fit each other.
    ModuleNotFoundError, FileNotFoundError
        If a class from outside, or a package that a front end needs, is not there.
    """
    settled = {}
    for name, setup in protocol.setups.items():
        _check_backbone(name, setup)
        training_situations(setup.training, "")
        for label in setup.methods:
            method_type(label, setup)
        frontends, pinned = {}, {}
        for modality, arguments in setup.frontends.items():
            frontends[modality] = make_frontend(arguments, modality)
            if modality == "audio":
                _check_frontend(name, setup, frontends[modality])
            section = _pin(arguments, frontends[modality])
            if section != arguments:
                pinned[_frontend_key(modality)] = section
        if pinned:
            setup = Setup.model_validate(setup.model_dump() | pinned)
        settled[name] = Settled(setup, frontends)
    return settled


def _pin(arguments: dict[str, Any], frontend: Any) -> dict[str, Any]:
    """Return a front end's arguments with the version of the pretrained model that was found."""
    traits = frontend_traits(frontend)
    if isinstance(arguments.get("parts"), list):
        named = [part if isinstance(part, dict) else {"name": part} for part in arguments["parts"]]
        parts = [_pin(part, own) for part, own in zip(named, frontend.parts)]
        return {**arguments, "parts": parts} if parts != named else arguments
    if traits.weights:
        found = {"weights": traits.weights}
        # A commit says where to fetch it; the files of a folder may change while its tensors stay.
        if not Path(extracted(frontend).model).is_dir():
            found["revision"] = traits.revision
        return {**arguments, **found}
    return {**arguments, "revision": traits.revision} if traits.revision else arguments


def _without_place(section: dict[str, Any]) -> dict[str, Any]:
    """Return a front end's arguments without where its model's files come from."""
    if isinstance(section.get("parts"), list):
        parts = [_without_place(p) if isinstance(p, dict) else p for p in section["parts"]]
        section = {**section, "parts": parts}
    place: set[str] = set()
    if "weights" in section:
        place = {"model", "revision"}
    elif "revision" in section:
        place = {"model"}
    return {key: value for key, value in section.items() if key not in place}


def _frontend_key(modality: str) -> str:
    """Return the key of a setup under which the front end of a modality stands."""
    return "frontend" if modality == "audio" else modality


def _check_backbone(name: str, setup: Setup) -> None:
    """Refuse a backbone that is not there, and modalities that it does not take."""
    check_backbone_arguments(setup.backbone)
    backbone = setup.backbone["name"]
    takes = takes_modalities(backbone)
    needs = {modality for modality, needed in takes.items() if needed}
    given = set(setup.frontends)
    if not needs <= given <= set(takes):
        raise ValueError(
            f"setup {name!r}: the backbone {backbone!r} takes {' and '.join(takes)}"
            f"{f' and needs {min(needs)}' if needs and len(takes) > 1 else ''}, but the setup "
            f"gives {' and '.join(setup.frontends)}: mlp and modality_hopping take all"
        )


def _check_frontend(name: str, setup: Setup, frontend: Any) -> None:
    """Refuse settings that would change frames which must stay as they are."""
    frontend_name = setup.frontend["name"] if setup.frontend else ""
    traits = frontend_traits(frontend)
    for key, value, wanted in (
        ("normalise", setup.normalise, "none"),
        ("mask_channels", setup.training.mask_channels, 0),
    ):
        if traits.as_is and value != wanted:
            raise ValueError(
                f"setup {name!r}: the frames that go into {frontend_name!r} must stay as they are: "
                f"set {key} = {wanted!r}, not {value!r}"
            )
    for label in setup.methods:
        kind = kind_of(method_type(label, setup)[0])
        if traits.learnable and (kind is LogisticRegression or method_traits(kind).takes_channels):
            raise ValueError(
                f"setup {name!r}: {label} reads the features themselves, with which "
                f"{frontend_name!r} could not be trained: leave it out, or take a front end that "
                "is not learnt"
            )


def training_situations(plan: TrainingPlan, name: str) -> list[Situation]:
    """Return the recording situations in which training hears a source task besides its own."""
    seeds = [[index, *name.encode()] for index in range(plan.situations)]
    drawn = [draw_situation(np.random.default_rng(seed)) for seed in seeds]
    return drawn + [construct(Situation, facts, "a recording") for facts in plan.recordings]


def method_type(label: str, setup: Setup) -> tuple[type, dict[str, Any]]:
    """Return the class of a method and its arguments: presets, then the protocol's.

    Raises
    ------
    ValueError
        If there is no such method or argument (the nearest known one is named), or a class from
        outside is no method.
    ModuleNotFoundError, FileNotFoundError
        If it comes from outside and is not there.
    """
    arguments = dict(setup.methods[label])
    name = arguments.pop("method", label)
    entry = lookup(name, METHODS, "metaser.methods", "method")
    check_method(entry, str(name))
    hidden = ("model", "domains", "channels", "classes")
    arguments = check_arguments(entry, arguments, f"method {label!r}", hidden=hidden)
    preset = entry.keywords if isinstance(entry, partial) else {}
    return kind_of(entry), {**preset, **arguments}


def training_key(label: str, setup: Setup) -> str:
    """Return a digest of what decides the training of a method; its label if it has none."""
    kind, arguments = method_type(label, setup)
    traits = method_traits(kind, arguments)
    if not traits.learns:
        return label
    lasting = {k: v for k, v in arguments.items() if k not in traits.adaptation}
    values = setup.model_dump(exclude=NOT_TRAINING) | _frontend(setup)
    for key, value in LATER.items():
        if values["training"][key] == value:
            del values["training"][key]
    name = setup.methods[label].get("method", label)
    return _digest([_portable(name, METHODS, kind.__name__), lasting, _portably(values)])


def settings(protocol: Protocol, setup: Setup, label: str) -> str:
    """Return a digest of everything that decides the rows of one method of a setup."""
    # Without defaults, so that a setting which later versions add leaves old rows as they are.
    values = protocol.model_dump(exclude={*SELECTION, "setups"}, exclude_defaults=True)
    for section, sizes in (("episodes", "shots"), ("split", "fractions")):
        values.get(section, {}).pop(sizes, None)
    kept = setup.model_dump(exclude={"methods"}, exclude_defaults=True) | _frontend(setup)
    arguments = dict(setup.methods[label])
    name = arguments.get("method", label)
    if comes_from_outside(name, METHODS):
        arguments["method"] = _portable(name, METHODS, "")
    return _digest([values, _portably(kept), arguments])


def outside_sources(setup: Setup, label: str) -> dict[str, str]:
    """Return the digest of the source of each outside class that a method of a setup uses."""
    sources = {}
    method = setup.methods[label].get("method", label)
    for name, family, group in [(method, METHODS, "metaser.methods"), *_named(setup)]:
        if comes_from_outside(name, family):
            sources[name] = source_digest(lookup(name, family, group, "class"))
    return sources


def _named(setup: Setup) -> Iterator[tuple[str, Mapping[str, Callable], str]]:
    """Yield the names in a setup's front ends and backbone, with the family of each."""
    sections = [(setup.backbone, BACKBONES, "metaser.backbones")]
    for modality, arguments in setup.frontends.items():
        sections.append((arguments, FAMILIES[modality], "metaser.frontends"))
    while sections:
        section, family, group = sections.pop()
        yield section["name"], family, group
        if "name" in section.get("inner", {}):
            sections.append((section["inner"], family, group))
        for part in section.get("parts", ()):
            inside = part if isinstance(part, dict) else {"name": part}
            sections.append((inside, family, group))


def _portably(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a setup in which outside classes are named by what they are."""
    families: dict[str, Mapping[str, Callable]] = {
        "backbone": BACKBONES,
        "inner": BACKBONES,
        "frontend": FAMILIES["audio"],
    }
    families |= {"text": FAMILIES["text"], "video": FAMILIES["video"]}

    def replaced(key: str, value: Any, family: Mapping[str, Callable] | None) -> Any:
        family = families.get(key, family)
        if isinstance(value, dict):
            return {k: replaced(k, inner, family) for k, inner in value.items()}
        if isinstance(value, list):
            return [replaced("name", inner, family) for inner in value]
        if key == "name" and family is not None and comes_from_outside(value, family):
            return _portable(value, family, str(value))
        return value

    return {key: replaced(key, value, None) for key, value in values.items()}


def _portable(name: str, family: Mapping[str, Callable], known: str) -> str:
    """Return a name that means the same class on any machine; ``known`` if it is MetaSER's own."""
    if not comes_from_outside(name, family):
        return known
    groups = {id(METHODS): "metaser.methods", id(BACKBONES): "metaser.backbones"}
    kind = lookup(name, family, groups.get(id(family), "metaser.frontends"), "class")
    return f"{kind_of(kind).__name__}@{source_digest(kind)}"


def _digest(facts: object) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()


def _frontend(setup: Setup) -> dict[str, Any]:
    """Return what each front end is, wherever the files of its model lie."""
    sections = {}
    for modality, section in setup.frontends.items():
        sections[_frontend_key(modality)] = _without_place(section)
    return sections


def make_method(
    label: str,
    setup: Setup,
    *,
    classes: int,
    stored: dict[str, int],
    seed: int,
    domains: dict[str, int] | None = None,
) -> Any:
    """Build an untrained method.

    Parameters
    ----------
    label : str
        One of the setup's methods.
    setup : Setup
        Says with which backbone, and whether a front end is learnt.
    classes : int
        Number of classes.
    stored : dict of str to int
        Channels of the stored features of each modality.
    seed : int
        Decides the initial parameters.
    domains : dict of str to int, optional
        Number of speakers and of corpora that adversaries tell apart.

    Returns
    -------
    Method
        Ready to be trained, or to adapt if it is not trained.
    """
    kind, arguments = method_type(label, setup)
    traits = method_traits(kind)
    if not traits.takes_model:
        if traits.takes_channels:
            arguments |= {"channels": sum(stored.values()), "classes": classes}
        return kind(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Others are done with their work, and to build them here would need their packages.
        frontend = make_frontend(setup.frontend or {}) if is_learnable(setup.frontend) else None
        channels = stored | ({"audio": frontend.channels} if frontend else {})
        audio_alone = list(channels) == ["audio"]
        model = Model(
            make_backbone(setup.backbone, channels["audio"] if audio_alone else channels),
            classes,
            setup.head_hidden,
            setup.batch_norm,
            frontend,
        )
        if traits.takes_domains:
            arguments["domains"] = domains
        if traits.takes_channels:
            arguments |= {"channels": sum(stored.values()), "classes": classes}
        return kind(model, **arguments).eval()


def with_encoder(setup: Setup, folder: str | Path) -> Setup:
    """Return a setup whose audio is heard by the pretrained encoder in a folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the audio is not heard by a pretrained encoder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"the encoder must be a folder with the files of a pretrained encoder, but {folder} is "
            "none: check the path"
        )

    def moved(section: dict[str, Any]) -> dict[str, Any]:
        if isinstance(section.get("parts"), list):
            named = [p if isinstance(p, dict) else {"name": p} for p in section["parts"]]
            return {**section, "parts": [moved(part) for part in named]}
        takes = "model" in signature(frontend_class(section["name"])).parameters
        return {**section, "model": str(folder)} if takes else section

    heard = setup.frontend or {}
    found = moved(heard)
    if found == heard:
        raise ValueError(
            f"an encoder has a meaning only for a model that hears by one, but this one hears by "
            f"{heard['name']!r}: leave it out"
        )
    return setup.model_copy(update={"frontend": found})


def stored_frontend(setup: Setup) -> Any:
    """Return the audio's front end whose frames are stored, newly built."""
    return extracted(make_frontend(setup.frontend or {}))
