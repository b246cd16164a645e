"""Decoded sound as one channel at one rate, without a constant offset."""

import numpy as np
import soxr

OFFSET = 0.01
"""Mean of a channel, relative to full scale, above which it is an offset: microphones give less."""

AUDIBLE = 0.1
"""The same, relative to the standard deviation: a smaller one changes no features."""

CANCELLED = 0.05
"""Share of the channels' power, below which they cancel each other in their mean."""


def to_mono(samples: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the mean of the channels, each without its offset.

    An offset is taken away only where it matters (``OFFSET``, ``AUDIBLE``), so other sound stays
    as it is to the last bit. Where the channels cancel each other, because one is the other turned
    upside down, the loudest stands for all.

    Parameters
    ----------
    samples : numpy.ndarray
        float32, shape (samples, channels).

    Returns
    -------
    mono : numpy.ndarray
        float32, shape (samples,).
    note : str
        What was done to channels that cancel each other, "" if they do not.
    """
    samples = _without_offset(samples)
    if samples.shape[1] == 1:
        return samples[:, 0], ""
    mixed = samples.mean(axis=1, dtype=np.float32)
    powers = np.square(samples, dtype=np.float64).mean(axis=0)
    if np.square(mixed, dtype=np.float64).mean() >= CANCELLED * powers.mean():
        return mixed, ""
    loudest = int(np.argmax(powers >= 0.9 * powers.max()))  # the first of those that are as loud
    return samples[:, loudest], (
        "its channels cancel each other (one is the other upside down); the loudest alone was "
        "read: turn one over, or keep one channel"
    )


def _without_offset(samples: np.ndarray) -> np.ndarray:
    sums = np.einsum("ij->j", samples).tolist()  # quick, not exact
    if max(map(abs, sums)) < OFFSET / 2 * len(samples):
        return samples
    means = samples.mean(axis=0, dtype=np.float64)
    spread = samples.std(axis=0, dtype=np.float64)
    offset = np.where(np.abs(means) > np.maximum(OFFSET, AUDIBLE * spread), means, 0)
    return (samples - offset).astype(np.float32) if offset.any() else samples


def at_rate(mono: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Return sound (samples,) at another rate, resampled by soxr at high quality."""
    if own != rate:
        mono = soxr.resample(mono, own, rate)
    return np.ascontiguousarray(mono, dtype=np.float32)
