"""Train a model, adapt it to a language, predict, evaluate, export."""

import re
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from metaser.cli.options import (
    Cache,
    Data,
    Encoder,
    Folders,
    Jobs,
    OneSpeaker,
    OneSpeakerPerFile,
    Speaker,
    check_out,
    named_on_stdin,
    plain_errors,
    quick_imports,
    resumable,
    who_speaks,
)

if TYPE_CHECKING:
    import pandas as pd

    from metaser.adaptation.clips import Clips
    from metaser.adaptation.evaluate import Evaluation, Score
    from metaser.adaptation.model_file import Header
    from metaser.model import Model as Network
    from metaser.tasks.task import Task

Model = Annotated[Path, typer.Argument(help="Model file, or the name of one aboard: starter.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed gives other draws.")]


def train(
    out: Annotated[Path, typer.Option(help="Model file to write, e.g. model.safetensors.")],
    *,
    data: Data = None,
    tasks: Folders = None,
    sources: Annotated[
        str, typer.Option(help="Tasks to learn from, separated by commas; else the protocol's.")
    ] = "",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol that says how to train: its name or file; else unseen_language_2."
        ),
    ] = None,
    setup: Annotated[
        str | None,
        typer.Option(help="Setup of the protocol; the first, or the better one at hand."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method of the setup, gaussian_process if it has that, which trains in seconds; "
            "metaser_by_evidence is about a point better and takes minutes."
        ),
    ] = None,
    measure_on: Annotated[
        str,
        typer.Option(
            help="Tasks that are not learnt from, separated by commas: the quality is measured on "
            "them, too, which makes the stated ranges surer."
        ),
    ] = "",
    draws: Annotated[
        int,
        typer.Option(min=1, help="Random draws per left-out task and clip count, used to measure."),
    ] = 40,
    seed: Seed = 0,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Train a model on all corpora that are present; measure it on languages left out in turn.

    A run that was stopped continues where it was.
    """
    with plain_errors():
        check_out(out, "model.safetensors")
        from metaser.adaptation.card import measured_lines, warnings
        from metaser.adaptation.recipe import read_recipe
        from metaser.adaptation.train import train_model
        from metaser.files import Places

        chosen, others = (
            [name for name in some.split(",") if name] for some in (sources, measure_on)
        )
        with resumable():
            recipe = read_recipe(protocol, setup, method, chosen, others, tell=_note)
            places = Places.at(data, tasks, cache, jobs)
            header = train_model(out, recipe, places, seed=seed, draws=draws)
    _print_lines(warnings(header)[:-1])
    typer.echo(f"measured by leaving out each {header.left_out} in turn:")
    typer.echo("\n".join(measured_lines(header)))
    typer.echo(f"{out}\nnext: metaser adapt {quote(str(out))} FOLDER --out adapted.safetensors")


def adapt(
    model: Model,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Labelled clips in sub-folders named by emotion (and speaker below), or a table "
            "of labels in the folder of its clips."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Model file to write.")],
    table: Annotated[
        Path | None,
        typer.Option(help="Table that labels the clips of the folder, such as that of select."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Take the clips of this task instead.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Clips per class, drawn at random; all if not given.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CLASS", help="What a sub-folder's name means; repeatable."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A sub-folder to leave out; repeatable."),
    ] = None,
    speaker: Speaker = None,
    one_speaker: OneSpeaker = False,
    one_speaker_per_file: OneSpeakerPerFile = False,
    seed: Seed = 0,
    encoder: Encoder = None,
    data: Data = None,
    tasks: Folders = None,
) -> None:
    """Adapt a model to a few labelled clips of a language, and print the quality to expect."""
    with plain_errors():
        if (folder is None) == (task is None):
            came = "neither" if task is None else "both"
            raise ValueError(
                "exactly one of a folder of labelled clips and --task must be given, not "
                f"{came}: choose one"
            )
        who = who_speaks(speaker, one_speaker, one_speaker_per_file)
        mapping = dict(map(_pair, label or ()))
        if task is not None and (who or mapping or drop):
            raise ValueError(
                "--label, --drop and who speaks are said of a folder of clips, but a task says "
                "them itself: leave them out"
            )
        check_out(out, "adapted.safetensors", model)
        with quick_imports():
            from metaser.adaptation import adapt as adaptation
            from metaser.adaptation.card import expected_lines, warnings
            from metaser.adaptation.clips import labelled_folder, labelled_table
            from metaser.adaptation.model_file import load, save

        file = load(model, encoder)
        source: dict[str, Any]
        if task is None:
            folder = folder or Path()
            if table is None and folder.is_file():
                folder, table = folder.parent, folder
            said = file.header.classes, mapping, drop or ()
            clips = (
                labelled_folder(folder, *said, who, _note)
                if table is None
                else labelled_table(table, *said, folder=folder, speaker=who, tell=_note)
            )
            source = {"name": folder.resolve().name}
        else:
            read = _present(task, data, tasks)
            clips = _clips_of(read, file.header.classes)
            source = {"name": read.name, "task_version": read.version, "synthetic": read.synthetic}
        _note_versions(file.header)
        source |= {"tell": _note, "progress": sys.stderr.isatty()}
        adapted = adaptation.adapt(file, clips, shots=shots, seed=seed, **source)
        save(out, adapted)
    _print_lines(warnings(adapted.header))
    typer.echo("\n".join(expected_lines(adapted.header)))
    typer.echo(f"{out}\nnext: metaser predict {quote(str(out))} FILES")


def predict(
    model: Model,
    files: Annotated[
        list[str],
        typer.Argument(help="Audio files or folders of them; - reads names from standard input."),
    ],
    *,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write one JSON object per line.")] = None,
    window: Annotated[
        float | None, typer.Option(help="Predict windows of this many seconds in long recordings.")
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(help="Seconds between the starts of windows; half a window by default."),
    ] = None,
    abstain: Annotated[
        float, typer.Option(help="Print unsure where no probability reaches this.")
    ] = 0.0,
    by_these: Annotated[
        bool,
        typer.Option(
            "--normalise-by-these",
            help="Normalise by these files, not by the clips that the model was adapted to.",
        ),
    ] = False,
    speaker: Speaker = None,
    one_speaker: OneSpeaker = False,
    one_speaker_per_file: OneSpeakerPerFile = False,
    voice: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Clips of the voice, any emotion: a file, or a folder, of one speaker; with "
            "--speaker, one sub-folder per speaker. Repeatable.",
        ),
    ] = None,
    neutral: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="The same, but of clips that are known to be neutral."),
    ] = None,
    encoder: Encoder = None,
) -> None:
    """Recognise the emotion of clips, with probabilities, or of each window of long recordings."""
    with plain_errors():
        check_out(csv, "emotions.csv", model)
        check_out(jsonl, "emotions.jsonl", model)
        with quick_imports():
            from metaser.adaptation import predict as prediction
            from metaser.adaptation.card import warnings
            from metaser.adaptation.model_file import load

        who = who_speaks(speaker, one_speaker, one_speaker_per_file)
        file = load(model, encoder)
        _note_versions(file.header)
        _print_lines(warnings(file.header))
        failed: dict[str, str] = {}
        table = prediction.predict(
            file,
            named_on_stdin() if files == ["-"] else files,
            window=window,
            hop=hop,
            abstain=abstain,
            by_these=by_these,
            speaker=who,
            voice=voice or (),
            neutral=neutral or (),
            tell=_note,
            failed=failed,
            progress=sys.stderr.isatty(),
        )
        if csv is not None:
            _write(csv, table.to_csv(index=False, float_format="%.4f"))
        if jsonl is not None:
            lines = table.to_json(orient="records", lines=True, force_ascii=False)
            _write(jsonl, lines.rstrip("\n") + "\n")
    if csv is None and jsonl is None:
        _print_table(table)
    if failed:
        done = table["file"].nunique()
        _print_lines([f"metaser: {len(failed)} of {len(failed) + done} files were not predicted:"])
        _print_lines([f"  {why}" for why in failed.values()])
        raise typer.Exit(1)


def evaluate(
    model: Model,
    task: Annotated[str, typer.Option(help="Task whose clips are scored.")],
    *,
    encoder: Encoder = None,
    data: Data = None,
    tasks: Folders = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Score a model on the clips of a task, except those that it was adapted to."""
    with plain_errors():
        from metaser.adaptation import evaluate as evaluation
        from metaser.adaptation.card import warnings
        from metaser.adaptation.model_file import load
        from metaser.features.extraction import extract
        from metaser.tasks.task import restrict

        file = load(model, encoder)
        _note_versions(file.header)
        scored = restrict(_present(task, data, tasks), file.header.classes)
        shown = sys.stderr.isatty()
        features = extract(scored, file.frontend(), cache, jobs=jobs, progress=shown)
        result = evaluation.evaluate(file, scored.table, features)
    _print_lines(warnings(file.header))
    if any(source.name == scored.name for source in file.header.sources):
        _note(f"the model has learnt from {scored.name}: these scores say nothing about new speech")
    _print_evaluation(result)


def export(
    model: Model,
    card: Annotated[Path | None, typer.Option(help="Model card to write (Markdown).")] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames per clip in the ONNX file; any number if not given. LEAF needs it.",
        ),
    ] = None,
) -> None:
    """Write a model card, or the model as ONNX."""
    with plain_errors():
        if card is None and onnx is None:
            raise ValueError(
                "--card, --onnx or both must be given, not neither: say e.g. --card card.md or "
                "--onnx model.onnx"
            )
        if frames is not None and onnx is None:
            raise ValueError(f"--frames {frames} is of the ONNX file: give --onnx model.onnx, too")
        check_out(card, "card.md", model)
        check_out(onnx, "model.onnx", model)
        from metaser.adaptation import card as model_card
        from metaser.adaptation.model_file import load

        file = load(model)
        difference = None
        if onnx is not None:
            from metaser import export as network

            difference = network.to_onnx(cast("Network", file.predictor.model), onnx, frames)
            typer.echo(f"{onnx}: scores differ by at most {difference:.1e}")
        if card is not None:
            model_card.write_card(card, model_card.card(file, model.stem, difference))
            typer.echo(card)


def models() -> None:
    """List the models that come with MetaSER, with what they learnt from and are worth."""
    with plain_errors():
        from metaser.adaptation.card import measured_lines
        from metaser.adaptation.model_file import ABOARD, aboard, read_header

        for name, path in aboard().items():
            header = read_header(path)
            frontend = header.setup.frontend or {}
            learnt = ", ".join(f"{s.corpus} ({s.licence})" for s in header.sources)
            typer.echo(f"{name}: hears by {frontend.get('name')}, learnt from {learnt}")
            typer.echo("\n".join(f"  {line}" for line in measured_lines(header)))
        typer.echo(f"licence, and what they must not be used for: {ABOARD / 'README.md'}")


def demonstrate(folder: Path, languages: Path) -> None:
    """Train, adapt and predict on the made-up languages, as part of the demo."""
    model, adapted = folder / "model.safetensors", folder / "italian.safetensors"
    data, tasks = languages / "audio", languages / "tasks"
    options = f"--data {data} --tasks {tasks}"
    clip = sorted((data / "SYNTHETIC-IT").glob("*.wav"))[-1]
    typer.echo(f"\n$ metaser train --out {model} --protocol smoke --method metaser {options} ...")
    train(
        model,
        data=data,
        tasks=[tasks],
        sources="de_synthetic,en_synthetic",
        protocol="smoke",
        method="metaser",
        draws=12,
        cache=folder / "cache",
    )
    typer.echo(f"\n$ metaser adapt {model} --out {adapted} --task it_synthetic --shots 5 {options}")
    adapt(model, out=adapted, task="it_synthetic", shots=5, data=data, tasks=[tasks])
    typer.echo(f"\n$ metaser predict {adapted} {clip}")
    predict(adapted, [str(clip)])


def _pair(label: str) -> tuple[str, str]:
    """Split ``NAME=CLASS`` at its last equals sign."""
    match = re.fullmatch(r"(.+)=([^=]+)", label)
    if match is None:
        raise ValueError(
            f"--label must be NAME=CLASS, not {label!r}: write e.g. --label wütend=angry"
        )
    return match[1], match[2]


def _present(task: str, data: Path | None, tasks: list[Path] | None) -> "Task":
    """Read a task whose audio must be present."""
    from metaser.tasks.task import read_task, require_audio

    return require_audio(read_task(task, data, tasks or ()))


def _clips_of(task: "Task", classes: list[str]) -> "Clips":
    """Return the clips of a present task that have one of the classes."""
    from metaser.adaptation.clips import Clips

    assert task.table is not None and task.audio is not None  # it is present
    table = task.table[task.table["emotion"].isin(classes)]
    paths = tuple(task.audio / name for name in table["file"])
    return Clips(paths, tuple(table["emotion"]), tuple(table["speaker"]))


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; ``-`` is standard output."""
    from metaser.files import write_text

    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    write_text(path, text)
    typer.echo(path, err=True)


def _note(sentence: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"note: {sentence}", err=True)


def _print_lines(sentences: list[str]) -> None:
    """Print sentences on stderr, one per line."""
    for sentence in sentences:
        typer.echo(sentence, err=True)


def _note_versions(header: "Header") -> None:
    """Print which libraries have another version than where the model was made."""
    from metaser.adaptation.model_file import other_versions

    if others := other_versions(header):
        _note(f"scores may differ a little from where the model was made: {', '.join(others)}")


def _print_table(table: "pd.DataFrame") -> None:
    """Print predictions, one row per clip or window."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(header_style="bold")
    for name in table.columns:
        shown.add_column(name, overflow="fold", justify="left" if name == "file" else "right")
    for row in table.itertuples(index=False):
        cells = [f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell)) for cell in row]
        shown.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 120).print(shown)


def _print_evaluation(result: "Evaluation") -> None:
    """Print scores, confusion, and the range over groups of clips."""
    from metaser.adaptation.card import percent

    def line(name: str, score: "Score") -> str:
        interval = percent(score.value, score.low, score.high)
        return f"{name}: {interval}, {score.clips} clips of {score.speakers} speakers"

    typer.echo(f"{line('UAR', result.uar)}; chance is {100 / len(result.classes):.0f} %")
    if result.uar.speakers == 1:
        typer.echo("  one speaker: the interval says nothing about others")
    if result.new_speakers is not None:
        typer.echo(line("UAR on speakers that the model does not know", result.new_speakers))
    typer.echo(line("macro-F1", result.macro_f1))
    typer.echo(f"calibration error: {result.ece:.3f}")
    typer.echo(f"left out, because the model is adapted to them: {result.left_out} clips")
    typer.echo("true class: number of clips predicted as " + ", ".join(result.classes))
    for name, counts in zip(result.classes, result.confusion):
        typer.echo(f"  {name}: {', '.join(map(str, counts))}")
    for group, rows in result.groups.groupby("group", sort=False):
        full = rows[rows["classes"] == rows["classes"].max()]
        if len(full) < 2:
            continue  # nothing to compare
        worst, best = full.loc[full["uar"].idxmin()], full.loc[full["uar"].idxmax()]
        typer.echo(
            f"by {group}: from {100 * worst['uar']:.1f} % ({worst['name']}, {worst['clips']} "
            f"clips) to {100 * best['uar']:.1f} % ({best['name']}, {best['clips']} clips), over "
            f"{len(full)} with {full['classes'].max()} classes"
        )
