"""Backbones: padded frames become an embedding. ``BACKBONES`` maps names to constructors."""

from metaser.backbones.mlp import MLP
from metaser.backbones.multiscale_cnn import MultiscaleCNN
from metaser.backbones.recurrent import Recurrent

BACKBONES = {
    "mlp": MLP,
    "multiscale_cnn": MultiscaleCNN,
    "recurrent": Recurrent,
}
