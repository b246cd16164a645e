"""Terms of the outer loss: adversaries, contrast over languages, reconstruction.

They are computed on the embeddings of an episode's clips by the learnt initialisation. The inner
loop and the adaptation to a new language do not see them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch, join
from metaser.losses import gradient_reversal, reversal_ramp, supervised_contrast
from metaser.machine import sum_over_processes
from metaser.methods.inner_loop import embed, embedding_dim, flatten_tasks, is_stack
from metaser.model import Model
from metaser.naming import nearest

PROJECTION = 64
"""Length of the projected embeddings that the contrast compares."""

SMALLEST_SPREAD = 1e-3
"""Added to the deviation of each channel, so that a nearly constant channel stays small."""


class OuterTerms(nn.Module):
    """Terms that are added to a method's loss while it trains.

    With L for the method's own loss, the model minimises

        L - adversary ramp (balance L_speaker + (1 - balance) L_corpus)
          + contrast L_contrast + reconstruction L_reconstruction

    The adversaries are one small network each. They minimise L_speaker and L_corpus, the
    cross-entropies of telling the speaker and the corpus from an embedding (domain-adversarial
    training, DANN). L_contrast is the supervised contrastive loss of a projection of the
    embeddings, over the episode's clips and clips of another source task. It draws clips of one
    class together across languages. L_reconstruction is the error of the backbone's autoencoder.

    A model can deceive an adversary that learns too slowly, without hiding anything from others.
    Hence the adversaries take steps of their own before each outer step (``catch_up``). Their
    embeddings are standardised, so that the model cannot hide something by making it small.

    Parameters
    ----------
    model : Model
        The model whose embeddings are used; not kept.
    domains : dict of str to int
        How many speakers ("speaker") and corpora ("corpus") the sources have.
    adversary : float
        Weight of the adversaries, at least 0; it grows along ``losses.reversal_ramp``.
    balance : float
        Share of the speaker adversary, in [0, 1]. 0 leaves it out, 1 leaves out the one of the
        corpus.
    adversary_steps : int
        Gradient steps of the adversaries before each outer step, at least 0. 0 is plain DANN, whose
        adversaries are trained by the outer step alone.
    adversary_rate : float
        Size of these steps, above 0.
    hidden : int
        Width of the hidden layer of each adversary.
    contrast : float
        Weight of the contrastive loss, at least 0.
    temperature : float
        Temperature of the contrastive loss, above 0.
    reconstruction : float
        Weight of the reconstruction, at least 0. It counts only if the backbone has
        ``reconstruction_error(**modalities)``, which returns one value per clip.

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016); Khosla et al.,
    "Supervised Contrastive Learning", NeurIPS 2020; Gao, Liu, Wang, Dang, "Domain-Adversarial
    Autoencoder with Attention Based Feature Level Fusion for Speech Emotion Recognition",
    ICASSP 2021 (the two adversaries and their balance).
    """

    centre: Tensor  # (dim,) mean and, below, deviation of the embeddings, for the adversaries
    spread: Tensor

    def __init__(
        self,
        model: Model,
        domains: dict[str, int],
        *,
        adversary: float = 0.0,
        balance: float = 0.5,
        adversary_steps: int = 10,
        adversary_rate: float = 1.0,
        hidden: int = 64,
        contrast: float = 0.0,
        temperature: float = 0.1,
        reconstruction: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("adversary", adversary),
            ("adversary_steps", adversary_steps),
            ("contrast", contrast),
            ("reconstruction", reconstruction),
        ):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}: take 0 to go without")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in [0, 1], not {balance}: take a share such as 0.5")
        for name, value in (("temperature", temperature), ("adversary_rate", adversary_rate)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}: take a number such as 0.1")
        self.adversary = adversary
        self.adversary_steps = adversary_steps
        self.adversary_rate = adversary_rate
        self.contrast = contrast
        self.temperature = temperature
        self.reconstruction = reconstruction
        shares = {"speaker": balance, "corpus": 1 - balance} if adversary else {}
        self.shares = {name: share for name, share in shares.items() if share}
        dim = embedding_dim(model)
        self.adversaries = nn.ModuleDict(
            {name: _dense(dim, hidden, domains[name]) for name in self.shares if name in domains}
        )
        if adversary:
            self.register_buffer("centre", torch.zeros(dim))
            self.register_buffer("spread", torch.ones(dim))
        self.projection = _dense(dim, dim, PROJECTION) if contrast else None

    def extra_repr(self) -> str:
        """Return the weights as text; those of a checkpoint must be the same."""
        names = (
            "adversary",
            "shares",
            "adversary_steps",
            "adversary_rate",
            "contrast",
            "temperature",
            "reconstruction",
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, model: Model, episode: EpisodeBatch, progress: float) -> Tensor:
        """Return the sum of the terms: a scalar, or one value per task for a stack of episodes.

        Parameters
        ----------
        model : Model
            The model whose embeddings are used.
        episode : EpisodeBatch
            With ``domains`` in its batches for the adversaries, and ``other`` for the contrast.
        progress : float
            Share of the training that is over, in [0, 1].

        Raises
        ------
        ValueError
            If the episode lacks what a term needs.
        """
        clips = self._clips(episode)
        embeddings = embed(model, clips)
        total = embeddings.new_zeros(clips.targets.shape[:-1])
        if self.adversary:
            strength = self.adversary * reversal_ramp(progress)
            losses = self._domain_losses(gradient_reversal(embeddings, strength), clips.domains)
            total = total + losses.mean(dim=-1)
        if self.projection is not None:
            projected = self.projection(embeddings)
            total = total + self.contrast * supervised_contrast(
                projected, clips.targets, self.temperature
            )
        error = getattr(model.backbone, "reconstruction_error", None)
        if self.reconstruction and error is not None:
            total = total + self.reconstruction * _reconstruction(error, model, clips)
        return total

    def catch_up(self, model: Model, episodes: Sequence[EpisodeBatch], total: int) -> None:
        """Train the adversaries on the clips of an outer step; the model does not change.

        First it sets how embeddings are standardised. Then it takes ``adversary_steps`` steps of
        gradient descent in the mean of L_speaker and L_corpus over the episodes.

        Parameters
        ----------
        model : Model
            The model whose embeddings are used, in its state while training.
        episodes : sequence of EpisodeBatch
            The episodes of this process.
        total : int
            Number of episodes of all processes, which take the same steps.

        Raises
        ------
        FloatingPointError
            If the adversaries diverge.
        """
        if not (self.adversaries and self.adversary_steps):
            return
        batches = [self._clips(episode) for episode in episodes]
        none = self.centre.new_zeros(0)  # a process without episodes takes the same steps
        with torch.no_grad():
            embedded = [embed(model, batch) for batch in batches]
        embeddings = torch.cat([none.view(0, len(self.centre)), *embedded])
        weights = torch.cat(
            [none, *(none.new_full((len(batch),), 1 / len(batch) / total) for batch in batches)]
        )
        domains = {
            name: torch.cat([none.long(), *(batch.domains[name] for batch in batches)])
            for name in self.adversaries
        }
        self._standardise(embeddings, weights)
        parameters = list(self.adversaries.parameters())
        for _ in range(self.adversary_steps):
            loss = self._domain_losses(embeddings, domains) @ weights
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss of the adversaries must be finite, not {loss.item()}: lower "
                    f"adversary_rate, which is {self.adversary_rate}"
                )
            gradients = torch.autograd.grad(loss, parameters)
            sum_over_processes(gradients)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients):
                    parameter.sub_(self.adversary_rate * gradient)

    def _standardise(self, embeddings: Tensor, weights: Tensor) -> None:
        """Keep mean and deviation of embeddings (clips, dim), whose weights (clips,) sum to 1."""
        moments = torch.stack([weights @ embeddings, weights @ embeddings.square()])
        sum_over_processes([moments])
        mean, square = moments
        self.centre.copy_(mean)
        self.spread.copy_((square - mean.square()).clamp(min=0).sqrt() + SMALLEST_SPREAD)

    def _clips(self, episode: EpisodeBatch) -> Batch:
        """Return the clips of an episode that the terms are computed on."""
        sides = [episode.support, episode.query]
        if self.contrast:
            if episode.other is None:
                raise ValueError(
                    "the episode must have clips of another source task for the contrast, not "
                    "none: set EpisodeBatch.other, as training does, or contrast = 0"
                )
            sides.append(episode.other)
        return join(sides)

    def _domain_losses(self, embeddings: Tensor, domains: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy (..., clips) of the adversaries, weighted by their shares."""
        losses = []
        standardised = (embeddings - self.centre) / self.spread
        for name, share in self.shares.items():
            if name not in self.adversaries or name not in domains:
                remedy = "balance = 0" if name == "speaker" else "balance = 1"
                raise ValueError(
                    f"the {name} adversary must have the {name} of every clip and how many there "
                    f"are, not only one or none of them: give Batch.domains[{name!r}] and domains "
                    f"= {{{name!r}: …}}, or leave the adversary out by {remedy}"
                )
            scores, numbers = self.adversaries[name](standardised), domains[name]
            unweighted = functional.cross_entropy(
                scores.flatten(0, -2), numbers.flatten(), reduction="none"
            )
            losses.append(share * unweighted.view(numbers.shape))
        return reduce(torch.add, losses)


def make_terms(
    model: Model, terms: Mapping[str, Any] | None, domains: dict[str, int] | None
) -> OuterTerms | None:
    """Return the terms that a method's argument ``terms`` asks for; None if it asks for none.

    Parameters
    ----------
    model : Model
        The model whose embeddings are used.
    terms : dict, optional
        Arguments of ``OuterTerms`` by name.
    domains : dict of str to int, optional
        How many speakers ("speaker") and corpora ("corpus") the sources have.

    Raises
    ------
    ValueError
        If there is no such argument (the message names the nearest one), or it is out of range.
    """
    if not terms:
        return None
    known = list(inspect.signature(OuterTerms).parameters)[2:]
    for name in terms:
        if name not in known:
            raise ValueError(
                f"terms must be of {', '.join(known)}, not {name!r}.{nearest(name, known)} "
                "Choose among these"
            )
    return OuterTerms(model, domains or {}, **terms)


def _dense(dim: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _reconstruction(error: Callable[..., Tensor], model: Model, clips: Batch) -> Tensor:
    """Return the mean of ``error`` over the clips, a scalar or one value per task."""
    modalities = flatten_tasks(clips.modalities) if is_stack(clips) else clips.modalities
    if model.frontend is not None:
        modalities = {**modalities, "audio": model.frontend(modalities["audio"])}
    return error(**modalities).view(clips.targets.shape).mean(dim=-1)
