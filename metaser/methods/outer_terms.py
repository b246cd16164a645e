"""Further terms of the outer loss: adversaries, contrast over languages, reconstruction.

They look at the embeddings of an episode's clips under the learnt initialisation. The inner loop
and the adaptation to a new language never see them.
"""

from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, EpisodeBatch, join
from metaser.labels import nearest
from metaser.losses import gradient_reversal, reversal_ramp, supervised_contrast
from metaser.methods.inner_loop import embed, flatten_tasks, is_stack
from metaser.model import Model

PROJECTION = 64
"""Width in which embeddings are compared."""


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

    def __init__(
        self,
        model: Model,
        domains: dict[str, int],
        adversary: float = 0.0,
        balance: float = 0.5,
        hidden: int = 64,
        contrast: float = 0.0,
        temperature: float = 0.1,
        reconstruction: float = 1.0,
    ):
        super().__init__()
        for name, value in (
            ("adversary", adversary),
            ("contrast", contrast),
            ("reconstruction", reconstruction),
        ):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance must be in [0, 1], not {balance}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.adversary = adversary
        self.contrast = contrast
        self.temperature = temperature
        self.reconstruction = reconstruction
        shares = {"speaker": balance, "corpus": 1 - balance} if adversary else {}
        self.shares = {name: share for name, share in shares.items() if share}
        dim = model.backbone.dim
        self.adversaries = nn.ModuleDict(
            {name: _dense(dim, hidden, domains[name]) for name in self.shares if name in domains}
        )
        self.projection = _dense(dim, dim, PROJECTION) if contrast else None

    def extra_repr(self) -> str:
        """Name the weights, which a checkpoint must agree on."""
        own = ("adversary", "shares", "contrast", "temperature", "reconstruction")
        return ", ".join(f"{name}={getattr(self, name)}" for name in own)

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
        sides = [episode.support, episode.query]
        if self.contrast:
            if episode.other is None:
                raise ValueError(
                    "contrast over languages needs clips of another source task: set "
                    "EpisodeBatch.other, as training does, or contrast = 0"
                )
            sides.append(episode.other)
        clips = join(sides)
        embeddings = embed(model, clips)
        total = embeddings.new_zeros(clips.targets.shape[:-1])
        if self.adversary:
            strength = self.adversary * reversal_ramp(progress)
            total = total + self._domains_told(gradient_reversal(embeddings, strength), clips)
        if self.contrast:
            seen = self.projection(embeddings)
            total = total + self.contrast * supervised_contrast(
                seen, clips.targets, self.temperature
            )
        if self.reconstruction and hasattr(model.backbone, "reconstruction_error"):
            total = total + self.reconstruction * _reconstruction(model, clips)
        return total

    def _domains_told(self, embeddings: Tensor, clips: Batch) -> Tensor:
        """Weighted cross-entropy of the adversaries."""
        total = 0.0
        for name, share in self.shares.items():
            if name not in self.adversaries or name not in clips.domains:
                remedy = "balance = 0" if name == "speaker" else "balance = 1"
                raise ValueError(
                    f"the {name} adversary needs the {name} of every clip and how many there are: "
                    f"give Batch.domains[{name!r}] and domains = {{{name!r}: …}}, or go without it "
                    f"by {remedy}"
                )
            scores = self.adversaries[name](embeddings)
            numbers = clips.domains[name]
            each = functional.cross_entropy(
                scores.flatten(0, -2), numbers.flatten(), reduction="none"
            )
            total = total + share * each.view(numbers.shape).mean(dim=-1)
        return total


def make_terms(
    model: Model, terms: dict[str, float] | None, domains: dict[str, int] | None
) -> OuterTerms | None:
    """The terms that a method's argument ``terms`` names; None if it names none.

    Raises
    ------
    ValueError
        If it names something else; the message gives the nearest known name.
    """
    if not terms:
        return None
    known = ("adversary", "balance", "hidden", "contrast", "temperature", "reconstruction")
    for name in terms:
        if name not in known:
            raise ValueError(f"terms has no {name!r}.{nearest(name, known)} It has {list(known)}")
    return OuterTerms(model, domains or {}, **terms)


def _dense(dim: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _reconstruction(model: Model, clips: Batch) -> Tensor:
    """Mean error of the backbone's autoencoder over the clips of a task."""
    modalities = flatten_tasks(clips.modalities) if is_stack(clips) else clips.modalities
    if model.frontend is not None:
        modalities = {**modalities, "audio": model.frontend(modalities["audio"])}
    return model.backbone.reconstruction_error(**modalities).view(clips.targets.shape).mean(dim=-1)
