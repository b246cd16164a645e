"""A support set enlarged by vectors of a generative adversarial network (GAN)."""

import copy
import logging
from dataclasses import replace

import torch
from torch import Tensor

from metaser.batch import Batch, Padded
from metaser.methods.feature_gan import FeatureGAN, Quality, play, quality

MOST_JUDGED = 1000
"""Coverage and density are measured on this many vectors, at most."""

COLLAPSED = 0.2
"""If the generator covers a smaller share of the source vectors, a warning is logged."""

log = logging.getLogger(__name__)


class SupportGAN:
    """Enlarge a support set by a class-conditional GAN over mean frames.

    First the GAN learns from the source clips (``fit``) what vectors of a class look like. Then it
    learns from the support set and the sources, with equal weight, what they look like in this
    language. Without sources it learns from the support set alone.

    Parameters
    ----------
    generated : int
        Generated vectors per class, at least 0.
    steps : int
        Steps of the game on the source clips, or on the support set if there are no sources. At
        least 0.
    adapt_steps : int
        Steps of the game on sources and support set.
    seed : int
        Decides where the networks start and what is drawn.

    Attributes
    ----------
    quality : Quality or None
        Coverage and density of generated vectors among the sources' vectors, after ``fit``.

    Raises
    ------
    ValueError
        If ``generated`` or ``steps`` is below 0.

    References
    ----------
    Goodfellow et al., "Generative Adversarial Networks", NeurIPS 2014.
    """

    def __init__(
        self, generated: int = 10, steps: int = 1000, adapt_steps: int = 50, seed: int = 0
    ) -> None:
        for name, value in (("generated", generated), ("steps", steps)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}: take 0 for none")
        self.generated = generated
        self.steps = steps
        self.adapt_steps = adapt_steps
        self.seed = seed
        self.gan: FeatureGAN | None = None
        self.quality: Quality | None = None

    def fit(self, sources: list[Batch]) -> None:
        """Train the GAN on the labelled clips of the source tasks; every task has the same weight.

        Coverage and density are logged, with a warning if the generator has collapsed.
        """
        sources = [batch.to("cpu") for batch in sources]  # so that all devices draw the same
        values = [_vectors(batch) for batch in sources]
        pooled = torch.cat(values)
        self._centre, self._spread = _moments(pooled)
        self._real = (pooled - self._centre) / self._spread
        self._targets = torch.cat([batch.targets for batch in sources])
        self._weights = torch.cat([torch.full((len(v),), 1 / len(v)) for v in values])
        draw = torch.Generator().manual_seed(self.seed)
        self.gan = self._new(self._real.shape[1], len(sources[0].classes))
        value = play(
            self.gan,
            self._real,
            self._targets,
            weights=self._weights,
            steps=self.steps,
            draw=draw,
        )
        rows = torch.randperm(len(self._real), generator=draw)[:MOST_JUDGED]
        with torch.no_grad():
            made = self.gan.generate(self._targets[rows], draw)
        self.quality = quality(self._real[rows].numpy(), made.numpy())
        measured = f"coverage {self.quality.coverage:.2f}, density {self.quality.density:.2f}"
        log.info(
            "generated vectors among the sources' vectors: %s; value of the game %.2f",
            measured,
            value,
        )
        if self.quality.coverage < COLLAPSED:
            log.warning(
                "the generator covers little of the sources (%s): take more steps, or fewer "
                "channels",
                measured,
            )

    def enlarged(self, support: Batch) -> Batch:
        """Return the support set's mean frames with generated vectors; the GAN does not change.

        The mean frames of all modalities, side by side, become the one frame of "audio".

        Raises
        ------
        ValueError
            If there are no sources and a class has one clip only, which does not show how clips of
            a class differ.
        """
        device, support = support.targets.device, support.to("cpu")
        present, counts = support.targets.unique(return_counts=True)
        if self.gan is None and self.generated and counts.min() < 2:
            raise ValueError(
                "each class must have at least 2 clips where there are no source clips, not one "
                f"clip (class index {int(present[counts.argmin()])}): call fit(sources), add "
                "clips, or set generated = 0"
            )
        vectors = _vectors(support)
        targets = present.repeat_interleave(self.generated)
        made = self._made(vectors, support, targets)
        frames = torch.cat([vectors, made]).unsqueeze(1)
        padded = Padded(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
        return replace(
            support,
            modalities={"audio": padded},
            targets=torch.cat([support.targets, targets]),
            domains={},
        ).to(device)

    def _made(self, vectors: Tensor, support: Batch, targets: Tensor) -> Tensor:
        """Return generated vectors (clips, channels) of the classes in ``targets`` (clips,)."""
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
        play(gan, real, known, weights=weights, steps=steps, draw=draw)
        with torch.no_grad():
            return gan.generate(targets, draw) * spread + centre

    def _new(self, channels: int, classes: int) -> FeatureGAN:
        """Return a GAN that starts where the seed says."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FeatureGAN(channels, classes)


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel; the deviation is 1 if it never varies."""
    spread = vectors.std(dim=0)
    return vectors.mean(dim=0), spread.masked_fill(spread < 1e-6, 1.0)


def _vectors(batch: Batch) -> Tensor:
    """Return the mean frames (clips, channels) of all modalities, side by side."""
    return torch.cat([padded.mean() for padded in batch.modalities.values()], dim=1).float()
