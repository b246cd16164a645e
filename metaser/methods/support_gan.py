"""A support set enlarged by vectors that a generative adversarial network makes."""

import copy
import logging
from dataclasses import replace

import torch
from torch import Tensor

from metaser.batch import Batch, Padded
from metaser.methods.feature_gan import FeatureGAN, Quality, play, quality

MOST_JUDGED = 1000
"""Vectors that coverage and density are measured on, at most."""

COLLAPSED = 0.2
"""A generator that covers less of the source vectors than this is warned of."""

log = logging.getLogger(__name__)


class SupportGAN:
    """Enlarge a support set by a class-conditional GAN over mean frames.

    The GAN learns from the source clips (``fit``) what vectors of a class look like, then from the
    support set and the sources, evenly, how this language's do. Without sources it has the support
    set alone.

    Parameters
    ----------
    generated : int
        Generated vectors a class, at least 0.
    steps : int
        Steps of the game on the source clips, or on the support set where there are no sources.
    adapt_steps : int
        Steps of the game on sources and support set.
    seed : int
        Decides where the networks start and what is drawn.

    Attributes
    ----------
    quality : Quality or None
        Coverage and density of generated vectors among those of the sources, after ``fit``.

    References
    ----------
    Goodfellow et al., "Generative Adversarial Networks", NeurIPS 2014.
    """

    def __init__(
        self, generated: int = 10, steps: int = 1000, adapt_steps: int = 50, seed: int = 0
    ) -> None:
        for name, value in (("generated", generated), ("steps", steps)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        self.generated = generated
        self.steps = steps
        self.adapt_steps = adapt_steps
        self.seed = seed
        self.gan: FeatureGAN | None = None
        self.quality: Quality | None = None

    def fit(self, sources: list[Batch]) -> None:
        """Train the GAN on the labelled clips of the source tasks; each task has the same weight.

        Coverage and density go to the log, and a generator that has collapsed is warned of.
        """
        sources = [batch.to("cpu") for batch in sources]  # the game's draws are the processor's
        values = [_vectors(batch) for batch in sources]
        pooled = torch.cat(values)
        self._centre, self._spread = _moments(pooled)
        self._real = (pooled - self._centre) / self._spread
        self._targets = torch.cat([batch.targets for batch in sources])
        self._weights = torch.cat([torch.full((len(v),), 1 / len(v)) for v in values])
        draw = torch.Generator().manual_seed(self.seed)
        self.gan = self._new(self._real.shape[1], len(sources[0].classes))
        value = play(self.gan, self._real, self._targets, self._weights, self.steps, draw)
        rows = torch.randperm(len(self._real), generator=draw)[:MOST_JUDGED]
        with torch.no_grad():
            made = self.gan.generate(self._targets[rows], draw)
        self.quality = quality(self._real[rows].numpy(), made.numpy())
        told = f"coverage {self.quality.coverage:.2f}, density {self.quality.density:.2f}"
        log.info("generated vectors among those of the sources: %s; game %.2f", told, value)
        if self.quality.coverage < COLLAPSED:
            log.warning(
                "the generator gives little of what the sources have (%s): take more steps, or "
                "fewer channels",
                told,
            )

    def enlarged(self, support: Batch) -> Batch:
        """The support set's mean frames and generated vectors; the GAN itself stays as it is.

        Raises
        ------
        ValueError
            If there are no sources and a class has a single clip, whose spread nothing tells.
        """
        device, support = support.targets.device, support.to("cpu")
        present, counts = support.targets.unique(return_counts=True)
        if self.gan is None and self.generated and counts.min() < 2:
            raise ValueError(
                f"class index {int(present[counts.argmin()])} has one clip, and without source "
                "clips nothing tells how clips of a class differ: call fit(sources), give at least "
                "2 clips a class, or set generated = 0"
            )
        vectors = _vectors(support)
        targets = present.repeat_interleave(self.generated)
        made = self._made(vectors, support, targets)
        every = torch.cat([vectors, made]).unsqueeze(1)
        padded = Padded(every, torch.ones(every.shape[:2], dtype=torch.bool))
        return replace(
            support,
            modalities={"audio": padded},
            targets=torch.cat([support.targets, targets]),
            domains={},
        ).to(device)

    def _made(self, vectors: Tensor, support: Batch, targets: Tensor) -> Tensor:
        """Generated vectors of some classes."""
        draw = torch.Generator().manual_seed(self.seed)
        if self.gan is None:
            centre, spread = _moments(vectors)
            gan, steps = self._new(vectors.shape[1], len(support.classes)), self.steps
            real, known = (vectors - centre) / spread, support.targets
            weights = torch.ones(len(real))
        else:
            centre, spread = self._centre, self._spread
            gan, steps = copy.deepcopy(self.gan), self.adapt_steps
            real = torch.cat([(vectors - centre) / spread, self._real])
            known = torch.cat([support.targets, self._targets])
            weights = torch.cat(
                [
                    torch.full((len(vectors),), 1 / len(vectors)),
                    self._weights / self._weights.sum(),
                ]
            )
        play(gan, real, known, weights, steps, draw)
        with torch.no_grad():
            return gan.generate(targets, draw) * spread + centre

    def _new(self, channels: int, classes: int) -> FeatureGAN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FeatureGAN(channels, classes)


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel; one that never varies keeps its unit."""
    spread = vectors.std(dim=0)
    return vectors.mean(dim=0), spread.masked_fill(spread < 1e-6, 1.0)


def _vectors(batch: Batch) -> Tensor:
    return torch.cat([padded.mean() for padded in batch.modalities.values()], dim=1).float()
