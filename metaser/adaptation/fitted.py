"""A model adapted to a language, and what its features are normalised by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax

from metaser.batch import Batch, Padded
from metaser.features.table import OUTLIER, Features, enough_threads
from metaser.features.voice import CENTRE_PRIOR, SPREAD_PRIOR, lean
from metaser.methods.inner_loop import Adapted


@dataclass(frozen=True)
class Constants:
    """What features are normalised by.

    Attributes
    ----------
    centre, spread : ndarray
        (channels,) float32; mean and standard deviation of each channel.
    neutral : ndarray or None
        (channels,) float32; where neutral clips lie in normalised features. None where no labelled
        clip has told.
    """

    centre: np.ndarray
    spread: np.ndarray
    neutral: np.ndarray | None = None

    def apply(self, batch: Batch) -> Batch:
        """Return a batch whose audio is normalised; padding stays 0."""
        audio = batch.modalities["audio"]
        values = (audio.values - torch.from_numpy(self.centre)) / torch.from_numpy(self.spread)
        values = values.clamp(-OUTLIER, OUTLIER) * audio.mask.unsqueeze(-1)
        return replace(batch, modalities={**batch.modalities, "audio": Padded(values, audio.mask)})


def constants_of(
    features: Features,
    rows: np.ndarray,
    prior: Constants | None = None,
    weights: tuple[float, float] = (0.0, 0.0),
) -> Constants:
    """Return the means and deviations over all frames of some clips.

    Parameters
    ----------
    features : Features
        Features that are not normalised.
    rows : ndarray of int
        Rows of the clips.
    prior : Constants, optional
        Averaged with those of the clips, to help where the clips are few. Where neutral clips lie
        is taken from it.
    weights : tuple of float
        Number of clips that the means and the deviations of ``prior`` count as.
    """
    lengths = features.lengths[rows]
    values = features.values[rows]
    frames = values[np.arange(values.shape[1]) < lengths[:, None]].astype(np.float64)
    centre, variance = frames.mean(axis=0), frames.var(axis=0)
    if prior is not None:
        centre = lean(centre, prior.centre, len(rows), weights[0])
        variance = lean(variance, prior.spread.astype(np.float64) ** 2, len(rows), weights[1])
    spread = np.maximum(np.sqrt(variance), 1e-6)
    neutral = None if prior is None else prior.neutral
    return Constants(centre.astype(np.float32), spread.astype(np.float32), neutral)


def where_neutral(support: Batch, neutral: int, prior: np.ndarray | None) -> np.ndarray | None:
    """Return where neutral clips lie in normalised features (channels,), relative to all clips.

    Parameters
    ----------
    support : Batch
        Labelled clips, normalised.
    neutral : int
        Index of the class.
    prior : ndarray, optional
        Where those of the sources lie, 0 if not given; it counts as ``CENTRE_PRIOR`` clips.

    Returns
    -------
    ndarray or None
        ``prior`` where no clip is neutral.
    """
    clips = support.modalities["audio"].mean().double().numpy()
    mine = clips[support.targets.numpy() == neutral]
    if not len(mine):
        return prior
    common = np.zeros(clips.shape[1]) if prior is None else prior
    found = mine.mean(axis=0) - clips.mean(axis=0)
    return lean(found, common, len(mine), CENTRE_PRIOR).astype(np.float32)


def constants_of_voice(
    features: Features, rows: np.ndarray, own: Constants, *, neutral: bool = False
) -> Constants:
    """Return what a voice is normalised by, from some clips of it; it leans on the language's.

    Parameters
    ----------
    features, rows
        The clips, not normalised.
    own : Constants
        Of the language.
    neutral : bool
        The clips are neutral ones: their mean is moved by where those lie, and the spread stays
        that of the language.
    """
    if not neutral:
        return constants_of(features, rows, own, (CENTRE_PRIOR, SPREAD_PRIOR))
    assert own.neutral is not None  # who calls has seen to it
    mean = constants_of(features, rows).centre - own.spread * own.neutral
    centre = lean(mean, own.centre, len(rows), CENTRE_PRIOR)
    return replace(own, centre=centre.astype(np.float32))


@dataclass(frozen=True)
class Fitted:
    """A model adapted to a language.

    Attributes
    ----------
    adapted : Adapted
        For clips that are normalised by the language.
    own : Constants
        By which they are.
    by_voice : Adapted or None
        For clips that are normalised by who speaks.
    trust : float
        How much ``by_voice`` counts where the voice is known, in [0, 1].
    """

    adapted: Adapted
    own: Constants
    by_voice: Adapted | None = None
    trust: float = 0.0

    def scores(
        self,
        features: Features,
        rows: np.ndarray,
        speakers: np.ndarray | None = None,
        voices: Mapping[str, Constants] | None = None,
    ) -> np.ndarray:
        """Return scores (clips, classes) of clips whose features are known.

        Parameters
        ----------
        features : Features
            Not normalised.
        rows : ndarray of int
            Which clips.
        speakers : ndarray, optional
            (clips,) who speaks in each, "" where that is not known. The mean of a voice is that of
            its clips among these, and leans on the language's.
        voices : mapping of str to Constants, optional
            What each speaker is normalised by, in place of that; one who is not in it is not known.
        """
        nothing = np.zeros(len(rows), int)
        batch = features.batch(rows, nothing, self.adapted.classes.numpy())
        with enough_threads(features):
            plain = self.adapted(self.own.apply(batch).modalities).numpy()
            if self.by_voice is None or speakers is None or not self.trust:
                return plain
            if voices is not None:
                speakers = np.where(np.isin(speakers, list(voices)), speakers, "")
            known = np.flatnonzero(speakers != "")
            if not len(known):
                return plain
            moved = voice_batch(batch, features, rows, speakers, self.own, voices)
            voiced = self.by_voice(moved.modalities).numpy()
        mixed = plain.astype(np.float64)
        with np.errstate(divide="ignore"):
            parts = log_softmax(plain[known], axis=1), log_softmax(voiced[known], axis=1)
            weights = np.log(1 - self.trust), np.log(self.trust)
        mixed[known] = np.logaddexp(*(part + weight for part, weight in zip(parts, weights)))
        return mixed.astype(np.float32)


def voice_batch(
    batch: Batch,
    features: Features,
    rows: np.ndarray,
    speakers: np.ndarray,
    own: Constants,
    voices: Mapping[str, Constants] | None = None,
) -> Batch:
    """Normalise the audio of a batch by the voices of its clips, which lean on the language.

    Clips whose speaker is "" are normalised by the language alone. Others are by what ``voices``
    has for their speaker, or if that is not given by the clips of the speaker in the batch.
    """
    parts = []
    for who in dict.fromkeys(speakers.tolist()):
        clips = np.flatnonzero(speakers == who)
        if who == "":
            constants = own
        elif voices is None:
            constants = constants_of_voice(features, rows[clips], own)
        else:
            constants = voices[who]
        chosen = torch.from_numpy(clips)
        parts.append((chosen, constants.apply(batch[chosen]).modalities["audio"]))
    audio = batch.modalities["audio"]
    values = torch.empty_like(audio.values)
    for chosen, part in parts:
        values[chosen] = part.values
    return replace(batch, modalities={**batch.modalities, "audio": Padded(values, audio.mask)})
