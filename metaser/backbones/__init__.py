"""Backbones: networks that turn padded frames into an embedding.

``BACKBONES`` maps the names that protocols use to constructors.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

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
from metaser.naming import nearest

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


def make_backbone(arguments: dict[str, Any], channels: int | dict[str, int]) -> nn.Module:
    """Build a backbone from its name and arguments, e.g. ``{"name": "recurrent", "hidden": 64}``.

    A backbone inside another is written in the same way:
    ``{"name": "segment_sequence", "inner": {"name": "gru_attention", "hidden": 20}}``.

    Parameters
    ----------
    arguments : dict
        "name", an entry of ``BACKBONES``, and arguments of its constructor.
    channels : int or dict of str to int
        Channels of the front end, or of each modality.

    Returns
    -------
    nn.Module
        The backbone; its attribute ``dim`` is the length of an embedding.

    Raises
    ------
    ValueError
        If there is no such backbone, it has no such argument (the message names the nearest known
        one), or an argument has a wrong value.
    """
    try:
        return _constructor(arguments)(channels)
    except TypeError as error:
        raise ValueError(f"backbone {arguments['name']!r}: {error}") from error


def _constructor(arguments: dict[str, Any]) -> partial[nn.Module]:
    """A backbone's constructor that only lacks its channels."""
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if name not in BACKBONES:
        raise ValueError(
            f"backbone must be one of {sorted(BACKBONES)}, not {name!r}."
            f"{nearest(str(name), BACKBONES)}"
        )
    known = set(inspect.signature(BACKBONES[name]).parameters) - {"channels"}
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"arguments of backbone {name!r} must be among {sorted(known)}, not {key!r}."
                f"{nearest(key, known)}"
            )
    if "name" in arguments.get("inner", {}):
        arguments["backbone"] = _constructor(arguments.pop("inner"))
    return partial(BACKBONES[name], **arguments)
