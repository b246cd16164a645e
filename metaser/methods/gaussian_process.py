"""A multi-task Gaussian process: trust the sources as far as the labelled clips say.

Every task has a linear function of its own from a clip's mean frame to its classes. A share
``rho`` of its prior variance is common to all tasks, the rest is the task's alone: ``rho = 1``
pools sources and target, ``rho = 0`` learns from the target alone. How much the sources are worth
differs from language to language, and the labelled clips tell: for each ``rho`` they are foretold
speaker by speaker from the clips of the others, and predictions are averaged by how well that
went. All is in closed form.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaser.batch import Batch, Padded, mean_frames
from metaser.methods.inner_loop import Adapted, check_support

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)


class MeanFrameScores(nn.Module):
    """Scores that are linear in a clip's mean frame, modalities side by side.

    Parameters
    ----------
    channels, classes : int
        Numbers per frame, and classes.
    """

    frontend = None

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels = {"audio": channels}
        # Without random numbers: its weights are given.
        self.linear = nn.utils.skip_init(nn.Linear, channels, classes)

    def forward(self, modalities: dict[str, Padded]) -> Tensor:
        """Return scores (clips, classes)."""
        return self.linear(mean_frames(modalities).to(self.linear.weight.dtype))


class GaussianProcess(nn.Module):
    """Learn a prior over linear functions from the sources, and condition it on a few clips.

    The covariance of two clips' scores is ``k(x, y) * (rho + (1 - rho) * [same task])`` with
    ``k(x, y) = x @ y / channels + constant``. Every source, and every class within it, counts the
    same. Everything is kept as matrices over ``directions``: no clip of a source remains.

    Parameters
    ----------
    channels, classes : int
        Numbers per frame, and classes.
    shares : sequence of float
        Values of ``rho``, each in [0, 1].
    directions : int
        Leading principal directions of the sources' mean frames that are kept; all if there are
        fewer channels.
    noise : float
        Variance of the noise of one clip, above 0. Targets are 1 - 1/classes and -1/classes.
    constant : float
        Variance of each class's bias, above 0.
    sharpness : float
        What scores are multiplied by to be log-odds.
    temperature : float
        What the log-probabilities of the clips are multiplied by before ``rho`` is weighed: clips
        of one speaker are no independent witnesses.

    References
    ----------
    Bonilla, Chai, Williams, "Multi-task Gaussian Process Prediction", NeurIPS 2007. Leave-out in
    closed form: Rasmussen, Williams, "Gaussian Processes for Machine Learning", 2006, sec. 5.4.2.
    """

    knows_speakers = True

    directions: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        shares: Sequence[float] = SHARES,
        directions: int = 200,
        noise: float = 0.7,
        constant: float = 0.1,
        sharpness: float = 8.0,
        temperature: float = 0.3,
    ) -> None:
        super().__init__()
        for name, value in (("noise", noise), ("constant", constant), ("sharpness", sharpness)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        outside = [share for share in shares if not 0 <= share <= 1]
        if outside or not shares:
            raise ValueError(f"shares must be numbers from 0 to 1, at least one, not {shares}")
        self.shares = tuple(shares)
        self.noise = noise
        self.constant = constant
        self.sharpness = sharpness
        self.temperature = temperature
        size = min(directions, channels)
        self.register_buffer("directions", torch.eye(channels, size, dtype=torch.float64))
        prior = torch.eye(size + 1, dtype=torch.float64)
        self.register_buffer("means", torch.zeros(len(shares), size + 1, classes).double())
        self.register_buffer("covariances", prior.repeat(len(shares), 1, 1))

    @property
    def model(self) -> MeanFrameScores:
        """What the sources say before any clip of a language is known."""
        return self._model(self.means.mean(dim=0))

    def fit(self, sources: Sequence[Batch]) -> None:
        """Condition the prior on the labelled clips of the source tasks, one batch per task."""
        frames = [mean_frames(source.modalities).double() for source in sources]
        moments = sum(values.T @ values / len(values) for values in frames)
        basis = torch.linalg.eigh(moments)[1].flip(1)
        self.directions.copy_(basis[:, : self.directions.shape[1]])
        average = sum(map(len, frames)) / len(frames)
        witnesses = []
        for source, values in zip(sources, frames):
            design = self._design(values)
            weights = _class_weights(source.targets) * average / self.noise
            wanted = design.T @ (weights[:, None] * self._wanted(source.targets))
            precision, axes = torch.linalg.eigh(design.T @ (weights[:, None] * design))
            witnesses.append((precision.clamp(min=0), axes, wanted))
        for index, share in enumerate(self.shares):
            self.means[index], self.covariances[index] = self._posterior(share, witnesses)

    def _posterior(
        self, share: float, witnesses: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of a new task's weights, given the sources.

        A source's weights are ``sqrt(share) * common + sqrt(1 - share) * own``. Its own part is
        integrated out along the axes of its precision.
        """
        unit = torch.eye(self.means.shape[1]).to(self.means)
        if share == 0:
            return torch.zeros_like(self.means[0]), unit
        precision, linear = unit.clone(), torch.zeros_like(self.means[0])
        for values, axes, wanted in witnesses:
            known = 1 / (1 + (1 - share) * values)
            precision += share * (axes * (values * known)) @ axes.T
            linear += share**0.5 * axes @ (known[:, None] * (axes.T @ wanted))
        covariance = torch.linalg.inv(precision)
        return share**0.5 * covariance @ linear, share * covariance + (1 - share) * unit

    def adapt(self, support: Batch) -> Adapted:
        """Condition on labelled clips; the method itself stays as it is.

        ``support.domains["speaker"]`` says who speaks; without it each clip is left out alone.

        Returns
        -------
        Adapted
            ``evidence`` is the log-probability of the clips, each foretold without its speaker.
        """
        check_support(support)
        design = self._design(mean_frames(support.modalities).double())
        targets = support.targets
        speakers = support.domains.get("speaker", torch.arange(len(targets)).to(targets))
        weights, evidence = [], []
        for mean, covariance in zip(self.means, self.covariances):
            spread = design @ covariance
            kernel = spread @ design.T + torch.diag(self.noise / _balanced(targets))
            inverse = torch.linalg.inv(kernel)
            dual = inverse @ (self._wanted(targets) - design @ mean)
            weights.append(mean + spread.T @ dual)
            foretold = self._wanted(targets) - leave_out(inverse, dual, speakers)
            chances = (self.sharpness * foretold).log_softmax(dim=1)
            evidence.append(chances.gather(1, targets[:, None]).sum())
        told = self.temperature * torch.stack(evidence)
        mixed = torch.einsum("s,sdc->dc", told.softmax(dim=0), torch.stack(weights))
        best = float(told.logsumexp(dim=0)) - math.log(len(self.shares))
        return Adapted(self._model(mixed), support.classes, best)

    def _model(self, weights: Tensor) -> MeanFrameScores:
        """Return weights over directions and constant as a model over mean frames."""
        model = MeanFrameScores(len(self.directions), weights.shape[-1]).to(weights.device)
        slope = self.directions @ weights[:-1] / len(self.directions) ** 0.5
        with torch.no_grad():
            model.linear.weight.copy_((self.sharpness * slope).T)
            model.linear.bias.copy_(self.sharpness * self.constant**0.5 * weights[-1])
        return model.eval()

    def _design(self, frames: Tensor) -> Tensor:
        """Return (clips, directions + 1): products of two rows are the kernel."""
        projected = frames @ self.directions / len(self.directions) ** 0.5
        return functional.pad(projected, (0, 1), value=self.constant**0.5)

    def _wanted(self, targets: Tensor) -> Tensor:
        """Return what is regressed on, (clips, classes)."""
        classes = self.means.shape[-1]
        return functional.one_hot(targets, classes).double() - 1 / classes


def leave_out(inverse: Tensor, dual: Tensor, groups: Tensor) -> Tensor:
    """Return what is left over of each clip if its group is foretold from the others.

    Parameters
    ----------
    inverse : Tensor
        (clips, clips) inverse of the kernel with noise.
    dual : Tensor
        (clips, classes) inverse times what is regressed on.
    groups : Tensor of int
        (clips,) clips that are left out together.

    Returns
    -------
    Tensor
        (clips, classes): what is regressed on minus what the other groups foretell.
    """
    left = torch.empty_like(dual)
    for group in groups.unique():
        rows = (groups == group).nonzero().flatten()
        left[rows] = torch.linalg.solve(inverse[rows][:, rows], dual[rows])
    return left


def _class_weights(targets: Tensor) -> Tensor:
    """Return weights (clips,) that sum to 1, the same for every class that there is."""
    counts = targets.bincount()
    return (1 / ((counts > 0).sum() * counts[targets])).double()


def _balanced(targets: Tensor) -> Tensor:
    """Return weights (clips,) of mean 1, the same for every class that there is."""
    return _class_weights(targets) * len(targets)
