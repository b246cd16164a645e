"""Backbones: padded frames become an embedding. ``BACKBONES`` maps names to constructors."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metaser.backbones.autoencoder import Autoencoder
from metaser.backbones.gated_recurrent import GatedRecurrent
from metaser.backbones.key_sparse_transformer import KeySparseTransformer
from metaser.backbones.mlp import MLP
from metaser.backbones.modality_hopping import ModalityHopping
from metaser.backbones.multimodal_transformer import MultimodalTransformer
from metaser.backbones.multiscale_cnn import MultiscaleCNN
from metaser.backbones.recurrent import Recurrent
from metaser.backbones.replknet import RepLKNet
from metaser.backbones.resnet18 import ResNet18
from metaser.backbones.segment_sequence import SegmentSequence
from metaser.batch import Padded
from metaser.contracts import check_backbone, modalities_of
from metaser.naming import check_arguments, construct
from metaser.outside import lookup

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "daae": Autoencoder,
    "gru_attention": GatedRecurrent,
    "key_sparse_transformer": KeySparseTransformer,
    "key_sparse_transformer_paper": partial(
        KeySparseTransformer,
        width={"audio": 512, "text": 1024},
        heads=8,
        vanilla_layers=5,
        cross_blocks=3,
        sparse_layers=2,
        dense=(768, 384),
        pool=1,
        dropout=0.1,
        dense_dropout=0.5,
    ),
    "mlp": MLP,
    "modality_hopping": ModalityHopping,
    "modality_hopping_paper": partial(
        ModalityHopping, hidden={"audio": 200, "text": 200, "video": 128}, hops=7, pool=1
    ),
    "multimodal_transformer": MultimodalTransformer,
    "multimodal_transformer_paper": partial(
        MultimodalTransformer,
        width=120,
        layers=3,
        heads=12,
        feedforward=3072,
        context=100,
        dropout=0.2,
        pool=1,
    ),
    "multiscale_cnn": MultiscaleCNN,
    "multiscale_cnn_paper": partial(MultiscaleCNN, filters=128),
    "recurrent": Recurrent,
    "recurrent_tiny": partial(Recurrent, hidden=64, layers=1, pool=4),
    "replknet": RepLKNet,
    "replknet_31b": partial(
        RepLKNet,
        widths=(128, 256, 512, 1024),
        kernels=((31, 31), (29, 29), (27, 27), (13, 13)),
        blocks=(2, 2, 18, 2),
        stride=2,
        drop_path=0.5,
    ),
    "replknet_tiny": partial(RepLKNet, widths=(8, 16), kernels=((15, 5), (7, 5))),
    "resnet18": ResNet18,
    "resnet18_paper": partial(ResNet18, widths=(64, 128, 256, 512), blocks=2),
    "resnet18_tiny": partial(ResNet18, widths=(4, 8, 16, 32), stride=4),
    "segment_sequence": partial(
        SegmentSequence, backbone=partial(MultiscaleCNN, kernels=(3, 5), filters=16)
    ),
    "segment_sequence_paper": partial(
        SegmentSequence, backbone=partial(MultiscaleCNN, filters=128), hidden=512, pool=1
    ),
}


class Plain(nn.Module):
    """A module from vectors to vectors as a backbone: it is given the mean frame of each clip.

    Parameters
    ----------
    module : nn.Module
        From (clips, channels) to (clips, dim).
    channels : int
        Numbers per vector that it is given.
    name : str
        What it is called in messages.

    Raises
    ------
    ValueError
        If it does not turn such vectors into vectors.
    """

    def __init__(self, module: nn.Module, channels: int, name: str = "module") -> None:
        super().__init__()
        self.module = module
        self.channels = {"audio": channels}
        try:
            with torch.no_grad():
                vectors = module(torch.zeros(2, channels))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"the backbone {name!r} must turn vectors (clips, {channels}) into vectors "
                f"(clips, dim), but fails on them: {error}"
            ) from error
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != 2:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(
                f"the backbone {name!r} must turn vectors (2, {channels}) into vectors (2, dim), "
                f"not {shape}: return one embedding per clip, or write forward(audio: Padded)"
            )
        self.dim = vectors.shape[1]

    def forward(self, audio: Padded) -> Tensor:
        """Return embeddings (clips, dim) of the mean frame of each clip."""
        return self.module(audio.mean())


def make_backbone(arguments: dict[str, Any], channels: int | dict[str, int]) -> nn.Module:
    """Build a backbone from its name and arguments, e.g. ``{"name": "recurrent", "hidden": 64}``.

    A backbone inside another is written likewise:
    ``{"name": "segment_sequence", "inner": {"name": "gru_attention", "hidden": 20}}``. A module of
    one's own whose ``forward`` takes vectors is wrapped, see ``Plain``.

    Parameters
    ----------
    arguments : dict
        "name", an entry of ``BACKBONES`` or where a class of one's own is, and arguments of its
        constructor.
    channels : int or dict of str to int
        Channels of the front end, or of each modality.

    Raises
    ------
    ValueError
        If there is no such backbone or argument (the nearest known one is named), or an argument
        does not fit, or a class from outside is no backbone.
    ModuleNotFoundError, FileNotFoundError
        If it comes from outside and is not there.
    """
    check_backbone_arguments(arguments)
    arguments = dict(arguments)
    name = arguments.pop("name")
    what = f"backbone {name!r}"
    make = backbone_class(name)
    if "name" in arguments.get("inner", {}):
        inner = dict(arguments.pop("inner"))
        arguments["backbone"] = partial(_inside, inner)
    if not _is_plain(make):
        return construct(make, arguments, what, channels)
    if not isinstance(channels, int):
        raise ValueError(
            f"{what} takes vectors of the audio, so the setup must give the audio alone, not "
            f"{' and '.join(channels)}"
        )
    return Plain(construct(make, arguments, what, channels), channels, str(name))


def check_backbone_arguments(arguments: dict[str, Any]) -> None:
    """Refuse a wrong name or argument of a backbone, or of one inside it, without building it.

    Raises
    ------
    ValueError, ModuleNotFoundError, FileNotFoundError
        As in ``make_backbone``.
    """
    name = arguments.get("name")
    make = backbone_class(name)
    inner = arguments.get("inner", {})
    hidden = {next(iter(inspect.signature(make).parameters))}  # the channels, whatever their name
    if "name" in inner:
        check_backbone_arguments(inner)
        hidden |= {"inner", "backbone"}
    given = {key: value for key, value in arguments.items() if key not in ("name", *hidden)}
    check_arguments(make, given, f"backbone {name!r}", hidden=hidden)


def backbone_class(name: object) -> Callable[..., nn.Module]:
    """Return the class, or the entry with presets, that a backbone's name stands for.

    Raises
    ------
    ValueError
        If there is none, or it is no ``nn.Module``.
    ModuleNotFoundError, FileNotFoundError
        If it comes from outside and is not there.
    """
    make = lookup(name, BACKBONES, "metaser.backbones", "backbone")
    check_backbone(make, str(name))
    return make


def takes_modalities(name: object) -> dict[str, bool]:
    """Return the modalities that a backbone takes, each with whether it needs it."""
    make = backbone_class(name)
    return {"audio": True} if _is_plain(make) else modalities_of(make)


def _inside(arguments: dict[str, Any], channels: int, **more: Any) -> nn.Module:
    return make_backbone({**arguments, **more}, channels)


def _is_plain(make: Callable[..., nn.Module]) -> bool:
    """Return whether a module takes vectors: the arguments of ``forward`` are no modalities."""
    return not modalities_of(make)
