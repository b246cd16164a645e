"""The outer loop over source tasks, and the engine that runs its meta-batches."""

from metaser.protocol.schema import Training
from metaser.training.loop import Source, train, validation_loss
from metaser.training.meta_batch import MetaBatch

__all__ = ["MetaBatch", "Source", "Training", "train", "validation_loss"]
