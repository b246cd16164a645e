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
        Share of real vectors, in [0, 1], with a generated one in their neighbourhood: near 0 where
        the generator gives the same few vectors over and over.
    density : float
        How many neighbourhoods of real vectors a generated one lies in, as a share of what is
        expected of a real one; at least 0, and near 0 far from all that is real.
    """

    coverage: float
    density: float


def quality(real: np.ndarray, generated: np.ndarray, neighbours: int = 5) -> Quality:
    """Coverage and density of generated vectors.

    Parameters
    ----------
    real, generated : ndarray
        (vectors, channels) each, of about equal number.
    neighbours : int
        The neighbourhood of a real vector reaches to its nearest other real vector but so many;
        at least 1 and below the number of real ones.

    Raises
    ------
    ValueError
        If there are too few real vectors.

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
    radii = np.sort(pairwise_distances(real), axis=1)[:, neighbours]  # the first is itself
    inside = pairwise_distances(real, generated) < radii[:, None]
    return Quality(float(inside.any(axis=1).mean()), float(inside.mean() * len(real) / neighbours))


class FeatureGAN(nn.Module):
    """Generator and discriminator of vectors that belong to classes.

    Parameters
    ----------
    channels : int
        Channels of a vector.
    classes : int
        Classes; both networks are told the class.
    noise : int
        Channels of the noise that the generator starts from.
    hidden : int
        Width of both networks' two hidden layers.

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
        """A vector (clips, channels) of each of the classes (clips,)."""
        noise = torch.randn(len(targets), self.noise, generator=draw)
        return self.generator(torch.cat([noise, self._told(targets)], dim=1))

    def judge(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Logits (clips,) that vectors (clips, channels) of some classes (clips,) are real."""
        return self.discriminator(torch.cat([vectors, self._told(targets)], dim=1)).squeeze(1)

    def _told(self, targets: Tensor) -> Tensor:
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
    weights: Tensor,
    steps: int,
    draw: torch.Generator,
    rate: float = 2e-4,
    batch_size: int = 64,
) -> float:
    """Train both networks in turn, in place.

    The discriminator minimises -log D(x) - log(1 - D(G(z))), the generator -log D(G(z)), which has
    the same fixed point as the minimax game and slopes where the generator is far off. At the
    optimum D is 1/2 everywhere and the value of the game -log 4.

    Parameters
    ----------
    gan : FeatureGAN
        Changed.
    vectors : Tensor
        (clips, channels) real vectors, of about unit deviation.
    targets : Tensor
        (clips,) their classes.
    weights : Tensor
        (clips,) how often each is drawn, at least 0.
    steps : int
        Steps of either network.
    draw : torch.Generator
        Decides.
    rate : float
        Adam's learning rate.
    batch_size : int
        Real and generated vectors a step.

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
    judges, makers = (
        torch.optim.Adam(part.parameters(), lr=rate, betas=(0.5, 0.999), fused=True)
        for part in (gan.discriminator, gan.generator)
    )
    values = []
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.multinomial(weights, batch_size, replacement=True, generator=draw)
            real, wanted = vectors[rows], targets[rows]
            made = gan.generate(wanted, draw)
            true, false = gan.judge(real, wanted), gan.judge(made.detach(), wanted)
            value = functional.logsigmoid(true).mean() + functional.logsigmoid(-false).mean()
            judges.zero_grad()
            (-value).backward()
            judges.step()
            makers.zero_grad()
            functional.logsigmoid(gan.judge(made, wanted)).mean().neg().backward()
            makers.step()
            values.append(float(value.detach()))
    return float(np.mean(values[-max(steps // 10, 1) :])) if values else float("nan")
