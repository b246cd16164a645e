"""`metaser curve` and `metaser select`: how many clips to label, and which."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from metaser.cli.options import Cache, Data, Encoder, Folders, Jobs, plain_errors
from metaser.files import Places

if TYPE_CHECKING:
    import numpy as np

    from metaser.adaptation.model_file import ModelFile
    from metaser.episodes import Episode
    from metaser.features.table import Features
    from metaser.labelling.curve import Curve
    from metaser.tasks.task import Task

Guess = Callable[["Episode"], "np.ndarray"]
"""From an episode to the guessed classes of its query clips."""

Scores = dict[int, list[float]]
"""From clips per class to the UAR of each episode."""

KNOWS_VOICES = (
    "The model knows voices: beside the drawn clips it has looked at all query clips of each "
    "speaker, without their labels."
)

Queries = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Query clips per class; a quarter of the smallest class, 1 to 10, if not given.",
    ),
]


def curve(
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of a task, or its folder.")],
    *,
    data: Data = None,
    folders: Folders = None,
    want: Annotated[
        float | None, typer.Option(help="Wanted UAR, between 0 and 1, such as 0.7.")
    ] = None,
    classes: Annotated[str, typer.Option(help="Only these classes, separated by commas.")] = "",
    queries: Queries = None,
    episodes: Annotated[int, typer.Option(min=2, help="Draws per number of clips.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    any_speaker: Annotated[
        bool,
        typer.Option("--any-speaker", help="Allow the same speaker in support and query."),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model file to adapt, compared with logistic regression on the same draws."
        ),
    ] = None,
    encoder: Encoder = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write: .png or .svg.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Table to write: task, method, shots, uar, low, high.")
    ] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Measure UAR per number of labelled clips; estimate how many a wanted UAR needs."""
    with plain_errors():
        _check_wishes(want, figure)
        from functools import partial

        from metaser.labelling import curve as library

        file = _load(model, encoder)
        known = None if file is None else file.header.classes
        places = Places.at(data, folders, cache, jobs)
        chosen, features = _prepare(task, places, classes, known)
        speakers = "any" if any_speaker else "disjoint"
        queries = queries or library.usual_queries(chosen)
        shots = _shots(chosen, queries, speakers, seed)
        measured = partial(
            library.measure,
            chosen,
            shots=shots,
            queries=queries,
            episodes=episodes,
            seed=seed,
            speakers=speakers,
            classes=known,
        )
        scores = measured(library.logistic_regression(features))
        tables = {"logistic_regression": scores}
        if file is None or model is None:
            _print_curve(chosen, scores, queries, any_speaker)
        else:
            plain, scores = scores, measured(_model_guess(file, chosen, places))
            tables[model.stem] = scores
            _print_curve(chosen, scores, queries, any_speaker, model=model.stem, plain=plain)
            if file.knows_voices:
                typer.echo(KNOWS_VOICES)
        if csv is not None:
            _write_scores(csv, chosen.name, tables)
        fitted, resampled = _fit(scores, want, seed)
        if figure is not None:
            library.draw(
                figure,
                scores,
                fitted,
                resampled=resampled,
                title=chosen.name,
                chance=1 / len(chosen.classes),
                wanted=want,
            )
            typer.echo(f"figure: {figure}")


def _check_wishes(want: float | None, figure: Path | None) -> None:
    """Refuse a wanted UAR or a figure that cannot be, before any sound is read."""
    if want is not None and not 0 < want < 1:
        raise ValueError(f"--want must be a UAR between 0 and 1, not {want}: give e.g. 0.7")
    if figure is not None and figure.suffix.lower() not in (".png", ".svg"):
        raise ValueError(
            f"--figure must be a .png or .svg file, not {figure.name!r}: change the ending"
        )


def _shots(task: "Task", queries: int, speakers: str, seed: int) -> list[int]:
    """Return the numbers of clips that a task is large enough for; an error names the options."""
    from metaser.labelling.curve import possible_shots

    try:
        return possible_shots(task, queries, speakers, seed)
    except ValueError as error:
        hint = "" if speakers == "any" else ", or say --any-speaker"
        raise ValueError(f"{error} (with {queries} queries: --queries){hint}") from error


def _write_scores(path: Path, task: str, tables: dict[str, Scores]) -> None:
    """Write mean UAR with its 95 % interval over draws, a row per method and number of clips."""
    import pandas as pd

    from metaser import stats
    from metaser.files import write_text

    rows = []
    for method, scores in tables.items():
        for shots, uars in scores.items():
            found = stats.interval([uars])
            ends = {"uar": found.mean, "low": found.low, "high": found.high}
            rows.append({"task": task, "method": method, "shots": shots} | ends)
    write_text(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.5f"))
    typer.echo(f"table: {path}")


def _load(path: Path | None, encoder: Path | None) -> "ModelFile | None":
    """Read a model file, if there is one; torch is imported only here."""
    if path is None:
        if encoder is not None:
            raise ValueError(
                f"--encoder {encoder} is of a model, but there is none: give --model, too"
            )
        return None
    from metaser.adaptation.model_file import load

    return load(path, encoder)


def _model_guess(file: "ModelFile", task: "Task", places: Places) -> Guess:
    """Return how the model guesses the task's clips, after printing what to be careful about."""
    from metaser.adaptation.card import warnings
    from metaser.features.extraction import extract
    from metaser.labelling.curve import adapted_model, check_model

    check_model(file, task)
    if file.header.synthetic:
        typer.echo(warnings(file.header)[0], err=True)
    if any(source.name == task.name for source in file.header.sources):
        typer.echo(
            f"note: the model has learnt from {task.name}: its scores here say nothing about new "
            "speech",
            err=True,
        )
    features = extract(task, file.frontend(), places.cache, jobs=places.jobs, progress=True)
    return adapted_model(file, features, task.table["speaker"].to_numpy(str))


def _fit(scores: Scores, want: float | None, seed: int) -> tuple["Curve | None", list["Curve"]]:
    """Fit a curve to the scores and to resamples of them; print it and what a wanted UAR needs.

    Where there are too few points for a fit and no UAR is wanted, there is no curve.
    """
    import numpy as np

    from metaser.labelling import curve as library

    if want is None and len(scores) < library.FEWEST:
        return None, []
    fitted = library.fit(scores)
    resampled = library.resample(scores, np.random.default_rng(seed))
    typer.echo(f"fit: UAR(K) = {fitted.limit:.3f} - {fitted.loss:.3f} · K^-{fitted.rate:.2f}")
    if want is not None:
        need = library.need(fitted, resampled, want)
        typer.echo(library.tell(need, fitted, want, list(scores)))
    return fitted, resampled


def _prepare(
    task: str, places: Places, classes: str, known: Sequence[str] | None
) -> tuple["Task", "Features"]:
    """Read a task with the wanted classes, and extract its normalised statistics.

    Where no class is named, the task keeps those that are ``known`` to the model, or all.
    """
    from dataclasses import replace

    from metaser.episodes import join_same_audio
    from metaser.features.extraction import extract
    from metaser.features.table import normalise
    from metaser.frontends import make_frontend
    from metaser.naming import nearest
    from metaser.tasks.task import read_task

    whole = read_task(task, places.data, places.folders)
    frontend = make_frontend({"name": "statistics"})
    features = extract(whole, frontend, places.cache, jobs=places.jobs, progress=True)
    features = normalise(features, whole, "corpus")
    wanted = [name for name in classes.split(",") if name]
    wanted = wanted or [name for name in whole.counts if known is None or name in known]
    for name in wanted:
        if name not in whole.counts:
            raise ValueError(
                f"--classes must be classes of {whole.name}, not {name!r}: choose among "
                f"{', '.join(whole.counts)}.{nearest(name, whole.counts)}"
            )
    joined = join_same_audio(whole, features.hashes)
    return replace(joined, classes=tuple(wanted)), features


def _print_curve(
    task: "Task",
    scores: Scores,
    queries: int,
    any_speaker: bool,
    *,
    model: str = "",
    plain: Scores | None = None,
) -> None:
    """Print the scores of logistic regression, or of a model next to the ``plain`` ones."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from metaser.stats import intervals, paired_tests

    name = "logistic regression, statistics" if plain is None else escape(f"{model}, adapted")
    table = Table(header_style="bold", title=f"{task.name}: {name}")
    for column in ("clips per class", "UAR", "95 % interval", "episodes"):
        table.add_column(column, justify="right")
    rows = [
        [str(shots), f"{mean.mean:.1%}", f"{mean.low:.1%} to {mean.high:.1%}", str(mean.episodes)]
        for shots, mean in intervals(scores).items()
    ]
    if plain is not None:
        table.add_column("logistic regression", justify="right")
        table.add_column("the model buys", justify="right")
        baselines = intervals(plain).values()
        gains = paired_tests({shots: (scores[shots], plain[shots]) for shots in scores}).values()
        for row, baseline, gain in zip(rows, baselines, gains):
            points = [f"{100 * value:+.1f}" for value in (gain.difference, gain.low, gain.high)]
            row += [
                f"{baseline.mean:.1%} [{baseline.low:.1%}, {baseline.high:.1%}]",
                f"{points[0]} [{points[1]}, {points[2]}]",
            ]
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    apart = (
        "a speaker may be in support and query, so scores are better than on new people"
        if any_speaker
        else "no speaker is both learnt from and tested on"
    )
    normalised = (
        "Features are standardised over all clips."
        if plain is None
        else "The model adapts to the drawn clips alone, as in `metaser adapt`; the features of "
        "logistic regression are standardised over all clips, which is in its favour. What the "
        "model buys is in points, on the same draws. Fit, need and figure below are of the model."
    )
    typer.echo(
        f"classes {', '.join(task.classes)} (chance {1 / len(task.classes):.0%}); {queries} query "
        f"clips per class; {apart}. {normalised} Intervals are over draws of these clips; other "
        "speakers may differ more."
    )


def select(
    count: Annotated[int, typer.Option(min=1, help="Clips to choose.")],
    *,
    audio: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of unlabelled recordings.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A task: choose among its clips without a label."),
    ] = None,
    data: Data = None,
    folders: Folders = None,
    strategy: Annotated[
        str, typer.Option(help="k_means (better than random where measured), k_centre or random.")
    ] = "k_means",
    speaker: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="Field of the file names that is the speaker: 1, folder1 …"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random numbers.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write, with an empty column for the emotion.")
    ] = None,
    jobs: Jobs = 1,
) -> None:
    """Propose which clips to label next: those that cover the sound of all unlabelled clips."""
    with plain_errors():
        from metaser.labelling import choose as labelling
        from metaser.naming import nearest

        if (audio is None) == (task is None):
            came = "neither" if task is None else "both"
            raise ValueError(
                f"exactly one of --audio DIR and --task NAME must be given, not {came}: choose one"
            )
        if strategy not in labelling.STRATEGIES:
            known = ", ".join(labelling.STRATEGIES)
            raise ValueError(
                f"--strategy must be one of {known}, not {strategy!r}: choose one."
                f"{nearest(strategy, labelling.STRATEGIES)}"
            )
        if out is not None and out.exists():
            raise FileExistsError(
                f"--out must be a new file, but {out} is there already: name another"
            )
        folder, files, labelled = _clips(audio, task, Places.at(data, folders))
        if count > len(files):
            raise ValueError(
                f"there are {len(files)} clips without a label, fewer than {count}: lower --count"
            )
        everything = [*files, *labelled]
        speakers = _speakers_of(everything, speaker) if speaker else None
        import numpy as np

        features = labelling.hear([folder / file for file in everything], jobs)
        choose = labelling.STRATEGIES[strategy]
        labelled_rows = range(len(files), len(everything))
        rng = np.random.default_rng(seed)
        rows = choose(labelling.standardise(features), count, rng, speakers, labelled_rows)
        chosen = [files[row] for row in rows]
        if labelled:
            typer.echo(
                f"{len(labelled)} clips of {task} have a label and count as chosen: the new ones "
                "cover what these do not",
                err=True,
            )
        if out is None:
            typer.echo("\n".join(chosen))
        else:
            _write(out, chosen, [speakers[row] for row in rows] if speakers else None)
            typer.echo(f"{out}: {count} of {len(files)} clips below {folder}; fill in the emotion")
            typer.echo(f"next: metaser adapt MODEL {quote(str(folder))} --table {quote(str(out))}")


def _clips(
    audio: Path | None, task: str | None, places: Places
) -> tuple[Path, list[str], list[str]]:
    """Return the folder, its clips without a label, and those that a task labels."""
    from metaser.tasks.new import find_audio
    from metaser.tasks.task import read_task

    if task is None:
        folder = audio or Path()
        return folder, find_audio(folder), []
    declared = read_task(task, places.data, places.folders)
    if declared.table is None or declared.audio is None:
        raise FileNotFoundError(
            f"the audio of {declared.name} must be present, but it is not: name the folder above "
            "it by --data"
        )
    labelled = {*declared.table["file"], *declared.dropped}
    files = [file for file in find_audio(declared.audio) if file not in labelled]
    if not files:
        raise ValueError(
            f"{declared.name} must have clips without a label, but every clip has one: add "
            "recordings to its folder"
        )
    return declared.audio, files, list(declared.table["file"])


def _speakers_of(files: list[str], wanted: str) -> list[str]:
    """Return the speaker of each file, read from the wanted field of its name."""
    from metaser.tasks.names import name_fields, named_field

    values = named_field(name_fields(files), wanted).values
    if len(values) < len(files):
        raise ValueError(
            f"field {wanted} must be in all names, but only {len(values)} of {len(files)} have "
            "it, because their forms differ: rename the others, or leave --speaker out"
        )
    return list(values)


def _write(path: Path, files: list[str], speakers: list[str] | None) -> None:
    """Write a table of clips to label: file, speaker and an empty emotion."""
    import pandas as pd

    from metaser.files import write_table

    table = pd.DataFrame({"file": files, "speaker": speakers or "", "emotion": ""})
    write_table(path, table)
