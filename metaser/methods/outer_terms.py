"""Further terms of the outer loss: adversaries, contrast over languages, reconstruction.

They look at the embeddings of an episode's clips under the learnt initialisation. The inner loop
and the adaptation to a new language never see them.
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
"""Width in which embeddings are compared."""

SMALLEST_SPREAD = 1e-3
"""Of a channel of the embeddings, for the adversaries: one that is nearly constant stays small."""


class OuterTerms(nn.Module):
    """What is added to a method's loss while it trains.

    With L the method's own loss, the model minimises

        L - adversary ramp (balance L_speaker + (1 - balance) L_corpus)
          + contrast L_contrast + reconstruction L_reconstruction

    while the adversaries, one small network each, minimise L_speaker and L_corpus, the
    cross-entropies of telling from an embedding who speaks and in which corpus (domain-adversarial
    training, DANN). L_contrast is the supervised contrastive loss of a projection of the
    embeddings, over the episode's clips and as many of another source task, so that clips of a
    class are drawn together across languages. L_reconstruction is the error of the backbone's
    autoencoder.

    An adversary that lags behind is deceived, and the next one that looks finds all that was to be
    hidden. Hence the adversaries take further steps of their own before each outer step
    (``catch_up``), on embeddings that are standardised, so that nothing hides by being small.

    Parameters
    ----------
    model : Model
        Whose embeddings; not kept.
    domains : dict of str to int
        How many speakers ("speaker") and corpora ("corpus") the sources have.
    adversary : float
        Weight of the adversaries, at least 0; it grows along ``losses.reversal_ramp``.
    balance : float
        Share of the speaker adversary in [0, 1]; 0 goes without it, 1 without that of the corpus.
    adversary_steps : int
        Gradient steps of the adversaries before each outer step, at least 0; 0 is plain DANN,
        whose adversaries move once with the network.
    adversary_rate : float
        Size of these steps, above 0.
    hidden : int
        Width of the adversaries' hidden layer.
    contrast : float
        Weight of the contrastive loss, at least 0.
    temperature : float
        Of the contrastive loss, above 0.
    reconstruction : float
        Weight of the reconstruction, at least 0, where the backbone has a
        ``reconstruction_error(**modalities)``, one value a clip; other backbones go without.

    References
    ----------
    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17 (2016); Khosla et al.,
    "Supervised Contrastive Learning", NeurIPS 2020; Gao, Liu, Wang, Dang, "Domain-Adversarial
    Autoencoder with Attention Based Feature Level Fusion for Speech Emotion Recognition",
    ICASSP 2021 (the two adversaries and their balance).
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        model: Model,
        domains: dict[str, int],
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
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in [0, 1], not {balance}")
        for name, value in (("temperature", temperature), ("adversary_rate", adversary_rate)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
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
        """Name the weights, which a checkpoint must agree on."""
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
        """The sum of the terms: a scalar, or one value a task for a stack of episodes.

        Parameters
        ----------
        model : Model
            Whose embeddings.
        episode : EpisodeBatch
            With ``domains`` for the adversaries and ``other`` for the contrast.
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
            told = self._domains_told(gradient_reversal(embeddings, strength), clips.domains)
            total = total + told.mean(dim=-1)
        if self.projection is not None:
            seen = self.projection(embeddings)
            total = total + self.contrast * supervised_contrast(
                seen, clips.targets, self.temperature
            )
        error = getattr(model.backbone, "reconstruction_error", None)
        if self.reconstruction and error is not None:
            total = total + self.reconstruction * _reconstruction(error, model, clips)
        return total

    def catch_up(self, model: Model, episodes: Sequence[EpisodeBatch], total: int) -> None:
        """Let the adversaries learn from the clips of an outer step; the model stays as it is.

        Takes ``adversary_steps`` steps of gradient descent in the mean of L_speaker and L_corpus
        over episodes, after setting how embeddings are standardised.

        Parameters
        ----------
        model : Model
            Whose embeddings, as they are while training.
        episodes : sequence of EpisodeBatch
            Of this process.
        total : int
            Episodes of all processes, which take the same steps.

        Raises
        ------
        FloatingPointError
            If the adversaries diverge.
        """
        if not (self.adversaries and self.adversary_steps):
            return
        heard = [self._clips(episode) for episode in episodes]
        none = self.centre.new_zeros(0)  # a process without episodes takes the same steps
        with torch.no_grad():
            found = [embed(model, clips) for clips in heard]
        embeddings = torch.cat([none.view(0, len(self.centre)), *found])
        weights = torch.cat([none, *(none.new_full((len(c),), 1 / len(c) / total) for c in heard)])
        domains = {
            name: torch.cat([none.long(), *(clips.domains[name] for clips in heard)])
            for name in self.adversaries
        }
        self._standardise(embeddings, weights)
        values = list(self.adversaries.parameters())
        for _ in range(self.adversary_steps):
            loss = self._domains_told(embeddings, domains) @ weights
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss of the adversaries is {loss.item()}: lower adversary_rate, which is "
                    f"{self.adversary_rate}"
                )
            slopes = torch.autograd.grad(loss, values)
            sum_over_processes(slopes)
            with torch.no_grad():
                for value, slope in zip(values, slopes):
                    value.sub_(self.adversary_rate * slope)

    def _standardise(self, embeddings: Tensor, weights: Tensor) -> None:
        """Take the mean and deviation of embeddings (clips, dim), whose weights add up to 1."""
        moments = torch.stack([weights @ embeddings, weights @ embeddings.square()])
        sum_over_processes([moments])
        mean, square = moments
        self.centre.copy_(mean)
        self.spread.copy_((square - mean.square()).clamp(min=0).sqrt() + SMALLEST_SPREAD)

    def _clips(self, episode: EpisodeBatch) -> Batch:
        """The clips of an episode that the terms hear."""
        sides = [episode.support, episode.query]
        if self.contrast:
            if episode.other is None:
                raise ValueError(
                    "contrast over languages needs clips of another source task: set "
                    "EpisodeBatch.other, as training does, or contrast = 0"
                )
            sides.append(episode.other)
        return join(sides)

    def _domains_told(self, embeddings: Tensor, domains: dict[str, Tensor]) -> Tensor:
        """Weighted cross-entropy of the adversaries, (..., clips)."""
        losses = []
        seen = (embeddings - self.centre) / self.spread
        for name, share in self.shares.items():
            if name not in self.adversaries or name not in domains:
                remedy = "balance = 0" if name == "speaker" else "balance = 1"
                raise ValueError(
                    f"the {name} adversary needs the {name} of every clip and how many there are: "
                    f"give Batch.domains[{name!r}] and domains = {{{name!r}: …}}, or go without it "
                    f"by {remedy}"
                )
            scores, numbers = self.adversaries[name](seen), domains[name]
            each = functional.cross_entropy(
                scores.flatten(0, -2), numbers.flatten(), reduction="none"
            )
            losses.append(share * each.view(numbers.shape))
        return reduce(torch.add, losses)


def make_terms(
    model: Model, terms: Mapping[str, Any] | None, domains: dict[str, int] | None
) -> OuterTerms | None:
    """The terms that a method's argument ``terms`` names; None if it names none.

    Raises
    ------
    ValueError
        If it names something else; the message gives the nearest known name.
    """
    if not terms:
        return None
    known = list(inspect.signature(OuterTerms).parameters)[2:]
    for name in terms:
        if name not in known:
            raise ValueError(f"terms has no {name!r}.{nearest(name, known)} It has {known}")
    return OuterTerms(model, domains or {}, **terms)


def _dense(dim: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _reconstruction(error: Callable[..., Tensor], model: Model, clips: Batch) -> Tensor:
    """Mean error of the backbone's autoencoder over the clips of a task."""
    modalities = flatten_tasks(clips.modalities) if is_stack(clips) else clips.modalities
    if model.frontend is not None:
        modalities = {**modalities, "audio": model.frontend(modalities["audio"])}
    return error(**modalities).view(clips.targets.shape).mean(dim=-1)
