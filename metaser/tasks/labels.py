"""Emotion labels: a corpus's own codes to canonical classes, and rating scales to [-1, 1].

Nothing unmapped passes: a code is either mapped to a class, dropped by name, or an error.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from metaser.naming import nearest

CLASSES = (
    "angry",
    "happy",
    "neutral",
    "sad",
    "fearful",
    "disgusted",
    "surprised",
    "calm",
    "bored",
    "disappointed",
    "excited",
    "frustrated",
    "contemptuous",
    "amused",
    "anxious",
    "apologetic",
    "ashamed",
    "confused",
    "desperate",
    "embarrassed",
    "encouraging",
    "enthusiastic",
    "guilty",
    "interested",
    "jealous",
    "pleased",
    "proud",
    "relieved",
    "sarcastic",
    "sleepy",
    "stressed",
    "tender",
    "worried",
)
"""Canonical classes; the first four are those of the main protocols, in their index order."""


class LabelError(ValueError):
    """A label, a class or a rating that the mapping does not allow."""


def check_mapping(
    mapping: Mapping[str, str], drop: Collection[str] = (), new: Collection[str] = ()
) -> None:
    """Refuse a mapping from corpus codes to classes that cannot be meant.

    Parameters
    ----------
    mapping
        Corpus code to class.
    drop
        Codes that are known and left out.
    new
        Classes of this corpus's own, allowed beside `CLASSES`.

    Raises
    ------
    LabelError
        If a class is neither canonical nor in `new`, a code is both mapped and dropped, a class
        in `new` is already canonical or is not used, or nothing is mapped.
    """
    if not mapping:
        raise LabelError('no emotion code is mapped to a class; expected lines such as A = "angry"')
    for code, name in mapping.items():
        if name not in CLASSES and name not in new:
            raise LabelError(
                f"code {code!r} is mapped to {name!r}, which is not a class of MetaSER."
                f"{nearest(name, CLASSES)} Known are {', '.join(CLASSES)}; "
                f"a class of the corpus's own is declared by new = [{name!r}]"
            )
    for name in new:
        if name in CLASSES:
            raise LabelError(f"new = [{name!r}]: this class is canonical already; remove it there")
        if name not in mapping.values():
            raise LabelError(f"new = [{name!r}]: no code is mapped to this class")
    both = sorted(set(mapping) & set(drop))
    if both:
        raise LabelError(f"code {both[0]!r} is both mapped and dropped; keep one of the two")


def unmapped(
    codes: Sequence[str], mapping: Mapping[str, str], drop: Collection[str] = ()
) -> dict[str, list[int]]:
    """Return the codes neither mapped nor dropped, each with the positions where it occurs."""
    found: dict[str, list[int]] = {}
    for i, code in enumerate(codes):
        if code not in mapping and code not in drop:
            found.setdefault(code, []).append(i)
    return found


def map_codes(
    codes: Sequence[str],
    mapping: Mapping[str, str],
    drop: Collection[str] = (),
    files: Sequence[str] | None = None,
) -> list[str | None]:
    """Map corpus codes to classes.

    Parameters
    ----------
    codes
        Corpus codes, one a clip.
    mapping
        Corpus code to class.
    drop
        Codes left out.
    files
        File names, one a clip, used in the error message.

    Returns
    -------
    list of str or None
        The class of every clip; None where its code is in `drop`.

    Raises
    ------
    LabelError
        If a code is neither mapped nor dropped; names code, count and an example file.
    """
    unknown = unmapped(codes, mapping, drop)
    if unknown:
        raise LabelError(" ".join(describe_unmapped(unknown, mapping, files)))
    return [mapping.get(code) for code in codes]


def describe_unmapped(
    unknown: Mapping[str, list[int]], mapping: Mapping[str, str], files: Sequence[str] | None = None
) -> list[str]:
    """Return one sentence for every unmapped code: code, count, example file and remedy."""
    return [
        f"Label {code!r} of {len(places)} clip{'s' if len(places) > 1 else ''}"
        + (f", for example {files[places[0]]}," if files is not None else "")
        + f" is neither mapped nor dropped; mapped are {', '.join(mapping)}. "
        + f"Add it to [emotion] or to its drop list.{nearest(code, mapping)}"
        for code, places in unknown.items()
    ]


def scale_ratings(
    values: Sequence[float], low: float, high: float, files: Sequence[str] | None = None
) -> np.ndarray:
    """Scale ratings linearly from [`low`, `high`] to [-1, 1].

    Parameters
    ----------
    values
        Ratings, shape (n,), in the corpus's own scale; NaN stays NaN.
    low, high
        The ends of that scale.
    files
        File names, one a rating, used in the error message.

    Returns
    -------
    numpy.ndarray
        float64, shape (n,), in [-1, 1].

    Raises
    ------
    LabelError
        If the scale is empty or a rating lies outside of it.
    """
    if not low < high:
        raise LabelError(f"a rating scale must rise, for example [1, 5]; came [{low}, {high}]")
    ratings = np.asarray(values, dtype=np.float64)
    outside = (ratings < low) | (ratings > high)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        clip = f" of {files[first]}" if files is not None else ""
        raise LabelError(
            f"{int(outside.sum())} ratings lie outside of [{low}, {high}], "
            f"for example {ratings[first]}{clip}; correct the scale in [ratings], or the rating"
        )
    return 2 * (ratings - low) / (high - low) - 1
