"""Features: a task's clips through a front end, stored on disk and normalised."""

from metaser.features.cache import Stored, default_cache, list_stores, prune
from metaser.features.extraction import audio_contents, extract, lacks, verify
from metaser.features.table import NORMALISATIONS, OUTLIER, Features, enough_threads, normalise

__all__ = [
    "Features",
    "NORMALISATIONS",
    "OUTLIER",
    "Stored",
    "audio_contents",
    "default_cache",
    "enough_threads",
    "extract",
    "lacks",
    "list_stores",
    "normalise",
    "prune",
    "verify",
]
