"""From a protocol's values to the objects that it names, checked before any work."""

import functools
import hashlib
import inspect
import json
from dataclasses import fields

import numpy as np
import torch

from metaser.backbones import BACKBONES, make_backbone
from metaser.frontends import is_learnable, make_frontend
from metaser.methods import METHODS
from metaser.methods.baselines import LogisticRegression
from metaser.model import Model
from metaser.naming import nearest, typed
from metaser.protocol.schema import Protocol, Setup, TrainingPlan
from metaser.recording import Situation, draw_situation

SELECTION = {"title", "description", "targets", "seeds", "leave_one_language_out"}
"""Keys of a protocol that choose which cells there are, but do not change a cell's score."""

NOT_TRAINING = {"methods", "choose", "sources_for"}
"""Keys of a set-up that a training does not depend on, besides its sources."""


def method_type(label: str, setup: Setup):
    """The class of a method, and all arguments it gets: presets, then the protocol's."""
    arguments = dict(setup.methods[label])
    name = arguments.pop("method", label)
    if name not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, not {name!r}")
    entry = METHODS[name]
    preset = entry.keywords if isinstance(entry, functools.partial) else {}
    kind = entry.func if isinstance(entry, functools.partial) else entry
    known = set(inspect.signature(kind).parameters) - {"model", "domains"}
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"method {label!r} has no argument {key!r}.{nearest(key, known)} "
                f"It has {sorted(known)}"
            )
    return kind, {**preset, **arguments}


def training_key(label: str, setup: Setup) -> str:
    """Digest of what decides the training of a method; its label if it has none."""
    kind, arguments = method_type(label, setup)
    if not hasattr(kind, "loss") or not arguments.get("pretrain", True):
        return label
    lasting = {k: v for k, v in arguments.items() if k not in kind.ADAPTATION}
    facts = [kind.__name__, lasting, setup.model_dump(exclude=NOT_TRAINING) | _frontend(setup)]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()


def settle(protocol: Protocol) -> Protocol:
    """Check the front ends of all set-ups before any work, and pin the versions of trained ones."""
    setups = {}
    for name, setup in protocol.setups.items():
        _check_backbone(name, setup)
        training_situations(setup.training, "")
        for modality, arguments in setup.frontends.items():
            frontend = make_frontend(arguments, modality)
            if modality == "audio":
                _check_frontend(name, setup, frontend)
            if "model" in arguments:
                revision = getattr(frontend, "extracted", frontend).revision
                pinned = {_frontend_key(modality): {**arguments, "revision": revision}}
                setup = setup.model_copy(update=pinned)
        setups[name] = setup
    return protocol.model_copy(update={"setups": setups})


def _frontend_key(modality: str) -> str:
    """The key of a setup under which the front end of a modality stands."""
    return "frontend" if modality == "audio" else modality


def _check_backbone(name: str, setup: Setup) -> None:
    """Refuse modalities that a known backbone does not take."""
    own = setup.backbone.get("name")
    if own not in BACKBONES:
        return
    kind = BACKBONES[own]
    kind = getattr(kind, "func", kind)
    takes = dict(inspect.signature(kind.forward).parameters)
    del takes["self"]
    needs = {key for key, value in takes.items() if value.default is value.empty}
    given = set(setup.frontends)
    if not needs <= given <= set(takes):
        raise ValueError(
            f"setup {name!r}: the backbone {own!r} takes {' and '.join(takes)}"
            f"{f' and needs {min(needs)}' if needs and len(takes) > 1 else ''}, but the setup "
            f"gives {' and '.join(setup.frontends)}: mlp and modality_hopping take all"
        )


def _check_frontend(name: str, setup: Setup, frontend) -> None:
    """Refuse what would not do to a front end's frames what it says."""
    own = setup.frontend["name"]
    if getattr(frontend, "AS_IS", False):
        for key, value, wanted in (
            ("normalise", setup.normalise, "none"),
            ("mask_channels", setup.training.mask_channels, 0),
        ):
            if value != wanted:
                raise ValueError(
                    f"setup {name!r}: the frames that go into {own!r} must stay as they are: set "
                    f"{key} = {wanted!r}, not {value!r}"
                )
    if not is_learnable(setup.frontend):
        return
    for label in setup.methods:
        if method_type(label, setup)[0] is LogisticRegression:
            raise ValueError(
                f"setup {name!r}: {label} has no network that {own!r} could be trained with: leave "
                "it out, or take a front end that is not learnt"
            )


def training_situations(plan: TrainingPlan, name: str) -> list[Situation]:
    """The recording situations in which training hears a source task besides its own."""
    seeds = [[index, *name.encode()] for index in range(plan.situations)]
    drawn = [draw_situation(np.random.default_rng(seed)) for seed in seeds]
    try:
        chosen = [Situation(**typed(Situation, facts)) for facts in plan.recordings]
    except TypeError as error:
        names = [field.name for field in fields(Situation)]
        raise ValueError(f"recordings: {error}; a recording has some of {names}") from error
    return drawn + chosen


def settings(protocol: Protocol, setup: str, method: str) -> str:
    """Digest of everything in the protocol that decides the rows of one method."""
    # Without defaults, so that a setting which later versions add leaves old rows as they are.
    whole = protocol.model_dump(exclude={*SELECTION, "setups"}, exclude_defaults=True)
    for section, sizes in (("episodes", "shots"), ("split", "fractions")):
        whole.get(section, {}).pop(sizes, None)
    own = protocol.setups[setup]
    kept = own.model_dump(exclude={"methods", "sources_for"}, exclude_defaults=True)
    chosen = kept | _frontend(own)
    facts = [whole, chosen, own.methods[method]]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()


def _frontend(setup: Setup) -> dict:
    """What each front end is, wherever the files of its model lie."""
    found = {}
    for modality, facts in setup.frontends.items():
        if "revision" in facts:
            facts = {key: value for key, value in facts.items() if key != "model"}
        found[_frontend_key(modality)] = facts
    return found


def is_trained(method) -> bool:
    """Whether a method learns by gradient steps on the source tasks."""
    return hasattr(method, "loss") and getattr(method, "pretrain", True)


def make_method(
    label: str,
    setup: Setup,
    classes: int,
    stored: dict[str, int],
    seed: int,
    domains: dict[str, int] | None = None,
):
    """Build an untrained method for features of as many channels of each modality as are stored.

    ``domains`` counts the speakers and corpora that adversaries tell apart.
    """
    kind, arguments = method_type(label, setup)
    if "model" not in inspect.signature(kind).parameters:
        return kind(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Others are done with their work, and to build them here would need their packages.
        frontend = make_frontend(setup.frontend) if is_learnable(setup.frontend) else None
        channels = stored | ({"audio": frontend.channels} if frontend else {})
        only_heard = list(channels) == ["audio"]
        model = Model(
            make_backbone(setup.backbone, channels["audio"] if only_heard else channels),
            classes,
            setup.head_hidden,
            setup.batch_norm,
            frontend,
        )
        if "domains" in inspect.signature(kind).parameters:
            arguments["domains"] = domains
        return kind(model, **arguments).eval()
