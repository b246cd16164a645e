"""A support set enlarged by generated vectors, then logistic regression."""

from metaser.batch import Batch
from metaser.methods.baselines import LogisticRegression
from metaser.methods.feature_gan import Quality
from metaser.methods.inner_loop import Predictor, check_support
from metaser.methods.support_gan import SupportGAN


class GANAugmentation:
    """Logistic regression on the support set and on generated vectors alike.

    Parameters
    ----------
    generated, steps, adapt_steps, seed
        See ``SupportGAN``.
    strength : float
        Penalty of the logistic regression, see ``LogisticRegression``.
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
        """Coverage and density of generated vectors among those of the sources, after ``fit``."""
        return self.gan.quality

    def fit(self, sources: list[Batch]) -> None:
        """Train the GAN on the labelled clips of the source tasks."""
        self.gan.fit(sources)

    def adapt(self, support: Batch) -> Predictor:
        """Enlarge the support set and fit to it; the method itself stays as it is."""
        check_support(support)
        return LogisticRegression(self.strength).adapt(self.gan.enlarged(support))
