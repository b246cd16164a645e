"""Backbones: padded frames become an embedding. ``BACKBONES`` maps names to constructors."""

from functools import partial

from metaser.backbones.autoencoder import Autoencoder
from metaser.backbones.gated_recurrent import GatedRecurrent
from metaser.backbones.key_sparse_transformer import KeySparseTransformer
from metaser.backbones.mlp import MLP
from metaser.backbones.modality_hopping import ModalityHopping
from metaser.backbones.multiscale_cnn import MultiscaleCNN
from metaser.backbones.recurrent import Recurrent
from metaser.backbones.replknet import RepLKNet
from metaser.backbones.segment_sequence import SegmentSequence

BACKBONES = {
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
    "multiscale_cnn": MultiscaleCNN,
    "recurrent": Recurrent,
    "replknet": RepLKNet,
    "replknet_31b": partial(
        RepLKNet,
        widths=(128, 256, 512, 1024),
        kernels=((31, 31), (29, 29), (27, 27), (13, 13)),
        blocks=(2, 2, 18, 2),
        stride=2,
        drop_path=0.5,
    ),
    "segment_sequence": partial(
        SegmentSequence, backbone=partial(MultiscaleCNN, kernels=(3, 5), filters=16)
    ),
    "segment_sequence_paper": partial(
        SegmentSequence, backbone=partial(MultiscaleCNN, filters=128), hidden=512, pool=1
    ),
}
