"""Transfer learning: train on the source languages, then fine-tune on the target's few clips."""

from torch import Tensor, nn

from metaser.batch import Batch, EpisodeBatch
from metaser.losses import cross_entropy
from metaser.methods.feature_gan import Quality
from metaser.methods.fine_tune import CYCLES, as_embeddings, tune_all, tune_head
from metaser.methods.inner_loop import Predictor, check_steps, check_support, task_loss
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
        of them in every step.
    pretrain : bool
        Without pre-training the target's clips are all the model ever sees (from scratch).
    trainable : {"head", "all"}
        What fine-tuning changes: the dense layers after a frozen backbone, or everything.
    steps : int
        Fine-tuning steps; 0 leaves the pre-trained model as it is (zero-shot).
    rate : float
        Highest fine-tuning rate of the cyclic schedule.
    rehearsal : float
        Clips a class, at least 0, that the source clips count as while everything is fine-tuned,
        see ``tune_all``.
    cycle : {"paper", "released"}
        How the rate of the head's fine-tuning runs up and down, see ``fine_tune.CYCLES``.
    fresh_head : bool
        Fine-tune a head drawn at random, as the released code of the paper does, which loads the
        weights of the recurrent layers alone.
    generated : int
        Embeddings a class, at least 0, that a GAN adds to the support set while the head is tuned,
        see ``SupportGAN``; it learns from the source clips' embeddings.
    gan_steps : int
        Steps of the GAN's game on the source clips. Embeddings ask for more than features: 1000
        covered less than a tenth of them.
    terms : dict, optional
        Further terms of the loss while pre-training, as arguments of ``OuterTerms``:
        ``{"adversary": 0.1}`` is domain-adversarial training.
    domains : dict of str to int, optional
        Speakers and corpora of the sources, for adversaries.

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
            raise ValueError(f"order must be 'sequential' or 'mixed', not {order!r}")
        if trainable not in ("head", "all"):
            raise ValueError(f"trainable must be 'head' or 'all', not {trainable!r}")
        if cycle not in CYCLES:
            raise ValueError(f"cycle must be one of {sorted(CYCLES)}, not {cycle!r}")
        if trainable == "all" and (cycle != "paper" or fresh_head or generated):
            raise ValueError(
                "cycle, fresh_head and generated are of the head's tuning: set trainable = 'head'"
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
        """Cross-entropy over all clips of the episode, and the further terms."""
        own = self.validation_loss(episode)
        return own if self.terms is None else own + self.terms(self.model, episode, self.progress)

    def validation_loss(self, episode: EpisodeBatch) -> Tensor:
        """Cross-entropy over all clips of the episode."""
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
        """Keep the labelled clips of the source tasks for rehearsal, or train the GAN on them."""
        self.sources = sources
        if self.gan is not None:
            self.gan.fit([as_embeddings(self.model, batch) for batch in sources])

    def adapt(self, support: Batch) -> Predictor:
        """Fine-tune on labelled clips of a language; the method itself stays as it is."""
        check_support(support)
        if self.trainable == "head":
            return tune_head(
                self.model,
                support,
                cross_entropy,
                self.steps,
                self.rate,
                self.cycle,
                self.fresh_head,
                None if self.gan is None else self.gan.enlarged,
            )
        return tune_all(self.model, support, self.steps, self.rate, self.sources, self.rehearsal)
