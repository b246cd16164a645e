"""Transfer learning: train on the source languages, then fine-tune on the target's few clips."""

from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.contracts import Predictor
from metaser.losses import cross_entropy
from metaser.methods.feature_gan import Quality
from metaser.methods.fine_tune import CYCLES, as_embeddings, tune_all, tune_head
from metaser.methods.inner_loop import check_steps, check_support, task_loss
from metaser.methods.outer_terms import make_terms
from metaser.methods.support_gan import SupportGAN
from metaser.model import Model


class Transfer(nn.Module):
    """Pre-training on source corpora, then fine-tuning: TransSER and its relatives.

    Parameters
    ----------
    model : Model
        Any backbone and head.
    order : {"sequential", "mixed"}
        Pre-train on one source corpus after the other, as the paper's TransSER does, or on all
        of them mixed.
    pretrain : bool
        Whether to pre-train. Without it the model sees the target's clips alone (from scratch).
    trainable : {"head", "all"}
        What fine-tuning changes: the head after a frozen backbone, or everything.
    steps : int
        Fine-tuning steps, at least 0; 0 leaves the pre-trained model as it is (zero-shot).
    rate : float
        Highest rate of the cyclic schedule of fine-tuning.
    rehearsal : float
        Weight of the source clips while everything is fine-tuned, in clips per class, at least 0,
        see ``tune_all``.
    cycle : {"paper", "released"}
        How the rate rises and falls while the head is tuned, see ``fine_tune.CYCLES``.
    fresh_head : bool
        Tune a head drawn at random. The released code of the paper does so, because it loads the
        weights of the recurrent layers alone.
    generated : int
        Embeddings per class, at least 0, that a GAN adds to the support set while the head is
        tuned, see ``SupportGAN``. The GAN learns from the embeddings of the source clips.
    gan_steps : int
        Steps of the GAN's game on the source clips. Embeddings need more steps than features: with
        1000 steps, less than a tenth of them were covered.
    terms : dict, optional
        Further terms of the loss while pre-training, as arguments of ``OuterTerms``:
        ``{"adversary": 0.1}`` is domain-adversarial training.
    domains : dict of str to int, optional
        How many speakers ("speaker") and corpora ("corpus") the sources have, for adversaries.

    Raises
    ------
    ValueError
        If an argument is out of range, or does not go with the others.

    References
    ----------
    Chopra et al., "Meta-Learning for Low-Resource Speech Emotion Recognition", ICASSP 2021.
    """

    ADAPTATION = frozenset(
        {"trainable", "steps", "rate", "rehearsal", "cycle", "fresh_head", "generated", "gan_steps"}
    )
    """Arguments that matter only after training."""

    stackable = True

    def __init__(
        self,
        model: Model,
        *,
        order: str = "mixed",
        pretrain: bool = True,
        trainable: str = "all",
        steps: int = 50,
        rate: float = 1e-3,
        rehearsal: float = 0.0,
        cycle: str = "paper",
        fresh_head: bool = False,
        generated: int = 0,
        gan_steps: int = 5000,
        terms: dict[str, float] | None = None,
        domains: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        if order not in ("sequential", "mixed"):
            raise ValueError(
                f"order must be 'sequential' or 'mixed', not {order!r}: choose one of them"
            )
        if trainable not in ("head", "all"):
            raise ValueError(
                f"trainable must be 'head' or 'all', not {trainable!r}: choose one of them"
            )
        if cycle not in CYCLES:
            raise ValueError(
                f"cycle must be one of {sorted(CYCLES)}, not {cycle!r}: choose one of them"
            )
        if trainable == "all" and (cycle != "paper" or fresh_head or generated):
            raise ValueError(
                "trainable must be 'head' for cycle, fresh_head and generated, not 'all': set "
                "trainable = 'head', or leave the three as they are"
            )
        check_steps(steps=steps)
        self.model = model
        self.order = order
        self.pretrain = pretrain
        self.trainable = trainable
        self.steps = steps
        self.rate = rate
        self.rehearsal = rehearsal
        self.cycle = cycle
        self.fresh_head = fresh_head
        self.generated = generated
        self.gan_steps = gan_steps
        self.gan = SupportGAN(generated, gan_steps) if generated else None
        self.sources: list[Batch] = []
        self.terms = make_terms(model, terms, domains)
        self.hears_other = self.terms is not None and self.terms.contrast > 0
        self.progress = 1.0

    def loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the cross-entropy over all clips of the episode, plus the further terms."""
        own = self.validation_loss(episode)
        return own if self.terms is None else own + self.terms(self.model, episode, self.progress)

    def validation_loss(self, episode: EpisodeBatch) -> Tensor:
        """Return the cross-entropy over all clips of the episode."""
        return task_loss(self.model, {}, episode.joined())

    @property
    def use_sources(self) -> bool:
        """Whether adapting needs the source clips that ``fit`` is given."""
        return self.rehearsal > 0 or self.generated > 0

    @property
    def quality(self) -> Quality | None:
        """Coverage and density of generated embeddings among those of the sources."""
        return None if self.gan is None else self.gan.quality

    def fit(self, sources: list[Batch]) -> None:
        """Keep the labelled clips of the source tasks for rehearsal; train the GAN, if any."""
        self.sources = sources
        if self.gan is not None:
            self.gan.fit([as_embeddings(self.model, batch) for batch in sources])

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune on labelled clips of a language; the method itself does not change."""
        check_support(support)
        if self.trainable == "head":
            return tune_head(
                self.model,
                support,
                cross_entropy,
                steps=self.steps,
                rate=self.rate,
                cycle=self.cycle,
                anew=self.fresh_head,
                enlarge=None if self.gan is None else self.gan.enlarged,
            )
        return tune_all(self.model, support, self.steps, self.rate, self.sources, self.rehearsal)
