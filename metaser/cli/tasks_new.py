"""`metaser tasks new`: make a task folder from recordings by answering questions."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaser.cli.options import Data, plain_errors

if TYPE_CHECKING:
    import pandas as pd

    from metaser.tasks.new import Clips

MANUAL = {
    "language": "Language (ISO 639 code, such as ha or yue)",
    "licence": "Licence (such as CC BY 4.0, or: not to be passed on)",
    "consent": "What did the speakers agree to, or on what terms are the recordings used?",
}
"""Questions that nobody but the user can answer."""

# What `metaser tasks new` takes; together in its signature they would hide the command itself.
Name = Annotated[str, typer.Argument(help="Name of the task; the language code is put before it.")]
Audio = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the recordings.")]
Table = Annotated[Path | None, typer.Option(help="Table of labels: .csv, .jsonl or .xlsx.")]
Language = Annotated[str, typer.Option(help="ISO 639 code.")]
Licence = Annotated[str, typer.Option(help="Licence of the recordings.")]
Consent = Annotated[str, typer.Option(help="What the speakers agreed to, or the terms of use.")]
Corpus = Annotated[str, typer.Option(help="Name of the corpus; that of the folder if not given.")]
Homepage = Annotated[str, typer.Option(help="Where to obtain it.")]
Reference = Annotated[str, typer.Option(help="What to cite.")]
FileColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of the table with the file names.")
]
EmotionField = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Emotion: a column, or a field of the file names."),
]
SpeakerField = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Speaker: a column, or a field of the file names."),
]
OneSpeaker = Annotated[bool, typer.Option("--one-speaker", help="One person speaks all clips.")]
Pattern = Annotated[
    str, typer.Option(help="Regular expression of file names with groups emotion, speaker.")
]
Codes = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="CODE=CLASS", help="What a label means; may be repeated."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="A label that is not used; may be repeated."),
]
NewClass = Annotated[
    list[str] | None,
    typer.Option(metavar="CLASS", help="A class that MetaSER does not know; may be repeated."),
]
IgnoreRest = Annotated[
    bool, typer.Option("--ignore-rest", help="Leave out audio files without a label.")
]
WriteAudio = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="New folder for audio that is stored inside a data set."),
]
Into = Annotated[Path, typer.Option(metavar="DIR", help="Folder of your tasks.")]
Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing; missing answers are errors.")]


@dataclass(frozen=True)
class _Labels:
    """What the options say about labels, and whether to ask for the rest.

    Attributes
    ----------
    fields : dict of str to str or None
        Column of the table, or field of the file names, by ``file``, ``emotion`` and ``speaker``.
    one_speaker : bool
        Whether one person speaks all clips.
    pattern : str
        Regular expression of the names; empty to derive one.
    mapping : dict of str to str
        Class of each label.
    drop, new : sequence of str
        Labels that are not used, and classes that MetaSER does not know.
    ask : bool
        Whether to ask the user for what is missing; else it is an error.
    """

    fields: dict[str, str | None]
    one_speaker: bool
    pattern: str
    mapping: Mapping[str, str]
    drop: Sequence[str]
    new: Sequence[str]
    ask: bool


def new(
    context: typer.Context,
    name: Name,
    *,
    audio: Audio,
    table: Table = None,
    language: Language = "",
    licence: Licence = "",
    consent: Consent = "",
    corpus: Corpus = "",
    homepage: Homepage = "not published",
    reference: Reference = "unpublished",
    file: FileColumn = None,
    emotion: EmotionField = None,
    speaker: SpeakerField = None,
    one_speaker: OneSpeaker = False,
    pattern: Pattern = "",
    codes: Codes = None,
    drop: Drop = None,
    new_class: NewClass = None,
    ignore_rest: IgnoreRest = False,
    write_audio: WriteAudio = None,
    into: Into = Path("my_tasks"),
    data: Data = None,
    yes: Yes = False,
) -> None:
    """Make a task folder from recordings with labels in folder names, file names or a table."""
    from metaser.tasks import new as library

    with plain_errors():
        if speaker and one_speaker:
            raise ValueError(
                "at most one of --speaker and --one-speaker can be given, not both: choose one"
            )
        labels = _Labels(
            fields={"file": file, "emotion": emotion, "speaker": speaker},
            one_speaker=one_speaker,
            pattern=pattern,
            mapping=dict(map(_pair, codes or ())),
            drop=drop or (),
            new=new_class or (),
            ask=not yes,
        )
        clips = _read_clips(audio, table, write_audio, labels)
        mapped, dropped = _classes(clips, labels)
        _show(clips, mapped, dropped)
        if clips.rest and not yes:
            ignore_rest = ignore_rest or typer.confirm("Leave out the files without a label?")
        facts = library.Facts(
            **_answers(name, language, licence, consent, ask=not yes),
            corpus=corpus or clips.folder.name,
            homepage=homepage,
            reference=reference,
        )
        root = _root(clips.folder, data or (context.obj or (None,))[0])
        target = into / facts.name
        if not yes and not typer.confirm(f"Write {target}?", default=True):
            raise typer.Exit(1)
        _, check = library.write(
            facts,
            clips,
            mapped,
            dropped,
            into,
            root,
            new=labels.new,
            ignore_rest=ignore_rest,
        )
    typer.echo(f"\n{check.text()}\n\nwritten: {target}; the speakers' consent is in its README.md")
    where = f"--tasks {shlex.quote(str(into))} --data {shlex.quote(str(root))}"
    typer.echo(f"next: metaser tasks check {facts.name} {where}")
    typer.echo(f"      metaser curve --task {facts.name} {where}")


def _read_clips(
    audio: Path, table: Path | None, write_audio: Path | None, labels: _Labels
) -> "Clips":
    """Find the recordings and their labels, by a table or by their names."""
    from metaser.tasks.new import find_audio

    frame, folder = _label_table(audio.expanduser().resolve(), table, labels.pattern, write_audio)
    files = find_audio(folder)
    typer.echo(f"{len(files)} audio files below {folder}")
    if frame is None:
        return _by_name(folder, files, labels)
    return _by_table(folder, files, frame, labels)


def _pair(text: str) -> tuple[str, str]:
    """Split ``CODE=CLASS`` at its last equals sign."""
    code, equals, name = text.rpartition("=")
    if not equals or not name:
        raise ValueError(f"--map must be CODE=CLASS, not {text!r}: write e.g. --map ang=angry")
    return code, name.strip()


def _classes(clips: "Clips", labels: _Labels) -> tuple[dict[str, str], list[str]]:
    """Return the class of each label, and the labels that are dropped; ask for missing ones."""
    from metaser.tasks.labels import CLASSES, check_mapping
    from metaser.tasks.names import sort_codes

    counts = Counter(clips.table["emotion"])
    mapped, dropped, unknown = sort_codes(counts, labels.mapping, labels.drop)
    if unknown and not labels.ask:
        raise ValueError(
            "every label must have a class, but nobody has said what these labels mean: "
            + ", ".join(f"{code!r} ({counts[code]} clips)" for code in unknown)
            + "; say --map LABEL=CLASS or --drop LABEL for each. Classes are "
            + ", ".join(CLASSES)
        )
    for code in unknown:
        answer = _ask_class(code, counts[code], [*CLASSES, *labels.new])
        if answer == "drop":
            dropped.append(code)
        else:
            mapped[code] = answer
    check_mapping(mapped, dropped, labels.new)
    return mapped, dropped


def _label_table(
    place: Path, table: Path | None, pattern: str, write_audio: Path | None
) -> tuple["pd.DataFrame | None", Path]:
    """Return the table of labels (None where the names hold them) and the folder of audio."""
    from metaser.tasks import label_tables as library

    if table is not None:
        return library.read_table(table.expanduser()), place
    if pattern:
        return None, place
    if (place / "db.yaml").is_file():
        typer.echo("an audformat database")
        return library.read_audformat(place), place
    if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
        typer.echo("a data set of `datasets`")
        frame, audio = library.read_dataset(place, write_audio and write_audio.resolve())
        return frame, audio.resolve()
    for name in ("metadata.csv", "metadata.jsonl"):
        if (place / name).is_file():
            typer.echo(f"labels from {name}")
            return library.read_table(place / name), place
    return None, place


def _by_table(folder: Path, files: list[str], frame: "pd.DataFrame", labels: _Labels) -> "Clips":
    """Read the clips from a table of labels."""
    from metaser.tasks import new as library
    from metaser.tasks.identity import is_known

    columns = {
        what: library.find_column(frame, what, labels.fields.get(what)) for what in library.COLUMNS
    }
    one_speaker = labels.one_speaker
    named = columns["speaker"]
    if named and labels.ask and not one_speaker and not any(map(is_known, frame[named])):
        typer.echo(f"the column {named} names nobody")
        columns["speaker"] = None
    if not one_speaker and columns["speaker"] is None and labels.ask:
        columns["speaker"] = _ask_speaker(list(frame.columns), None)
        one_speaker = columns["speaker"] is None
    shown = ", ".join(f"{what} = {column}" for what, column in columns.items() if column)
    typer.echo(f"columns: {shown}")
    return library.from_table(folder, files, frame, columns, one_speaker)


def _by_name(folder: Path, files: list[str], labels: _Labels) -> "Clips":
    """Read the clips from the names of files and folders."""
    from metaser.tasks.new import from_names

    pattern, one_speaker = labels.pattern, labels.one_speaker
    if not pattern:
        pattern, one_speaker = _make_pattern(files, labels)
    typer.echo(f"pattern: {pattern}")
    return from_names(folder, files, pattern, one_speaker)


def _make_pattern(files: list[str], labels: _Labels) -> tuple[str, bool]:
    """Return a regular expression of the names, and whether one person speaks all clips."""
    from metaser.tasks.names import (
        emotion_field,
        make_pattern,
        name_fields,
        named_field,
        speaker_fields,
        sure_speaker,
    )

    fields = name_fields(files, labels.mapping)
    emotion = emotion_field(fields, labels.fields["emotion"])
    for field in fields:
        mark = "  <- emotion" if field is emotion else ""
        typer.echo(f"  field {field.name}: {field.examples}{mark}")
    evidence = speaker_fields(fields, emotion)
    sure = sure_speaker(evidence)
    may_be = ", ".join(f"{name} ({why})" for name, why in evidence.items())
    speaker, one_speaker = labels.fields["speaker"], labels.one_speaker
    if not (speaker or one_speaker):
        if not labels.ask:
            hint = f"; field {sure} looks like it: it is {evidence[sure]}" if sure else ""
            hint = hint or (f"; fields that may be it are {may_be}" if evidence else "")
            raise ValueError(f"who speaks? Say --speaker FIELD or --one-speaker{hint}")
        names = [field.name for field in fields if field is not emotion]
        if evidence:
            typer.echo(f"fields that may be the speaker: {may_be}")
        speaker = _ask_speaker(names, sure)
        one_speaker = speaker is None
    if speaker:
        named_field(fields, speaker)
    return make_pattern(files, emotion, speaker), one_speaker


def _ask_speaker(names: list[str], likely: str | None) -> str | None:
    """Ask for the field of the speaker; None if one person speaks all clips."""
    typer.echo("Scores are honest only if the model is tested on speakers that it does not know.")
    answer = typer.prompt(
        f"Which of {', '.join(names)} is the speaker? ('one' if one person speaks all clips)",
        default=likely,
        value_proc=_one_of([*names, "one"]),
    )
    return None if answer == "one" else answer


def _ask_class(code: str, count: int, known: list[str]) -> str:
    """Ask for the class of a label, or "drop"."""
    return typer.prompt(
        f"What is {code!r} ({count} clips)? A class such as {', '.join(known[:4])}, or 'drop'",
        value_proc=_one_of([*known, "drop"]),
    )


def _one_of(known: list[str]) -> Callable[[str], str]:
    """Return a check that an answer is one of the known ones."""
    from metaser.naming import nearest

    def check(answer: str) -> str:
        if answer not in known:
            raise typer.BadParameter(
                f"the answer must be one of {', '.join(known)}, not {answer!r}: choose one."
                f"{nearest(answer, known)}"
            )
        return answer

    return check


def _answers(name: str, language: str, licence: str, consent: str, *, ask: bool) -> dict[str, Any]:
    """Return the task's name, language, licence and consent; ask for those that are missing."""
    from metaser.tasks.new import NAME
    from metaser.tasks.schema import language_name

    answers = {"language": language, "licence": licence, "consent": consent}
    missing = [key for key, value in answers.items() if not value]
    if missing and not ask:
        raise ValueError(
            "these must be given, for nobody but you can know them and they are not guessed: "
            + ", ".join(f"--{key}" for key in missing)
        )
    for key in missing:
        answers[key] = typer.prompt(MANUAL[key], value_proc=_code if key == "language" else None)
    language_name(answers["language"])
    prefix = f"{answers['language']}_"
    answers["name"] = name if name.startswith(prefix) else prefix + name
    if not NAME.fullmatch(answers["name"]):
        raise ValueError(
            f"the name must be one of a folder, not {answers['name']!r}: use letters, digits, "
            "'-' and '_'"
        )
    return answers


def _code(answer: str) -> str:
    """Refuse an answer that is no ISO 639 code."""
    from metaser.tasks.schema import language_name

    try:
        language_name(answer)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return answer


def _root(place: Path, data: Path | None) -> Path:
    """Return the data root if the recordings lie below it, else the folder above them."""
    root = place.parent if data is None else data.expanduser().resolve()
    return root if root in place.parents else place.parent


def _show(clips: "Clips", mapped: dict[str, str], dropped: list[str]) -> None:
    """Print clips and speakers per class, and what is left out."""
    table = clips.table
    for name in dict.fromkeys(mapped.values()):
        rows = table[table["emotion"].map(mapped.get) == name]
        codes = ", ".join(repr(code) for code in sorted(set(rows["emotion"])))
        typer.echo(
            f"  {name} ({codes}): {len(rows)} clips of {rows['speaker'].nunique()} speakers, "
            f"for example {rows['file'].iloc[0]}"
        )
    for code in dropped:
        typer.echo(f"  not used: {code!r}, {(table['emotion'] == code).sum()} clips")
    for person in clips.people:
        typer.echo(f"  one person in several spellings: {person}")
    if clips.rest:
        typer.echo(f"  without a label: {clips.tell_rest()}")
