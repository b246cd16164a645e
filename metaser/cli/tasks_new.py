"""`metaser tasks new`: a task folder from recordings, by answers instead of by hand."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from metaser.cli.options import Data, plain_errors

MANUAL = {
    "language": "Language (ISO 639 code, such as ha or yue)",
    "licence": "Licence (such as CC BY 4.0, or: not to be passed on)",
    "consent": "What did the speakers agree to, or on what terms are the recordings used?",
}
"""Questions that nobody but the user can answer."""


def new(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of the task; the language's code is put before it.")
    ],
    audio: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the recordings.")],
    table: Annotated[
        Path | None, typer.Option(help="Table of labels: .csv, .jsonl or .xlsx.")
    ] = None,
    language: Annotated[str, typer.Option(help="ISO 639 code.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the recordings.")] = "",
    consent: Annotated[
        str, typer.Option(help="What the speakers agreed to, or the terms of use.")
    ] = "",
    corpus: Annotated[str, typer.Option(help="Name for people; that of the folder if none.")] = "",
    homepage: Annotated[str, typer.Option(help="Where to obtain it.")] = "not published",
    reference: Annotated[str, typer.Option(help="What to cite.")] = "unpublished",
    file: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the table: the file.")
    ] = None,
    emotion: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="The emotion: a column, or a field of the names."),
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Who speaks: a column, or a field of the names."),
    ] = None,
    one_speaker: Annotated[
        bool, typer.Option("--one-speaker", help="One person speaks all clips.")
    ] = False,
    pattern: Annotated[
        str, typer.Option(help="Regular expression of the names, groups emotion and speaker.")
    ] = "",
    codes: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="CODE=CLASS", help="What a label means; may be repeated."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="A label that is not used; may be repeated."),
    ] = None,
    new_class: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="A class that MetaSER does not know; may be repeated."),
    ] = None,
    ignore_rest: Annotated[
        bool, typer.Option("--ignore-rest", help="Leave out audio files without a label.")
    ] = False,
    write_audio: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New folder for audio that lies inside of a data set."),
    ] = None,
    into: Annotated[Path, typer.Option(metavar="DIR", help="Folder of your tasks.")] = Path(
        "my_tasks"
    ),
    data: Data = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; what is missing is an error.")
    ] = False,
) -> None:
    """Make a task folder from recordings that carry their labels in folders, names or a table."""
    from metaser.tasks import new as library

    with plain_errors():
        mapping = dict(map(_pair, codes or ()))
        given = {"file": file, "emotion": emotion, "speaker": speaker}
        if speaker and one_speaker:
            raise ValueError("say either --speaker or --one-speaker, not both")
        place = audio.expanduser().resolve()
        frame, place = _labels(place, table, pattern, write_audio)
        files = library.find_audio(place)
        typer.echo(f"{len(files)} audio files below {place}")
        if frame is not None:
            clips = _by_table(library, place, files, frame, given, one_speaker, yes)
        else:
            clips = _by_name(library, place, files, given, one_speaker, pattern, mapping, yes)
        mapped, dropped = _classes(library, clips, mapping, drop or (), new_class or (), yes)
        _show(clips, mapped, dropped)
        if clips.rest and not yes:
            ignore_rest = ignore_rest or typer.confirm("Leave out the files without a label?")
        facts = _facts(library, name, language, licence, consent, yes) | {
            "corpus": corpus or place.name,
            "homepage": homepage,
            "reference": reference,
        }
        root = _root(place, data or (context.obj or (None,))[0])
        target = into / facts["name"]
        if not yes and not typer.confirm(f"Write {target}?", default=True):
            raise typer.Exit(1)
        _, check = library.write(
            library.Facts(**facts),
            clips,
            mapped,
            dropped,
            into,
            root,
            new=new_class or (),
            ignore_rest=ignore_rest,
        )
    typer.echo(f"\n{check.text()}\n\nwritten: {target}; the speakers' consent is in its README.md")
    where = f"--tasks {shlex.quote(str(into))} --data {shlex.quote(str(root))}"
    typer.echo(f"next: metaser tasks check {facts['name']} {where}")
    typer.echo(f"      metaser curve --task {facts['name']} {where}")


def _pair(text: str) -> tuple[str, str]:
    code, equals, name = text.rpartition("=")
    if not equals or not name:
        raise ValueError(f"--map needs CODE=CLASS, such as --map ang=angry, not {text!r}")
    return code, name.strip()


def _classes(library, clips, mapping, drop, new, yes) -> tuple[dict[str, str], list[str]]:
    """The class that each label means, and the labels that are dropped; asks what is not given."""
    from metaser.tasks import labels
    from metaser.tasks.names import map_codes

    counts = Counter(clips.table["emotion"])
    mapped, dropped, unknown = map_codes(counts, mapping, drop)
    if unknown and yes:
        raise ValueError(
            "nobody has said what these labels mean: "
            + ", ".join(f"{code!r} ({counts[code]} clips)" for code in unknown)
            + "; say --map LABEL=CLASS or --drop LABEL for each. Classes are "
            + ", ".join(labels.CLASSES)
        )
    for code in unknown:
        answer = _ask_class(code, counts[code], [*labels.CLASSES, *new])
        if answer == "drop":
            dropped.append(code)
        else:
            mapped[code] = answer
    labels.check_mapping(mapped, dropped, new)
    return mapped, dropped


def _labels(place: Path, table: Path | None, pattern: str, write_audio: Path | None):
    """Table of labels, or None where names tell, and the folder of audio."""
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


def _by_table(library, place, files, frame, given, one_speaker: bool, yes: bool):
    columns = {what: library.find_column(frame, what, given.get(what)) for what in library.COLUMNS}
    if not one_speaker and columns["speaker"] is None and not yes:
        one_speaker = _ask_speaker(list(frame.columns), [], columns)
    told = ", ".join(f"{what} = {column}" for what, column in columns.items() if column)
    typer.echo(f"columns: {told}")
    return library.from_table(place, files, frame, columns, one_speaker)


def _by_name(library, place, files, given, one_speaker, pattern, mapping, yes: bool):
    from metaser.tasks.names import (
        emotion_field,
        make_pattern,
        name_fields,
        named_field,
        speaker_fields,
    )

    if not pattern:
        fields = name_fields(files, mapping)
        emotion = emotion_field(fields, given["emotion"])
        for field in fields:
            mark = "  <- emotion" if field is emotion else ""
            typer.echo(f"  field {field.name}: {field.examples}{mark}")
        likely = speaker_fields(fields, emotion)
        if not (given["speaker"] or one_speaker):
            if yes:
                hint = f"; field {likely[0]} looks like it" if likely else ""
                raise ValueError(f"who speaks? Say --speaker FIELD or --one-speaker{hint}")
            names = [field.name for field in fields if field is not emotion]
            one_speaker = _ask_speaker(names, likely, given)
        if given["speaker"]:
            named_field(fields, given["speaker"])
        pattern = make_pattern(files, emotion, given["speaker"])
    typer.echo(f"pattern: {pattern}")
    return library.from_names(place, files, pattern, one_speaker)


def _ask_speaker(names: list[str], likely: list[str], given: dict) -> bool:
    """Ask who speaks; put the field into ``given``, or return that one person speaks all."""
    typer.echo("Scores are honest only if nobody is both learnt from and tested on.")
    answer = typer.prompt(
        f"Which of {', '.join(names)} is the speaker? ('one' if one person speaks all clips)",
        default=likely[0] if likely else None,
        value_proc=_one_of([*names, "one"]),
    )
    if answer == "one":
        return True
    given["speaker"] = answer
    return False


def _ask_class(code: str, count: int, known: list[str]) -> str:
    return typer.prompt(
        f"What is {code!r} ({count} clips)? A class such as {', '.join(known[:4])}, or 'drop'",
        value_proc=_one_of([*known, "drop"]),
    )


def _one_of(known: list[str]):
    from metaser.naming import nearest

    def check(answer: str) -> str:
        if answer not in known:
            raise typer.BadParameter(f"expected one of {', '.join(known)}.{nearest(answer, known)}")
        return answer

    return check


def _facts(library, name: str, language: str, licence: str, consent: str, yes: bool) -> dict:
    from metaser.tasks.schema import language_name

    facts = {"language": language, "licence": licence, "consent": consent}
    missing = [key for key, value in facts.items() if not value]
    if missing and yes:
        raise ValueError(
            "nobody but you can know these, so they are not guessed: "
            + ", ".join(f"--{key}" for key in missing)
        )
    for key in missing:
        facts[key] = typer.prompt(MANUAL[key], value_proc=_code if key == "language" else None)
    language_name(facts["language"])
    prefix = f"{facts['language']}_"
    facts["name"] = name if name.startswith(prefix) else prefix + name
    if not library.NAME.fullmatch(facts["name"]):
        raise ValueError(
            f"{facts['name']!r} cannot name a folder; use letters, digits, '-' and '_'"
        )
    return facts


def _code(answer: str) -> str:
    from metaser.tasks.schema import language_name

    try:
        language_name(answer)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return answer


def _root(place: Path, data: Path | None) -> Path:
    """The data root if the recordings lie below it, else the folder above them."""
    if data is not None and place.is_relative_to(data.expanduser().resolve()):
        if place != data.expanduser().resolve():
            return data.expanduser().resolve()
    return place.parent


def _show(clips, mapped: dict[str, str], dropped: list[str]) -> None:
    table = clips.table
    for name in dict.fromkeys(mapped.values()):
        own = table[table["emotion"].map(mapped.get) == name]
        codes = ", ".join(repr(code) for code in sorted(set(own["emotion"])))
        typer.echo(
            f"  {name} ({codes}): {len(own)} clips of {own['speaker'].nunique()} speakers, "
            f"for example {own['file'].iloc[0]}"
        )
    for code in dropped:
        typer.echo(f"  not used: {code!r}, {(table['emotion'] == code).sum()} clips")
    if clips.rest:
        shown = ", ".join(clips.rest[:3])
        typer.echo(f"  without a label: {len(clips.rest)} files, for example {shown}")
