"""`metaser curve` and `metaser select`: how many clips to label, and which."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from metaser.cli.options import Cache, Data, Folders, Jobs, plain_errors


def curve(
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of a task, or its folder.")],
    data: Data = None,
    folders: Folders = None,
    want: Annotated[
        float | None, typer.Option(help="UAR that is wanted, between 0 and 1, such as 0.7.")
    ] = None,
    classes: Annotated[str, typer.Option(help="Only these classes, separated by commas.")] = "",
    queries: Annotated[
        int | None, typer.Option(min=1, help="Clips a class to test on; as the clips allow.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Draws of each number of clips.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    any_speaker: Annotated[
        bool,
        typer.Option("--any-speaker", help="Let a speaker be both learnt from and tested on."),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(help="Model file to adapt, beside logistic regression on the same draws."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to write: .png or .svg.")] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
) -> None:
    """Measure UAR by the number of labelled clips; estimate how many a wanted UAR needs."""
    with plain_errors():
        if want is not None and not 0 < want < 1:
            raise ValueError(f"--want is a UAR between 0 and 1, such as 0.7; came {want}")
        if figure is not None and figure.suffix.lower() not in (".png", ".svg"):
            raise ValueError(f"--figure is a .png or .svg file, not {figure.name!r}")
        from metaser.labelling import curve as library

        file = None
        if model is not None:
            from metaser.adaptation.model_file import load

            file = load(model)
        known = None if file is None else file.header.classes
        found, features = _prepare(task, data, folders or (), classes, known, jobs, cache)
        speakers = "any" if any_speaker else "disjoint"
        queries = queries or library.usual_queries(found)
        try:
            shots = library.possible_shots(found, queries, speakers, seed)
        except ValueError as error:
            hint = "" if any_speaker else ", or say --any-speaker"
            raise ValueError(f"{error} (with {queries} queries: --queries){hint}") from error
        draws = (shots, queries, episodes, seed, speakers, known)
        scores = library.measure(found, library.logistic_regression(features), *draws)
        if file is None:
            _print_curve(found, scores, queries, any_speaker)
        else:
            plain, scores = scores, _of_model(file, found, draws, jobs, cache)
            _print_curve(found, scores, queries, any_speaker, model.stem, plain)
        fitted, resampled = None, []
        if want is not None or len(scores) >= library.FEWEST:
            import numpy as np

            fitted = library.fit(scores)
            resampled = library.resample(scores, np.random.default_rng(seed))
            typer.echo(
                f"fit: UAR(K) = {fitted.limit:.3f} - {fitted.loss:.3f} · K^-{fitted.rate:.2f}"
            )
        if want is not None:
            asked = library.need(fitted, resampled, want)
            typer.echo(library.tell(asked, fitted, want, shots))
        if figure is not None:
            chance = 1 / len(found.classes)
            library.draw(figure, scores, fitted, resampled, found.name, chance, want)
            typer.echo(f"figure: {figure}")


def _of_model(file, task, draws: tuple, jobs: int, cache) -> dict:
    """The scores of a model on the same draws."""
    from metaser.adaptation.card import warnings
    from metaser.features.extraction import extract
    from metaser.labelling.curve import adapted_model, check_model, measure

    check_model(file, task)
    if file.header.synthetic:
        typer.echo(warnings(file.header)[0], err=True)
    if any(source.name == task.name for source in file.header.sources):
        typer.echo(
            f"note: the model has learnt from {task.name}: its scores here say nothing about new "
            "speech",
            err=True,
        )
    features = extract(task, file.frontend(), cache, jobs=jobs, progress=True)
    return measure(task, adapted_model(file, features), *draws)


def _prepare(task: str, data, folders, classes: str, known, jobs: int, cache):
    """The task with the wanted classes, all that a model knows if none is named; its statistics."""
    from dataclasses import replace

    from metaser.episodes import join_same_audio
    from metaser.features.extraction import extract
    from metaser.features.table import normalise
    from metaser.frontends import make_frontend
    from metaser.naming import nearest
    from metaser.tasks.task import read_task

    found = read_task(task, data, folders)
    features = extract(
        found, make_frontend({"name": "statistics"}), cache, jobs=jobs, progress=True
    )
    features = normalise(features, found, "corpus")
    wanted = [name for name in classes.split(",") if name]
    wanted = wanted or [name for name in found.counts if known is None or name in known]
    for name in wanted:
        if name not in found.counts:
            raise ValueError(
                f"{found.name} has no clips of class {name!r}.{nearest(name, found.counts)} "
                f"It has {', '.join(found.counts)}"
            )
    found = replace(join_same_audio(found, features.hashes), classes=tuple(wanted))
    return found, features


def _print_curve(
    task, scores: dict, queries: int, any_speaker: bool, model: str = "", plain: dict | None = None
) -> None:
    """Print the scores of logistic regression, or of a model with the ``plain`` ones beside it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from metaser.stats import intervals, paired_tests

    name = "logistic regression, statistics" if plain is None else escape(f"{model}, adapted")
    table = Table(header_style="bold", title=f"{task.name}: {name}")
    for column in ("clips a class", "UAR", "95 % interval", "episodes"):
        table.add_column(column, justify="right")
    rows = [
        [str(shots), f"{mean.mean:.1%}", f"{mean.low:.1%} to {mean.high:.1%}", str(mean.episodes)]
        for shots, mean in intervals(scores).items()
    ]
    if plain is not None:
        table.add_column("logistic regression", justify="right")
        table.add_column("the model buys", justify="right")
        beside = intervals(plain).values()
        gains = paired_tests({shots: (scores[shots], plain[shots]) for shots in scores}).values()
        for row, other, gain in zip(rows, beside, gains):
            said = [f"{100 * value:+.1f}" for value in (gain.difference, gain.low, gain.high)]
            row += [
                f"{other.mean:.1%} [{other.low:.1%}, {other.high:.1%}]",
                f"{said[0]} [{said[1]}, {said[2]}]",
            ]
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    apart = (
        "speakers may be on both sides, so scores are better than on new people"
        if any_speaker
        else "no speaker is both learnt from and tested on"
    )
    normalised = (
        "Features are standardised over all clips."
        if plain is None
        else "The model hears the drawn clips alone, as in `metaser adapt`; features of logistic "
        "regression are standardised over all clips, which is in its favour. What the model buys "
        "is in points, on the same draws. What follows is of the model."
    )
    typer.echo(
        f"classes {', '.join(task.classes)} (chance {1 / len(task.classes):.0%}); {queries} clips "
        f"a class tested on; {apart}. {normalised} Intervals are over draws of these clips; other "
        "speakers may differ more."
    )


def select(
    count: Annotated[int, typer.Option(min=1, help="Clips to choose.")],
    audio: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of unlabelled recordings.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A task: chosen among its audio without a label."),
    ] = None,
    data: Data = None,
    folders: Folders = None,
    strategy: Annotated[
        str, typer.Option(help="k_means (ahead of chance where measured), k_centre or random.")
    ] = "k_means",
    speaker: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Field of the names that is the speaker: 1, folder1 …"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random numbers.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write, with an empty column for the emotion.")
    ] = None,
    jobs: Jobs = 1,
) -> None:
    """Propose which unlabelled clips to label next: those that cover the sound of all."""
    with plain_errors():
        from metaser.labelling import choose as labelling
        from metaser.naming import nearest

        if (audio is None) == (task is None):
            raise ValueError("say either --audio DIR or --task NAME, one of the two")
        if strategy not in labelling.STRATEGIES:
            known = ", ".join(labelling.STRATEGIES)
            raise ValueError(
                f"--strategy is one of {known}, not {strategy!r}."
                f"{nearest(strategy, labelling.STRATEGIES)}"
            )
        if out is not None and out.exists():
            raise FileExistsError(f"{out} is there already; name a file that is not")
        folder, files, known = _clips(audio, task, data, folders or ())
        if count > len(files):
            raise ValueError(f"there are {len(files)} clips without a label, fewer than {count}")
        everything = [*files, *known]
        who = _speakers_of(everything, speaker) if speaker else None
        import numpy as np

        heard = labelling.hear([folder / file for file in everything], jobs)
        choose = labelling.STRATEGIES[strategy]
        labelled = range(len(files), len(everything))
        rng = np.random.default_rng(seed)
        chosen = choose(labelling.standardise(heard), count, rng, who, labelled)
        if known:
            typer.echo(
                f"{len(known)} clips of {task} have a label and count as chosen: the others go on "
                "from them",
                err=True,
            )
        if out is None:
            typer.echo("\n".join(files[i] for i in chosen))
        else:
            _write(out, [files[i] for i in chosen], [who[i] for i in chosen] if who else None)
            typer.echo(f"{out}: {count} of {len(files)} clips below {folder}; fill in the emotion")


def _clips(audio: Path | None, task: str | None, data, folders) -> tuple[Path, list, list]:
    """The folder, its clips without a label, and those that a task labels."""
    from metaser.tasks.new import find_audio
    from metaser.tasks.task import read_task

    if audio is not None:
        return audio, find_audio(audio), []
    found = read_task(task, data, folders)
    if found.table is None:
        raise FileNotFoundError(
            f"the audio of {found.name} is not present: name the folder above it by --data"
        )
    labelled = {*found.table["file"], *found.dropped}
    files = [file for file in find_audio(found.audio) if file not in labelled]
    if not files:
        raise ValueError(f"every clip of {found.name} has a label already; nothing to choose")
    return found.audio, files, list(found.table["file"])


def _speakers_of(files: list[str], wanted: str) -> list[str]:
    from metaser.tasks.names import name_fields, named_field

    values = named_field(name_fields(files), wanted).values
    if len(values) < len(files):
        raise ValueError(
            f"field {wanted} is in {len(values)} of {len(files)} names only, because their forms "
            "differ: rename the others, or leave --speaker out"
        )
    return list(values)


def _write(path: Path, files: list[str], who: list[str] | None) -> None:
    import os

    import pandas as pd

    speakers = {"speaker": who} if who else {"speaker": ""}
    part = path.with_name(f".{path.name}.part")
    pd.DataFrame({"file": files, **speakers, "emotion": ""}).to_csv(part, index=False)
    os.replace(part, path)
