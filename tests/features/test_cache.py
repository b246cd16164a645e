import inspect

import pytest

from metaser import audio, recording, video
from metaser.features import cache
from metaser.frontends import prosody, spectral, waveform

SOURCE = '''
"""A module."""

from dataclasses import dataclass
from functools import cache

LOWEST = 60
"""Edge in Hz."""


@dataclass
class Loudness:
    """The mean of the samples."""

    rate: int = 16000

    @cache
    def __call__(self, samples, *others, scale: float = 1.0, **options) -> float:
        """Return it."""
        # Squares would do, too.
        mean: float = samples.mean() * scale
        "A text alone does nothing."
        return mean if mean else LOWEST


def nothing():
    """Do nothing."""
'''


@pytest.mark.parametrize(
    "before,after",
    [
        ('"""A module."""', ""),
        ('"""Edge in Hz."""', '"""Where the filters begin."""'),
        ('"""The mean of the samples."""', "'The mean.'"),
        ('        """Return it."""\n', ""),
        ('"""Do nothing."""', "pass"),
        ("# Squares would do, too.", ""),
        ('"A text alone does nothing."', ""),
        ("self, samples,", "self, samples: np.ndarray,"),
        ("*others", "*others: int"),
        ("**options", "**options: str"),
        ("scale: float", "scale"),
        (" -> float:", " -> int | None:"),
        ("mean: float =", "mean ="),
        ("mean: float =", "mean: int ="),
        ("        mean: float =", "        level: float\n        mean ="),
        ("\n\n\n", "\n\n"),
    ],
)
def test_words_and_types_of_signatures_are_no_code(before, after):
    assert before in SOURCE
    changed = SOURCE.replace(before, after)
    assert cache.code_without_words(changed) == cache.code_without_words(SOURCE)


@pytest.mark.parametrize(
    "before,after",
    [
        ("LOWEST = 60", "LOWEST = 61"),
        ("LOWEST", "HIGHEST"),
        ("scale: float = 1.0", "scale: float = 2.0"),
        ("scale: float = 1.0", "scale: float"),
        ("*others, scale", "scale"),
        ("    @cache\n", ""),
        ("@dataclass\n", "@dataclass(frozen=True)\n"),
        ("rate: int = 16000", "rate: float = 16000"),
        ("rate: int = 16000", "rate = 16000"),
        ("samples.mean()", "samples.std()"),
        ("import cache", "import cache, wraps"),
    ],
)
def test_all_else_is_code(before, after):
    assert before in SOURCE
    changed = SOURCE.replace(before, after)
    assert cache.code_without_words(changed) != cache.code_without_words(SOURCE)


@pytest.mark.parametrize("module", [audio, recording, video, prosody, spectral, waveform])
def test_code_without_words_is_python_that_stays_as_it_is(module):
    code = cache.code_without_words(inspect.getsource(module))
    assert '"""' not in code
    assert " -> " not in code
    assert cache.code_without_words(code) == code


def test_what_is_no_python_stays_as_it_is():
    assert cache.code_without_words("mine.make.<locals>.Loudness") == "mine.make.<locals>.Loudness"


def test_a_front_end_keeps_its_digest_when_its_words_change(monkeypatch):
    kind, source = waveform.Waveform, inspect.getsource(waveform)

    def digest(text):
        monkeypatch.setattr(cache, "source_of", lambda kind: text)
        cache.code_digest.cache_clear()
        return cache.code_digest(kind, "", False)

    assert digest(source.replace("Longest clip", "Length of the longest clip")) == digest(source)
    assert digest(source.replace("hop: int = 160", "hop: int = 80")) != digest(source)
    cache.code_digest.cache_clear()
