"""Logistic regression on a support set that generated vectors enlarge."""

from metaser.batch import Batch
from metaser.contracts import Predictor
from metaser.methods.baselines import LogisticRegression
from metaser.methods.feature_gan import Quality
from metaser.methods.inner_loop import check_support
from metaser.methods.support_gan import SupportGAN


class GANAugmentation:
    """Logistic regression on the support set together with generated vectors.

    Parameters
    ----------
    generated : int
        Generated vectors per class, at least 0.
    steps : int
        Steps of the game on the source clips, at least 0, see ``SupportGAN``.
    adapt_steps : int
        Steps of the game on sources and support set, see ``SupportGAN``.
    strength : float
        Penalty of the logistic regression, see ``LogisticRegression``.
    seed : int
        Decides where the networks start and what is drawn.
    """

    use_sources = True

    def __init__(
        self,
        generated: int = 10,
        steps: int = 1000,
        adapt_steps: int = 50,
        strength: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.gan = SupportGAN(generated, steps, adapt_steps, seed)
        self.strength = strength

    @property
    def quality(self) -> Quality | None:
        """Coverage and density of generated vectors among the sources' vectors, after ``fit``."""
        return self.gan.quality

    def fit(self, sources: list[Batch]) -> None:
        """Train the GAN on the labelled clips of the source tasks."""
        self.gan.fit(sources)

    def adapt(self, support: Batch) -> Predictor:
        """Return a regression on the enlarged support set; the method itself does not change."""
        check_support(support)
        return LogisticRegression(self.strength).adapt(self.gan.enlarged(support))
