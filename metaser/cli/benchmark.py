"""`metaser benchmark`, `report`, `episodes`, `synthesise` and `demo`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from metaser.cli import models
from metaser.cli.options import Cache, Data, Folders, Jobs, plain_errors, resumable


def synthesise(
    folder: Annotated[Path, typer.Argument(help="Folder to write them into.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other speakers and clips.")] = 0,
    speakers: Annotated[int, typer.Option(help="Speakers per language.")] = 8,
    sentences: Annotated[int, typer.Option(help="Clips per emotion and speaker.")] = 6,
) -> None:
    """Synthesise the made-up emotional languages into a folder."""
    from metaser.synthetic.corpus import generate

    with plain_errors():
        languages = generate(folder, speakers=speakers, sentences=sentences, seed=seed)
    typer.echo(f"try: metaser tasks --data {languages / 'audio'} --tasks {languages / 'tasks'}")


def benchmark(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
    *,
    data: Data = None,
    tasks: Folders = None,
    targets: Annotated[str, typer.Option(help="Only these targets, separated by commas.")] = "",
    methods: Annotated[str, typer.Option(help="Only these methods, separated by commas.")] = "",
    jobs: Jobs = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results folder; results/PROTOCOL if not given.")
    ] = None,
    cache: Cache = None,
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Cluster that runs the trainings: tcp://HOST:PORT (Dask), ray://HOST:PORT (Ray).",
        ),
    ] = "",
    device: Annotated[
        str, typer.Option(help="Where to train and adapt: cpu, cuda, cuda:1, ….")
    ] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print how much there is to do.")
    ] = False,
) -> None:
    """Run a protocol; a run that was stopped continues where it was."""
    from metaser.protocol.schema import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        from metaser.benchmark import Run, forecast
        from metaser.benchmark import measure as run_benchmark
        from metaser.files import Places

        out = out or Path("results") / plan.name
        run = Run(
            protocol=plan,
            out=out,
            places=Places.at(data, tasks, cache, jobs),
            targets=_listed(targets),
            methods=_listed(methods),
            scheduler=scheduler,
            device=device,
            command=_command_line(),
        )
        if dry_run:
            typer.echo(forecast(run))
            return
        with resumable(f"({out})"):
            run_benchmark(run)
    typer.echo(f"rows: {out / 'rows.jsonl'}\nnext: metaser report {out}")


def report(
    results: Annotated[Path, typer.Argument(help="Folder that `metaser benchmark` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder or .html file; the results folder if not given.")
    ] = None,
) -> None:
    """Write the report of a results folder: one HTML page and a Markdown file."""
    from metaser.report.page import write

    with plain_errors():
        page, markdown = write(results, out)
    typer.echo(f"{page}\n{markdown}")


def episodes(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
    target: Annotated[str, typer.Argument(help="Name of the target task.")],
    *,
    shots: Annotated[int, typer.Option(help="Support clips per class.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    data: Data = None,
    tasks: Folders = None,
) -> None:
    """Write the clip names of a protocol's episodes, so that anyone can score the same draws."""
    from metaser.protocol.schema import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)

        from metaser.benchmark import write_episodes
        from metaser.files import Places

        digest = write_episodes(plan, target, shots, seed, out, Places.at(data, tasks))
    typer.echo(f"{out}: digest {digest}")


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to work in.")] = Path("demo"),
    jobs: Jobs = 2,
) -> None:
    """Compare the methods on made-up languages: synthesise, benchmark smoke, report."""
    from metaser.protocol.schema import read_protocol

    with plain_errors(hint=f"To begin again, delete {folder} or name another folder."):
        from metaser.synthetic.corpus import generate

        typer.echo("Synthesising the made-up languages ...")
        languages = generate(folder / "languages")
        from metaser.benchmark import run
        from metaser.report.page import overview, write

        results = folder / "results"
        with resumable():
            run(
                read_protocol("smoke"),
                results,
                data=languages / "audio",
                task_folders=[languages / "tasks"],
                jobs=jobs,
                cache=folder / "cache",
                command=_command_line(),
            )
        page, _ = write(results)
    from rich.console import Console

    Console().print(overview(results))
    typer.echo(f"Report: {page.resolve()}")
    models.demonstrate(folder, languages)


def _command_line() -> str:
    """Return the command as typed, without the path of the program."""
    return " ".join(["metaser", *sys.argv[1:]])


def _listed(names: str) -> tuple[str, ...]:
    """Split names at commas."""
    return tuple(name for name in names.split(",") if name)
