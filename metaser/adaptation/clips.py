"""A user's own recordings: labelled by the folders they lie in."""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaser import audio
from metaser.naming import nearest


@dataclass(frozen=True)
class Clips:
    """Labelled clips.

    Attributes
    ----------
    files : tuple of Path
        Audio files.
    emotions : tuple of str
        Class of each.
    speakers : tuple of str or None
        Who speaks in each; None where that is not known.
    """

    files: tuple[Path, ...]
    emotions: tuple[str, ...]
    speakers: tuple[str, ...] | None = None


def labelled_folder(
    folder: str | Path,
    classes: Collection[str],
    mapping: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    speaker: str | None = None,
) -> Clips:
    """Find the clips of a folder whose sub-folders are named by emotion.

    A sub-folder's name is a class as it stands, whatever its case and the spaces around it, or is
    mapped. Sub-folders below that are taken for speakers.

    Parameters
    ----------
    folder : str or Path
        E.g. with ``angry/ali/01.wav`` or ``angry/01.wav`` below.
    classes : collection of str
        Classes that are known.
    mapping : mapping of str to str, optional
        Name of a sub-folder to class, e.g. ``{"wütend": "angry"}``.
    drop : collection of str
        Names of sub-folders that are left out.
    speaker : str, optional
        Regular expression whose first group in a file's name, without extension, is the speaker.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there are no clips, a name is neither a class nor mapped nor dropped (the nearest class
        is told), a sub-folder holds a file that is not audio, or ``speaker`` fits a name not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of labelled clips, found none at {folder}")
    known = {_plain(name): name for name in classes}
    known |= {
        _plain(name): _known_class(target, classes) for name, target in (mapping or {}).items()
    }
    dropped = {_plain(name) for name in drop}
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    wanted = [path for path in inside if _plain(path.name) not in dropped]
    unknown = [path.name for path in wanted if _plain(path.name) not in known]
    if unknown:
        raise ValueError(_unknown(unknown, classes))
    files, emotions = [], []
    for path in wanted:
        found = audio.find(path)
        _refuse_others(path, found)
        files += found
        emotions += [known[_plain(path.name)]] * len(found)
    if not files:
        loose = len(audio.find(folder))
        hint = f"; {loose} audio files lie in it directly, without a label" if loose else ""
        raise ValueError(
            f"{folder} holds no labelled clips{hint}: expected a sub-folder for each emotion "
            f"({', '.join(classes)}) with audio files in it"
        )
    return Clips(tuple(files), tuple(emotions), _speakers(folder, files, speaker))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _known_class(target: str, classes: Collection[str]) -> str:
    name = _plain(target)
    if name not in classes:
        raise ValueError(
            f"{target!r} is not a class of the model.{nearest(name, classes)} "
            f"It knows {', '.join(classes)}"
        )
    return name


def _unknown(names: Sequence[str], classes: Collection[str]) -> str:
    guess = [nearest(_plain(name), classes) for name in names]
    said = ", ".join(f"{name!r}{hint}" for name, hint in zip(names, guess))
    return (
        f"sub-folders that are no class of the model: {said}; it knows {', '.join(classes)}. Say "
        f"what each means, e.g. --label '{names[0].strip()}={min(classes)}', or leave it out by "
        f"--drop '{names[0].strip()}'"
    )


def _refuse_others(folder: Path, found: Sequence[Path]) -> None:
    """Refuse files that are not audio by their name, and folders without any that is."""
    if not found:
        raise ValueError(
            f"{folder} holds no audio file (known are {', '.join(audio.EXTENSIONS)}): add some, or "
            "remove it"
        )
    others = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "." and path not in set(found)
    ]
    if others:
        raise ValueError(
            f"{others[0]} is among the clips and is not audio by its name (known are "
            f"{', '.join(audio.EXTENSIONS)}); {len(others)} such files: move them elsewhere, or "
            "convert them to one of these"
        )


def _speakers(folder: Path, files: Sequence[Path], pattern: str | None) -> tuple[str, ...] | None:
    """Who speaks, by the file's name or by the folders below the emotion's."""
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        speakers = []
        for path in files:
            match = compiled.search(path.stem)
            if match is None or not match.groups():
                raise ValueError(
                    f"{pattern!r} gives no speaker for {path.name}: expected a pattern with one "
                    "group that fits every name, such as '^([^_]+)_'"
                )
            speakers.append(match[1])
        return tuple(speakers)
    below = [path.relative_to(folder).parts[1:-1] for path in files]
    return tuple(map("/".join, below)) if all(below) else None


def refuse_two_labels(clips: Clips, contents: Sequence[str]) -> None:
    """Refuse clips of the same audio: under two labels, or twice, which would count as two."""
    first: dict[str, int] = {}
    for row, content in enumerate(contents):
        before = first.setdefault(content, row)
        if before == row:
            continue
        pair = f"{clips.files[before]} and {clips.files[row]}"
        if clips.emotions[before] != clips.emotions[row]:
            raise ValueError(
                f"{pair} are the same audio with two labels, {clips.emotions[before]} and "
                f"{clips.emotions[row]}: keep the right one"
            )
        raise ValueError(f"{pair} are the same audio: keep one of them")
