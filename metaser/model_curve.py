"""What a trained model buys: its learning curve beside that of plain logistic regression."""

from collections.abc import Callable

import numpy as np

from metaser.adaptation import fit, scores
from metaser.episodes import Episode
from metaser.features import Features
from metaser.labels import nearest
from metaser.model_file import ModelFile
from metaser.tasks import Task


def adapted_model(file: ModelFile, features: Features) -> Callable[[Episode], np.ndarray]:
    """What guesses by a model that is adapted to an episode's support clips, and knows no others.

    Parameters
    ----------
    file : ModelFile
        As `metaser train` made it; its classes are those of the episodes, in their order.
    features : Features
        Of the task's clips, by the model's front end, not normalised: as `metaser adapt` does, the
        support clips and the sources decide by what they are normalised.
    """

    def guess(episode: Episode) -> np.ndarray:
        adapted, own = fit(file, features, episode.support, episode.support_targets)
        return scores(adapted, own, features, episode.query).argmax(axis=1)

    return guess


def check_model(file: ModelFile, task: Task) -> None:
    """Refuse a model that is adapted already, or classes of the task that it does not know."""
    if file.adapted is not None:
        raise ValueError(
            f"the model is adapted to {file.header.adaptation.name!r} already: give the file that "
            "`metaser train` made"
        )
    known = file.header.classes
    for name in task.classes:
        if name not in known:
            raise ValueError(
                f"{name!r} is not a class of the model.{nearest(name, known)} It knows "
                f"{', '.join(known)}: choose among them by --classes"
            )
