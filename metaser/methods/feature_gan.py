"""A class-conditional generative adversarial network (GAN) over feature vectors of utterances."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import pairwise_distances
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Quality:
    """How generated vectors lie among real ones.

    Attributes
    ----------
    coverage : float
        Share of real vectors, in [0, 1], that have a generated one in their neighbourhood. It is
        near 0 if the generator repeats the same few vectors.
    density : float
        In how many neighbourhoods of real vectors a generated vector lies, relative to what is
        expected of a real one. At least 0, and near 0 if the generated ones are far from the real.
    """

    coverage: float
    density: float


def quality(real: np.ndarray, generated: np.ndarray, neighbours: int = 5) -> Quality:
    """Return the coverage and the density of generated vectors.

    Parameters
    ----------
    real, generated : ndarray
        (vectors, channels) each, of about equal number.
    neighbours : int
        The neighbourhood of a real vector reaches to its nearest other real vector of this number:
        5 means the fifth nearest. At least 1 and below the number of real vectors.

    Raises
    ------
    ValueError
        If ``neighbours`` is below 1, or there are too few real vectors.

    References
    ----------
    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020,
    equations 5 and 6.
    """
    if not 1 <= neighbours < len(real):
        raise ValueError(
            f"neighbours must be at least 1 and below the {len(real)} real vectors, not "
            f"{neighbours}: give more real vectors, or look at fewer neighbours"
        )
    radii = np.sort(pairwise_distances(real), axis=1)[:, neighbours]  # 0 is itself
    inside = pairwise_distances(real, generated) < radii[:, None]
    return Quality(float(inside.any(axis=1).mean()), float(inside.mean() * len(real) / neighbours))


class FeatureGAN(nn.Module):
    """A generator and a discriminator of vectors that belong to classes.

    Both networks are given the class of a vector.

    Parameters
    ----------
    channels : int
        Channels of a vector.
    classes : int
        Number of classes.
    noise : int
        Channels of the noise that the generator starts from.
    hidden : int
        Width of the two hidden layers of each network.

    References
    ----------
    Goodfellow et al., "Generative Adversarial Networks", NeurIPS 2014, arXiv:1406.2661; Mirza and
    Osindero, "Conditional Generative Adversarial Nets", arXiv:1411.1784.
    """

    def __init__(self, channels: int, classes: int, noise: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.noise = noise
        self.classes = classes
        self.generator = _network(noise + classes, hidden, channels)
        self.discriminator = _network(channels + classes, hidden, 1)

    def generate(self, targets: Tensor, draw: torch.Generator) -> Tensor:
        """Return one vector for each of the classes.

        Parameters
        ----------
        targets : Tensor
            (clips,) int64 class indices.
        draw : torch.Generator
            Draws the noise.

        Returns
        -------
        Tensor
            (clips, channels).
        """
        noise = torch.randn(len(targets), self.noise, generator=draw)
        vectors: Tensor = self.generator(torch.cat([noise, self._one_hot(targets)], dim=1))
        return vectors

    def judge(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Return logits (clips,) of being real, for vectors (clips, channels) of known classes."""
        logits: Tensor = self.discriminator(torch.cat([vectors, self._one_hot(targets)], dim=1))
        return logits.squeeze(1)

    def _one_hot(self, targets: Tensor) -> Tensor:
        return functional.one_hot(targets, self.classes).to(torch.float32)


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )


def play(
    gan: FeatureGAN,
    vectors: Tensor,
    targets: Tensor,
    *,
    weights: Tensor,
    steps: int,
    draw: torch.Generator,
    rate: float = 2e-4,
    batch_size: int = 64,
) -> float:
    """Train both networks in turn, in place, and return the value of their game.

    The discriminator minimises -log D(x) - log(1 - D(G(z))), the generator -log D(G(z)). This has
    the same fixed point as the minimax game, but also a gradient where the generator is far off. At
    the optimum D is 1/2 everywhere and the value of the game is -log 4.

    Parameters
    ----------
    gan : FeatureGAN
        Changed.
    vectors : Tensor
        (clips, channels) real vectors, of about unit deviation.
    targets : Tensor
        (clips,) int64 indices of their classes.
    weights : Tensor
        (clips,) float; how often each is drawn, relative to the others, at least 0.
    steps : int
        Steps of each network.
    draw : torch.Generator
        Draws the real vectors and the noise.
    rate : float
        Learning rate of Adam.
    batch_size : int
        Real vectors per step, and as many generated ones.

    Returns
    -------
    float
        Value of the game E log D(x) + E log(1 - D(G(z))) over the last tenth of the steps; NaN
        without steps.

    References
    ----------
    Goodfellow et al. 2014, algorithm 1 with one discriminator step; Adam's first moment 0.5 as in
    Radford, Metz, Chintala, ICLR 2016.
    """
    of_discriminator, of_generator = (
        torch.optim.Adam(part.parameters(), lr=rate, betas=(0.5, 0.999), fused=True)
        for part in (gan.discriminator, gan.generator)
    )
    values = []
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.multinomial(weights, batch_size, replacement=True, generator=draw)
            real, classes = vectors[rows], targets[rows]
            made = gan.generate(classes, draw)
            of_real, of_made = gan.judge(real, classes), gan.judge(made.detach(), classes)
            value = functional.logsigmoid(of_real).mean() + functional.logsigmoid(-of_made).mean()
            of_discriminator.zero_grad()
            (-value).backward()
            of_discriminator.step()
            of_generator.zero_grad()
            functional.logsigmoid(gan.judge(made, classes)).mean().neg().backward()
            of_generator.step()
            values.append(float(value.detach()))
    return float(np.mean(values[-max(steps // 10, 1) :])) if values else float("nan")
