"""Front ends: a waveform becomes frames of features. ``FRONTENDS`` maps names to constructors.

A variant is an entry with preset arguments.
"""

from functools import partial

from metaser.frontends.spectral import MFCC, LogMel, Statistics
from metaser.frontends.waveform import Waveform

FRONTENDS = {
    "mfcc": MFCC,
    "mfcc40": partial(MFCC, coefficients=40, deltas=2, frames=300),
    "log_mel": LogMel,
    "statistics": Statistics,
    "waveform": Waveform,
}
