"""Front ends: a waveform becomes frames of features. ``FRONTENDS`` maps names to constructors."""

from metaser.frontends.spectral import MFCC, LogMel, Statistics

FRONTENDS = {
    "mfcc": MFCC,
    "log_mel": LogMel,
    "statistics": Statistics,
}
