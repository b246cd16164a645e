"""Train a model, adapt it to a language, predict, evaluate, export."""

import re
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from metaser.cli.options import (
    Cache,
    Data,
    Folders,
    Jobs,
    check_out,
    plain_errors,
    quick_imports,
    resumable,
)

Model = Annotated[Path, typer.Argument(help="Model file.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed gives other draws.")]


def train(
    out: Annotated[Path, typer.Option(help="Model file to write, e.g. model.safetensors.")],
    data: Data = None,
    tasks: Folders = None,
    sources: Annotated[
        str, typer.Option(help="Tasks to learn from, separated by commas; else the protocol's.")
    ] = "",
    protocol: Annotated[
        str, typer.Option(help="Protocol that says how: its name or file.")
    ] = "unseen_language",
    setup: Annotated[
        str | None, typer.Option(help="Setup of the protocol; the first if not given.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method of the setup.")] = "inner_loop_alone",
    draws: Annotated[
        int, typer.Option(min=1, help="Draws a left-out task and number of clips, to measure by.")
    ] = 40,
    seed: Seed = 0,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Train a model on all corpora at hand, and measure it on languages left out in turn.

    A run that was stopped goes on where it was.
    """
    with plain_errors():
        check_out(out, "model.safetensors")
        from metaser.adaptation.card import measured_lines, warnings
        from metaser.adaptation.recipe import read_recipe
        from metaser.adaptation.train import train_model
        from metaser.files import Places

        chosen = [name for name in sources.split(",") if name]
        with resumable():
            recipe = read_recipe(protocol, setup, method, chosen)
            places = Places.at(data, tasks, cache, jobs)
            header = train_model(out, recipe, places, seed=seed, draws=draws)
    _say(warnings(header)[:-1])
    typer.echo(f"measured by leaving out each {header.left_out} in turn:")
    typer.echo("\n".join(measured_lines(header)))
    typer.echo(f"{out}\nnext: metaser adapt {quote(str(out))} FOLDER --out adapted.safetensors")


def adapt(
    model: Model,
    out: Annotated[Path, typer.Option(help="Model file to write.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Labelled clips in sub-folders named by emotion (and speaker below)."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Take the clips of this task instead.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Clips a class, drawn at random; all if not given.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CLASS", help="What a sub-folder's name means; repeatable."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A sub-folder to leave out; repeatable."),
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Its group in a file's name is the speaker."),
    ] = None,
    seed: Seed = 0,
    data: Data = None,
    tasks: Folders = None,
) -> None:
    """Adapt a model to a language by a few labelled clips, and tell how well it will do."""
    with plain_errors():
        if (folder is None) == (task is None):
            raise ValueError("expected either a folder of labelled clips or --task, one of the two")
        mapping = dict(map(_pair, label or ()))
        check_out(out, "adapted.safetensors", model)
        with quick_imports():
            from metaser.adaptation import adapt as adaptation
            from metaser.adaptation.card import expected_lines, warnings
            from metaser.adaptation.clips import Clips, labelled_folder
            from metaser.adaptation.model_file import load, save

        file = load(model)
        facts = {}
        if folder is not None:
            clips = labelled_folder(folder, file.header.classes, mapping, drop or (), speaker)
            facts["name"] = folder.resolve().name
        else:
            found = _present(task, data, tasks)
            table = found.table[found.table["emotion"].isin(file.header.classes)]
            paths = tuple(found.audio / name for name in table["file"])
            clips = Clips(paths, tuple(table["emotion"]), tuple(table["speaker"]))
            facts = {"name": found.name, "task_version": found.version}
            facts["synthetic"] = found.synthetic
        _tell_versions(file.header)
        adapted = adaptation.adapt(file, clips, shots, seed, tell=_tell, **facts)
        save(out, adapted)
    _say(warnings(adapted.header))
    typer.echo("\n".join(expected_lines(adapted.header)))
    typer.echo(f"{out}\nnext: metaser predict {quote(str(out))} FILES")


def predict(
    model: Model,
    files: Annotated[
        list[str],
        typer.Argument(help="Audio files or folders of them; - reads names from standard input."),
    ],
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Write one JSON object a line.")] = None,
    window: Annotated[
        float | None, typer.Option(help="Go through long recordings in windows of so many seconds.")
    ] = None,
    hop: Annotated[
        float | None, typer.Option(help="Seconds from window to window; half a window by default.")
    ] = None,
    abstain: Annotated[
        float, typer.Option(help="Say unsure where no probability reaches this.")
    ] = 0.0,
    by_these: Annotated[
        bool,
        typer.Option(
            "--normalise-by-these", help="Normalise by these files, not by those adapted to."
        ),
    ] = False,
) -> None:
    """Recognise the emotion of clips, with probabilities, or of each window of long recordings."""
    with plain_errors():
        check_out(csv, "emotions.csv", model)
        check_out(jsonl, "emotions.jsonl", model)
        with quick_imports():
            from metaser.adaptation import predict as prediction
            from metaser.adaptation.card import warnings
            from metaser.adaptation.model_file import load

        file = load(model)
        _tell_versions(file.header)
        _say(warnings(file.header))
        names = [line.rstrip("\n") for line in sys.stdin] if files == ["-"] else files
        names = [name for name in names if name]
        table = prediction.predict(file, names, window, hop, abstain, by_these)
        if csv is not None:
            _write(csv, table.to_csv(index=False, float_format="%.4f"))
        if jsonl is not None:
            lines = table.to_json(orient="records", lines=True, force_ascii=False)
            _write(jsonl, lines.rstrip("\n") + "\n")
    if csv is None and jsonl is None:
        _show(table)


def evaluate(
    model: Model,
    task: Annotated[str, typer.Option(help="Task whose clips are scored.")],
    data: Data = None,
    tasks: Folders = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Score a model on the clips of a task, but for those that it was adapted to."""
    with plain_errors():
        from metaser.adaptation import evaluate as evaluation
        from metaser.adaptation.card import warnings
        from metaser.adaptation.model_file import load
        from metaser.features.extraction import extract
        from metaser.tasks.task import restrict

        file = load(model)
        _tell_versions(file.header)
        found = restrict(_present(task, data, tasks), file.header.classes)
        features = extract(found, file.frontend(), cache, jobs=jobs)
        result = evaluation.evaluate(file, found.table, features)
    _say(warnings(file.header))
    if any(source.name == found.name for source in file.header.sources):
        _tell(f"the model has learnt from {found.name}: these scores say nothing about new speech")
    _show_evaluation(result)


def export(
    model: Model,
    card: Annotated[Path | None, typer.Option(help="Model card to write (Markdown).")] = None,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.")] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames that the ONNX file takes; any number if not given. LEAF needs it."
        ),
    ] = None,
) -> None:
    """Write a model card, or the model as ONNX."""
    with plain_errors():
        if card is None and onnx is None:
            raise ValueError("expected --card card.md, --onnx model.onnx, or both")
        if frames is not None and onnx is None:
            raise ValueError(f"--frames {frames} is of the ONNX file: say --onnx model.onnx, too")
        check_out(card, "card.md", model)
        check_out(onnx, "model.onnx", model)
        from metaser.adaptation import card as model_card
        from metaser.adaptation.model_file import load

        file = load(model)
        difference = None
        if onnx is not None:
            from metaser import export as network

            onnx.parent.mkdir(parents=True, exist_ok=True)
            difference = network.to_onnx(file.predictor.model, onnx, frames)
            typer.echo(f"{onnx}: scores differ by at most {difference:.1e}")
        if card is not None:
            model_card.write_card(card, model_card.card(file, model.stem, difference))
            typer.echo(card)


def demonstrate(folder: Path, languages: Path) -> None:
    """Train, adapt and predict on the made-up languages, as part of the demo."""
    model, adapted = folder / "model.safetensors", folder / "italian.safetensors"
    corpora = {"data": languages / "audio", "tasks": [languages / "tasks"]}
    options = f"--data {corpora['data']} --tasks {corpora['tasks'][0]}"
    learnt = "de_synthetic,en_synthetic"
    clip = sorted((corpora["data"] / "SYNTHETIC-IT").glob("*.wav"))[-1]
    typer.echo(f"\n$ metaser train --out {model} --protocol smoke --method metaser {options} ...")
    train(
        model,
        **corpora,
        sources=learnt,
        protocol="smoke",
        method="metaser",
        draws=12,
        cache=folder / "cache",
    )
    typer.echo(f"\n$ metaser adapt {model} --out {adapted} --task it_synthetic --shots 5 {options}")
    adapt(model, adapted, task="it_synthetic", shots=5, **corpora)
    typer.echo(f"\n$ metaser predict {adapted} {clip}")
    predict(adapted, [str(clip)])


def _pair(label: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.+)=([^=]+)", label)
    if match is None:
        raise ValueError(f"--label needs NAME=CLASS, e.g. --label wütend=angry, not {label!r}")
    return match[1], match[2]


def _present(task: str, data, tasks):
    """Read a task whose audio must be there."""
    from metaser.tasks.task import read_task

    found = read_task(task, data, tasks or ())
    if found.table is None:
        raise FileNotFoundError(
            f"the audio of {found.name} is not present: obtain it from {found.homepage} and name "
            "the folder above it by --data or METASER_DATA"
        )
    return found


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all; ``-`` is standard output."""
    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    typer.echo(path, err=True)


def _tell(sentence: str) -> None:
    typer.echo(f"note: {sentence}", err=True)


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        typer.echo(sentence, err=True)


def _tell_versions(header) -> None:
    from metaser.adaptation.model_file import other_versions

    if others := other_versions(header):
        _tell(f"scores may differ a little from where the model was made: {', '.join(others)}")


def _show(table) -> None:
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


def _show_evaluation(result) -> None:
    from metaser.adaptation.card import percent

    def line(name: str, score) -> str:
        interval = percent(score.value, score.low, score.high)
        return f"{name}: {interval}, {score.clips} clips of {score.speakers} speakers"

    typer.echo(f"{line('UAR', result.uar)}; chance is {100 / len(result.classes):.0f} %")
    if result.uar.speakers == 1:
        typer.echo("  one speaker: the interval says nothing about others")
    if result.new_speakers is not None:
        typer.echo(line("UAR on speakers that it has not heard", result.new_speakers))
    typer.echo(line("macro-F1", result.macro_f1))
    typer.echo(f"calibration error: {result.ece:.3f}")
    typer.echo(f"left out, being adapted to: {result.left_out} clips")
    typer.echo("true class, then how often it was taken for " + ", ".join(result.classes) + ":")
    for name, counts in zip(result.classes, result.confusion):
        typer.echo(f"  {name}: {', '.join(map(str, counts))}")
    for group, own in result.groups.groupby("group", sort=False):
        full = own[own["classes"] == own["classes"].max()]
        if len(full) < 2:
            continue  # nothing to compare
        worst, best = full.loc[full["uar"].idxmin()], full.loc[full["uar"].idxmax()]
        typer.echo(
            f"by {group}: from {100 * worst['uar']:.1f} % ({worst['name']}, {worst['clips']} "
            f"clips) to {100 * best['uar']:.1f} % ({best['name']}, {best['clips']} clips), over "
            f"{len(full)} with {full['classes'].max()} classes"
        )
