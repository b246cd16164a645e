"""Find emotions and speakers in the file names of a new task."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from metaser import naming
from metaser.tasks import labels, matching
from metaser.tasks.identity import plain_text

WORDS = {
    "angry": "anger angry ang angriness",
    "happy": "happiness happy hap joy joyful joyous",
    "neutral": "neutral neu neutrality normal",
    "sad": "sadness sad",
    "fearful": "fear fearful fea scared afraid",
    "disgusted": "disgust disgusted dis disgusting",
    "surprised": "surprise surprised sur ps pleasant_surprise",
    "calm": "calm cal calmness",
    "bored": "boredom bored bor",
    "excited": "excitement excited exc",
    "frustrated": "frustration frustrated fru",
    "contemptuous": "contempt contemptuous con",
    "amused": "amusement amused",
    "anxious": "anxiety anxious anx",
    "sleepy": "sleepiness sleepy",
}
"""Words by which corpora call the classes, in addition to the classes' own names."""

_CLASS_OF = {word: name for name, words in WORDS.items() for word in words.split()}
_SEPARATORS = r"_\-.,+\s"
_SPEAKER = re.compile(r"(?:s|sp|spk|spkr|speaker|actor|sub|subject|p|[fm]|s[fm])[-_]?\d+", re.I)
PERSONS = "named as speakers are"
"""Evidence that a field gives the speaker: values such as "spk03", "actor_1" or "f2"."""


@dataclass(frozen=True)
class Field:
    """One part of the files' names or paths.

    Attributes
    ----------
    name : str
        "1", "2", … for the parts of the file name between separators; "folder1" for the folder in
        which the file lies, "folder2" for the one above it, and so on.
    values : tuple of str
        Text of this part in each file whose name has the usual form, in the order of the files.
    known : float
        Share of the files whose value names a class, in [0, 1].
    letters : bool
        Whether `known` counts only the letters before a running number, as in "ang03".
    """

    name: str
    values: tuple[str, ...]
    known: float
    letters: bool

    @property
    def examples(self) -> str:
        """The most frequent values as text for the user."""
        counts = Counter(self.values)
        shown = ", ".join(repr(value) for value, _ in counts.most_common(4))
        return f"{shown}, … ({len(counts)} in all)" if len(counts) > 4 else shown


def guess_class(code: str, mapping: Mapping[str, str] | None = None) -> str | None:
    """Return the class that a code of a corpus means, or None if it is not known.

    Case and surrounding spaces do not matter.

    Parameters
    ----------
    code
        Label of the corpus, such as "Anger" or "hap".
    mapping
        Code to class as the user gives it; it takes precedence over the known words.
    """
    given = {plain_text(key): value for key, value in (mapping or {}).items()}
    word = plain_text(code)
    known = word if word in labels.CLASSES else _CLASS_OF.get(re.sub(r"[\s-]+", "_", word))
    return given.get(word, known)


def sort_codes(
    codes: Collection[str], mapping: Mapping[str, str], drop: Collection[str]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Sort the codes of a corpus into mapped, dropped and unknown ones.

    Parameters
    ----------
    codes
        Codes as they stand in the names or in the table.
    mapping
        Code to class as the user gives it; case and surrounding spaces do not matter.
    drop
        Codes that the user does not want.

    Returns
    -------
    mapped : dict of str to str
        Code to class.
    dropped : list of str
        Codes that the user does not want.
    unknown : list of str
        Codes of which neither the user nor `WORDS` gives the class.

    Raises
    ------
    ValueError
        If the user names a code that does not occur; the message gives the nearest one.
    """
    unwanted = {plain_text(code) for code in drop}
    absent = [
        code for code in (*mapping, *drop) if plain_text(code) not in set(map(plain_text, codes))
    ]
    if absent:
        raise ValueError(
            f"no clip has the label {absent[0]!r}.{naming.nearest(absent[0], codes)} "
            f"Labels are {', '.join(map(repr, sorted(codes)))}: choose among them"
        )
    mapped, dropped, unknown = {}, [], []
    for code in sorted(codes):
        name = guess_class(code, mapping)
        if plain_text(code) in unwanted:
            dropped.append(code)
        elif name is None:
            unknown.append(code)
        else:
            mapped[code] = name
    return mapped, dropped, unknown


def name_fields(files: Sequence[str], mapping: Mapping[str, str] | None = None) -> list[Field]:
    """Split the paths of files into fields, and count how often each field names a class.

    Only files whose name has the most frequent form (the same separators, at the same depth) are
    split into the parts of their names.

    Parameters
    ----------
    files
        Posix paths below the folder of audio.
    mapping
        Code to class as the user gives it.

    Returns
    -------
    list of Field
        Folders first, the outermost one at the beginning, then the parts of the name.
    """
    usual = _usual_form(files)
    depth = len(usual) - 1
    folders = [file.split("/")[:-1] for file in files if file.count("/") == depth]
    names = [_name_parts(file) for file in files if _form(file) == usual]
    fields = [(f"folder{depth - i}", values) for i, values in enumerate(zip(*folders))]
    fields += [(str(i), values) for i, values in enumerate(zip(*names), start=1)]
    return [_field(name, values, len(files), mapping) for name, values in fields]


def _field(
    name: str, values: tuple[str, ...], files: int, mapping: Mapping[str, str] | None
) -> Field:
    """Make a field; its share of known values is taken of this number of files."""
    whole = _count_known(values, mapping)
    heads = _count_known([re.sub(r"\d+$", "", value) for value in values], mapping)
    letters = heads > whole and not name.startswith("folder")
    return Field(name, values, (heads if letters else whole) / files, letters)


def _count_known(values: Sequence[str], mapping: Mapping[str, str] | None) -> int:
    """Count the values that name a class; 0 if all of these name the same class."""
    classes = {value: guess_class(value, mapping) for value in set(values)}
    if len(set(classes.values()) - {None}) < 2:
        return 0
    return sum(classes[value] is not None for value in values)


def _name_parts(file: str) -> list[str]:
    """Split the name of a file at its separators."""
    name = matching.without_extension(file).rpartition("/")[2]
    return re.findall(f"[^{_SEPARATORS}]+", name)


def _form(file: str) -> tuple[str, ...]:
    """Return the form of a path: files of equal form have the same fields.

    It has one "/" per folder, then the name with "x" for each part between separators.
    """
    *folders, name = matching.without_extension(file).split("/")
    return (*["/"] * len(folders), re.sub(f"[^{_SEPARATORS}]+", "x", name))


def _usual_form(files: Sequence[str]) -> tuple[str, ...]:
    """Return the most frequent form of the paths."""
    return Counter(map(_form, files)).most_common(1)[0][0]


def emotion_field(fields: Sequence[Field], wanted: str | None = None) -> Field:
    """Choose the field that gives the emotion.

    Parameters
    ----------
    fields
        From `name_fields`.
    wanted
        Name of the field; without it, the field with most known codes is chosen.

    Raises
    ------
    ValueError
        If there is no such field, or known codes stand in less than half of the files in every
        field; the message lists the fields.
    """
    if wanted is not None:
        return named_field(fields, wanted)
    best = max(fields, key=lambda field: field.known)
    if best.known < 0.5:
        raise ValueError(
            "a part of the file names or a folder must give a known emotion, but none does. Fields "
            f"are {listed(fields)}. Name the field by --emotion FIELD and its codes by --map "
            "CODE=CLASS, give a regular expression by --pattern, or a table of labels by --table"
        )
    return best


def named_field(fields: Sequence[Field], wanted: str) -> Field:
    """Return the field of this name, such as "1" or "folder1".

    Raises
    ------
    ValueError
        If there is none; the message lists the fields.
    """
    for field in fields:
        if field.name == wanted:
            return field
    hint = naming.nearest(wanted, [field.name for field in fields])
    raise ValueError(
        f"the names have no field {wanted!r}.{hint} They have {listed(fields)}: choose among these"
    )


def listed(fields: Sequence[Field]) -> str:
    """List the fields and their most frequent values as text for the user."""
    return "; ".join(f"{field.name}: {field.examples}" for field in fields)


def speaker_fields(fields: Sequence[Field], emotion: Field) -> dict[str, str]:
    """Find the fields that may give the speaker.

    Parameters
    ----------
    fields
        From `name_fields`.
    emotion
        The field that gives the emotion.

    Returns
    -------
    dict of str to str
        What speaks for each field, by its name; see `sure_speaker`.
    """
    evidence = {}
    for field in fields:
        kinds = set(field.values)
        if field is emotion or not 2 <= len(kinds) <= len(field.values) / 2:
            continue
        if all(_SPEAKER.fullmatch(value) for value in kinds):
            evidence[field.name] = PERSONS
        elif field.name.startswith("folder"):
            evidence[field.name] = "a folder"
        elif all(value.isdecimal() for value in kinds):
            if len({len(value) for value in kinds}) == 1 and len(min(kinds)) > 1:
                evidence[field.name] = "numbers of one length"
        elif all(value.isalpha() for value in kinds):
            evidence[field.name] = "words"
    return evidence


def sure_speaker(evidence: Mapping[str, str]) -> str | None:
    """Return the field that must be the speaker: the only one that is named as speakers are."""
    sure = [name for name, why in evidence.items() if why == PERSONS]
    return sure[0] if len(sure) == 1 else None


def make_pattern(files: Sequence[str], emotion: Field, speaker: str | None) -> str:
    """Write the regular expression that finds emotion and speaker in the paths of files.

    Parameters
    ----------
    files
        Posix paths below the folder of audio.
    emotion
        The field that gives the emotion.
    speaker
        Name of the field that gives the speaker; None if one person speaks everything.

    Returns
    -------
    str
        With a group `emotion` and, unless `speaker` is None, a group `speaker`.
    """
    *folders, name = _usual_form(files)
    names = [matching.without_extension(file).rpartition("/")[2] for file in files]
    unique = len(set(names)) == len(names)
    separators = "".join(sorted(set(name) - {"x"}))
    part = f"[^/{re.escape(separators)}]+"

    def group(field: str, plain: str) -> str:
        """Put the expression of a field into a named group if it is the emotion or the speaker."""
        if field == emotion.name:
            return r"(?P<emotion>[^\W\d_]+)\d+" if emotion.letters else f"(?P<emotion>{plain})"
        return f"(?P<speaker>{plain})" if field == speaker else plain

    number = iter(range(1, len(name) + 1))
    tail = "".join(
        group(str(next(number)), part) if mark == "x" else re.escape(mark).replace(r"\ ", " ")
        for mark in name
    )
    levels = [f"folder{len(folders) - i}" for i in range(len(folders))]
    used = [i for i, level in enumerate(levels) if level in (emotion.name, speaker)]
    first = 0 if not unique else min(used, default=len(levels))
    if not {emotion.name, speaker} & set(map(str, range(1, len(name) + 1))):
        tail = "[^/]+"  # both stand in folders, so a file may have any name
    return "".join(group(level, "[^/]+") + "/" for level in levels[first:]) + tail
