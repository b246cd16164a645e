"""Feature sets of openSMILE, eGeMAPS and ComParE among them.

openSMILE is no free software, and so an extra (``pip install 'metaser[opensmile]'``): audEERING
licenses it, and what is extracted with it, for non-commercial purposes such as academic research
and teaching, and for commercial research that is published or only evaluates; any use in a product
needs a licence bought from audEERING. It asks to be cited.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from opensmile import Smile

LEVELS = {
    "functionals": "Functionals",
    "lld": "LowLevelDescriptors",
    "lld_deltas": "LowLevelDescriptors_Deltas",
}
"""Levels of features by the names that openSMILE's package has for them."""

SHORTEST = 0.1
"""Seconds that clips have at least. Where no frame is filled openSMILE gives NaN throughout."""


@dataclass(frozen=True)
class OpenSmile:
    """Features of openSMILE.

    openSMILE reads 16-bit samples: what exceeds full scale is clipped, for it would wrap round.
    Clips shorter than 0.1 s are padded with zeros, for some sets have no frame in less than 0.07 s.
    Like openSMILE's other undefined values, those few that it gives as NaN are 0: coefficients of
    linear prediction of a contour that is constant, in a next to empty clip.

    Parameters
    ----------
    features : str
        Set of features, one of ``opensmile.FeatureSet``, such as "eGeMAPSv02" or "ComParE_2016".
    level : {"functionals", "lld", "lld_deltas"}
        Statistics of the whole clip, or low-level descriptors in frames of 10 ms, or slopes of
        these, which the GeMAPS family lacks.
    rate : int
        Sampling rate in Hz that the waveform must have.
    seconds : float
        Longest clip for "lld" and "lld_deltas"; what exceeds it is cut. Shorter clips stay short.

    Raises
    ------
    ValueError
        If there is no such set or level.
    ModuleNotFoundError
        If ``opensmile`` is not installed.

    References
    ----------
    Eyben et al., "openSMILE: The Munich Versatile and Fast Open-Source Audio Feature Extractor",
    ACM Multimedia 2010.
    Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set (GeMAPS) for Voice Research and
    Affective Computing", IEEE Transactions on Affective Computing 7(2), 2016.
    """

    LIBRARIES = ("opensmile",)

    features: str = "eGeMAPSv02"
    level: str = "functionals"
    rate: int = 16000
    seconds: float = 10.0

    def __post_init__(self) -> None:
        _extractor(self.features, self.level)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, channels) float32 of a mono waveform (samples,) at ``rate``.

        Functionals have one frame: eGeMAPSv02 has 88 channels and ComParE_2016 has 6373; low-level
        descriptors have 25 and 65.
        """
        if self.level != "functionals":
            waveform = waveform[: round(self.seconds * self.rate)]
        missing = max(round(SHORTEST * self.rate) - len(waveform), 0)
        clipped = np.pad(np.clip(waveform, -1, 1 - 2**-15), (0, missing))
        # Unlike process_signal, calling makes no table, which costs as much as a very short clip.
        values = _extractor(self.features, self.level)(clipped, self.rate)[0].T
        return np.where(np.isnan(values), 0, values).astype(np.float32)


@cache
def _extractor(features: str, level: str) -> "Smile":
    """Return openSMILE's extractor, made once per process; it cannot be pickled."""
    try:
        from opensmile import FeatureLevel, FeatureSet, Smile
    except ImportError as error:
        raise ModuleNotFoundError(
            "the front end OpenSmile needs openSMILE, whose licence is for research, not for "
            "products. Run: pip install 'metaser[opensmile]'"
        ) from error
    for name, value, known in (
        ("features", features, FeatureSet.__members__),
        ("level", level, LEVELS),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {list(known)}, not {value!r}: choose one of them"
            )
    return Smile(FeatureSet[features], FeatureLevel[LEVELS[level]])
