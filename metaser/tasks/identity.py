"""Who speaks, as labels say it: which labels name nobody, and which name the same person."""

import unicodedata
from collections.abc import Iterable, Sequence

NOBODY = frozenset(
    ["nan", "none", "null", "na", "n/a", "<na>", "nil", "unknown", "unk", "?", "-", "-1"]
)  # as programs write a missing value
"""Labels of speakers that stand for a speaker who is not known, beside the empty one."""


def plain_text(text: str) -> str:
    """Return a text without surrounding spaces, in lower case, in Unicode's normal form NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())


def is_known(speaker: str) -> bool:
    """Return whether a label names a speaker.

    >>> [is_known(label) for label in ("ali", " ", "NaN", "unknown")]
    [True, False, False, False]
    """
    return plain_text(speaker) not in NOBODY | {""}


def one_spelling(speakers: Iterable[str]) -> list[str]:
    """Return the speakers, each person under one spelling, and "" for those who are not known.

    Labels that differ in case, in spaces around them or in Unicode's normal form are one person's,
    who gets the first of the spellings in the order of the alphabet.

    >>> one_spelling(["f1", "F1 ", "m1", "nan"])
    ['F1', 'F1', 'm1', '']
    """
    given = list(speakers)
    spelling: dict[str, str] = {}
    for speaker in sorted(map(_tidy, given)):
        spelling.setdefault(plain_text(speaker), speaker)
    return [spelling[plain_text(speaker)] if is_known(speaker) else "" for speaker in given]


def _tidy(speaker: str) -> str:
    return unicodedata.normalize("NFC", speaker).strip()


def same_people(speakers: Iterable[str]) -> list[str]:
    """Return one text per person whom the labels spell in several ways, such as "F1 = f1"."""
    spellings: dict[str, set[str]] = {}
    for speaker in speakers:
        if is_known(speaker):
            spellings.setdefault(plain_text(speaker), set()).add(_tidy(speaker))
    return [" = ".join(sorted(some)) for some in spellings.values() if len(some) > 1]


def of_nobody(files: Sequence[str], speakers: Sequence[str]) -> list[str]:
    """Return the files whose speaker is not known."""
    return [file for file, speaker in zip(files, speakers, strict=True) if not is_known(speaker)]
