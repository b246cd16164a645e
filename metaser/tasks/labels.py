"""Labels: map a corpus's emotion codes to canonical classes, and its ratings to [-1, 1].

No code passes by accident: each is mapped to a class, dropped by name, or an error.

Examples
--------
>>> mapping = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}
>>> check_mapping(mapping, drop=["xxx"])
>>> map_codes(["S", "xxx", "A"], mapping, drop=["xxx"])
['sad', None, 'angry']
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
"""Canonical classes. The main protocols use the first four, in this order of their indices."""


class LabelError(ValueError):
    """A label, a class or a rating that the mapping does not allow."""


def check_mapping(
    mapping: Mapping[str, str], drop: Collection[str] = (), new: Collection[str] = ()
) -> None:
    """Refuse a mapping from corpus codes to classes that must be a mistake.

    Parameters
    ----------
    mapping : mapping of str to str
        Corpus code to class.
    drop : collection of str
        Codes that are known and left out.
    new : collection of str
        Classes of this corpus alone, allowed in addition to `CLASSES`.

    Raises
    ------
    LabelError
        If a class is neither canonical nor in `new`, a code is both mapped and dropped, a class
        in `new` is already canonical or is not used, or nothing is mapped.

    Examples
    --------
    >>> check_mapping({"A": "angry", "L": "level_low"}, new=["level_low"])
    >>> check_mapping({"A": "angry"}, drop=["A"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    metaser.tasks.labels.LabelError: a code must be mapped or dropped, not both ...
    """
    if not mapping:
        raise LabelError(
            "emotion codes must be mapped to classes, but no emotion code is: "
            'add lines such as A = "angry"'
        )
    for code, name in mapping.items():
        if name not in CLASSES and name not in new:
            raise LabelError(
                f"code {code!r} must be mapped to a known class, not to {name!r}, which is not a "
                f"class of MetaSER.{nearest(name, CLASSES)} Known are {', '.join(CLASSES)}; "
                f"declare a class that only this corpus has by new = [{name!r}]"
            )
    for name in new:
        if name in CLASSES:
            raise LabelError(
                f"new must name classes of this corpus alone, not {name!r}, which is canonical "
                "already: remove it from new"
            )
        if name not in mapping.values():
            raise LabelError(
                f"new must name classes that occur, but no code is mapped to {name!r}: "
                "map one to it, or remove it from new"
            )
    both = sorted(set(mapping) & set(drop))
    if both:
        raise LabelError(
            "a code must be mapped or dropped, not both mapped and dropped: "
            f"remove {both[0]!r} in one of the two places"
        )


def unmapped(
    codes: Sequence[str], mapping: Mapping[str, str], drop: Collection[str] = ()
) -> dict[str, list[int]]:
    """Return the codes neither mapped nor dropped, each with the positions where it occurs.

    Parameters
    ----------
    codes : sequence of str
        Corpus codes, one per clip.
    mapping : mapping of str to str
        Corpus code to class.
    drop : collection of str
        Codes that are known and left out.

    Returns
    -------
    dict of str to list of int
        Code to positions in `codes`; empty if every code is known.

    Examples
    --------
    >>> unmapped(["A", "X", "D", "X"], {"A": "angry"}, drop=["D"])
    {'X': [1, 3]}
    """
    places: dict[str, list[int]] = {}
    for place, code in enumerate(codes):
        if code not in mapping and code not in drop:
            places.setdefault(code, []).append(place)
    return places


def map_codes(
    codes: Sequence[str],
    mapping: Mapping[str, str],
    drop: Collection[str] = (),
    files: Sequence[str] | None = None,
) -> list[str | None]:
    """Map corpus codes to classes.

    Parameters
    ----------
    codes : sequence of str
        Corpus codes, one per clip.
    mapping : mapping of str to str
        Corpus code to class.
    drop : collection of str
        Codes that are known and left out.
    files : sequence of str, optional
        File names, one per clip, used in the error message.

    Returns
    -------
    list of str or None
        The class of every clip; None where its code is in `drop`.

    Raises
    ------
    LabelError
        If a code is neither mapped nor dropped; the message names code, count and an example file.

    Examples
    --------
    >>> map_codes(["A", "S", "D"], {"A": "angry", "S": "sad"}, drop=["D"])
    ['angry', 'sad', None]
    """
    unknown = unmapped(codes, mapping, drop)
    if unknown:
        raise LabelError(" ".join(describe_unmapped(unknown, mapping, files)))
    return [mapping.get(code) for code in codes]


def describe_unmapped(
    unknown: Mapping[str, list[int]], mapping: Mapping[str, str], files: Sequence[str] | None = None
) -> list[str]:
    """Return a message for every unmapped code: code, count, example file and remedy.

    Parameters
    ----------
    unknown : mapping of str to list of int
        What `unmapped` returns.
    mapping : mapping of str to str
        Corpus code to class.
    files : sequence of str, optional
        File names, one per clip.

    Returns
    -------
    list of str
        One message per code, in the order of `unknown`.

    Examples
    --------
    >>> messages = describe_unmapped({"X": [1, 2]}, {"A": "angry"}, ["a.wav", "b.wav", "c.wav"])
    >>> print(*messages)  # doctest: +NORMALIZE_WHITESPACE
    A label must be mapped or dropped, not 'X' of 2 clips, for example b.wav: add it to [emotion]
    or to its drop list. Mapped are A.
    """
    return [
        f"A label must be mapped or dropped, not {code!r} of {len(places)} "
        + ("clips" if len(places) > 1 else "clip")
        + (f", for example {files[places[0]]}" if files is not None else "")
        + ": add it to [emotion] or to its drop list. "
        + f"Mapped are {', '.join(mapping)}.{nearest(code, mapping)}"
        for code, places in unknown.items()
    ]


def scale_ratings(
    values: Sequence[float], low: float, high: float, files: Sequence[str] | None = None
) -> np.ndarray:
    """Scale ratings linearly from [`low`, `high`] to [-1, 1].

    Parameters
    ----------
    values : sequence of float
        Ratings, shape (n,), in the corpus's own scale; NaN stays NaN.
    low, high : float
        The ends of that scale.
    files : sequence of str, optional
        File names, one per rating, used in the error message.

    Returns
    -------
    numpy.ndarray
        float64, shape (n,), in [-1, 1].

    Raises
    ------
    LabelError
        If `low` is not below `high`, or a rating lies outside of the scale.

    Examples
    --------
    >>> scale_ratings([1, 2, 3, 5, float("nan")], low=1, high=5).tolist()
    [-1.0, -0.5, 0.0, 1.0, nan]
    """
    if not low < high:
        raise LabelError(
            f"a rating scale must rise, not be [{low}, {high}]: "
            "give its lower end first, for example [1, 5]"
        )
    ratings = np.asarray(values, dtype=np.float64)
    outside = (ratings < low) | (ratings > high)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        clip = f" of {files[first]}" if files is not None else ""
        raise LabelError(
            f"ratings must lie in their scale, but {int(outside.sum())} lie outside of "
            f"[{low}, {high}], for example {ratings[first]}{clip}: "
            "correct the scale in [ratings], or the rating"
        )
    return np.asarray(2 * (ratings - low) / (high - low) - 1)
