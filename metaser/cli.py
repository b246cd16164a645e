"""The `metaser` command. Heavy imports stand inside the commands: help and listings are quick."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from metaser import __version__
from metaser.commands import labelling, models, probe, tasks_new
from metaser.commands.dimensional import dimensional
from metaser.commands.options import Cache, Data, Folders, Jobs, plain_errors
from metaser.commands.page import page
from metaser.commands.similarity import similarity, transferability

app = typer.Typer(
    name="metaser",
    help="Recognise emotion in speech of a language with few labelled clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
tasks_app = typer.Typer(help="List the tasks (one corpus of one language each), or check one.")
app.add_typer(tasks_app, name="tasks")
tasks_app.command("new")(tasks_new.new)
for command in (
    models.train,
    models.adapt,
    models.predict,
    models.evaluate,
    models.export,
    labelling.curve,
    labelling.select,
    similarity,
    transferability,
    probe.probe,
    dimensional,
):
    app.command()(command)
app.command("app")(page)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metaser {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Recognise emotion in speech of a language with few labelled clips."""


@tasks_app.callback(invoke_without_command=True)
def list_tasks(context: typer.Context, data: Data = None, tasks: Folders = None) -> None:
    """List the tasks: language, corpus, clips, speakers, classes, licence, present or where to get.

    Exits with 1 if a task folder is broken.
    """
    if context.invoked_subcommand is not None:
        context.obj = (data, tasks)
        return
    from rich.console import Console

    from metaser import tasks as library

    with plain_errors():
        folders = library.list_tasks(tasks or ())
        root = library.data_root(data)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = _task_table()
    broken = []
    for name, folder in folders.items():
        try:
            task = library.read_task(folder, data=root)
        except (ValueError, OSError) as error:
            broken.append(str(error))
            table.add_row(name, "", "", "[red]broken, see below[/red]")
        else:
            table.add_row(*_task_cells(task))
    console.print(table)
    present = (
        "no data root: give --data DIR or set METASER_DATA" if root is None else f"data: {root}"
    )
    console.print(f"{len(folders)} tasks; {present}", highlight=False, soft_wrap=True)
    for message in broken:
        typer.echo(f"metaser: {message}", err=True)
    if broken:
        raise typer.Exit(1)


def _task_table():
    from rich.table import Table

    table = Table(show_lines=True, header_style="bold")
    table.add_column("task, language, corpus", overflow="fold", min_width=14)
    table.add_column("clips, speakers")
    table.add_column("classes", ratio=3)
    table.add_column("licence; present, or where to obtain", ratio=3, overflow="fold")
    return table


def _task_cells(task) -> list[str]:
    from rich.markup import escape

    from metaser.tasks import language_name

    def share(found: int, declared: int) -> str:
        whole = task.audio is None or found == declared
        return str(declared) if whole else f"{found} of {declared}"

    counts = task.counts
    classes = ", ".join(f"{name} {counts[name]}" for name in counts) or ", ".join(task.classes)
    state = f"get it: {task.homepage}"
    if task.audio is not None:
        state = "present" if task.clips_found == task.utterances else "present, a subset"
    made = ", synthetic" if task.synthetic else ""
    clips = share(task.clips_found, task.utterances)
    speakers = share(task.speakers_found, task.speakers)
    cells = [
        f"{task.name}\n{language_name(task.language)}\n{task.corpus}{made}",
        f"{clips} clips\n{speakers} speakers",
        classes,
        f"{task.licence}\n{state}",
    ]
    return [escape(cell) for cell in cells]


@tasks_app.command("check")
def check_task(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Name of a task, or path of a task folder.")],
    data: Data = None,
    tasks: Folders = None,
    subset: Annotated[
        bool, typer.Option("--subset", help="Fewer clips or speakers than declared are intended.")
    ] = False,
) -> None:
    """Check a task folder and every clip of its audio; exits with 1 if something is wrong."""
    from metaser import tasks as library

    before = context.obj or (None, None)
    data, folders = data or before[0], [*(before[1] or ()), *(tasks or ())]
    with plain_errors():
        folder = library.find_task(task, folders)
        root = library.data_root(data)
    with plain_errors(code=1):
        found = library.read_task(folder, data=root, strict=False)
        check = library.check_task(found, data=root, subset=subset)
    typer.echo(check.text())
    if check.problems:
        raise typer.Exit(1)


@app.command()
def synthesise(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other speakers and clips.")] = 0,
    speakers: Annotated[int, typer.Option(help="Speakers a language.")] = 8,
    sentences: Annotated[int, typer.Option(help="Clips an emotion and speaker.")] = 6,
) -> None:
    """Speak the made-up emotional languages (synthetic speech) into a folder."""
    from metaser.synthetic import generate

    with plain_errors():
        made = generate(folder, speakers=speakers, sentences=sentences, seed=seed)
    typer.echo(f"try: metaser tasks --data {made / 'audio'} --tasks {made / 'tasks'}")


@app.command()
def features(
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="TASK...", help="Names of tasks.")
    ] = None,
    data: Data = None,
    folders: Folders = None,
    frontend: Annotated[str, typer.Option(help="Front end.")] = "statistics",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An argument of the front end."),
    ] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every clip anew; tell which have changed.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="List the stores of the cache, or of the tasks.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the stores of the tasks or, without one, all that are outdated."
        ),
    ] = False,
) -> None:
    """Extract the features of tasks into the cache; a run that was stopped goes on where it was."""
    from metaser import features as library
    from metaser.tasks import read_task

    with plain_errors():
        if show or prune:
            stores = (library.prune if prune else library.list_stores)(cache, tasks or ())
            _show_stores(stores, " removed" if prune else "")
            return
        if not tasks:
            raise ValueError("expected the name of a task: `metaser tasks` lists them")
        arguments = dict(map(_argument, settings or ()))
        chosen = library.make_frontend({"name": frontend, **arguments})
        try:
            for name in tasks:
                task = read_task(name, data, folders or ())
                if verify:
                    changed = library.verify(task, cache, jobs, progress=True)
                    typer.echo(f"{name}: {len(changed)} clips are not what they were")
                    typer.echo("".join(f"  {file}\n" for file in changed), nl=False)
                found = library.extract(task, chosen, cache, jobs=jobs, progress=True)
                clips, frames, channels = found.values.shape
                typer.echo(f"{name}: {clips} clips, {frames} frames at most, {channels} channels")
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on where it was", err=True)
            raise typer.Exit(130) from None


def _argument(setting: str) -> tuple[str, object]:
    """Name and value of ``NAME=VALUE``: a number or another value of TOML, or text."""
    import tomllib

    name, equals, value = setting.partition("=")
    if not (name and equals) or name == "name":
        raise ValueError(f"--set needs NAME=VALUE, e.g. --set frames=200, not {setting!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _show_stores(found: Sequence, what: str) -> None:
    """Print a table of feature stores; ``what`` was done to them."""
    import time

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    for name in ("task", "front end", "clips", "MB", "days old"):
        table.add_column(name, overflow="fold")
    for store in found:
        heard = "\nin a made-up recording situation" if store.situation else ""
        outdated = "" if store.current else "\noutdated"
        table.add_row(
            store.task,
            escape(f"{store.frontend}{heard}{outdated}"),
            str(store.clips),
            f"{store.size / 1e6:.1f}",
            f"{(time.time() - store.changed) / 86400:.1f}",
        )
    if found:
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    total = sum(store.size for store in found) / 1e6
    typer.echo(f"{len(found)} stores{what}, {total:.1f} MB")


@app.command()
def benchmark(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
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
            help="Cluster that takes the trainings: tcp://HOST:PORT (Dask), ray://HOST:PORT (Ray).",
        ),
    ] = "",
    device: Annotated[
        str, typer.Option(help="Where to train and adapt: cpu, cuda, cuda:1, ….")
    ] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell how much there is to do.")
    ] = False,
) -> None:
    """Run a protocol; a run that was stopped goes on where it was."""
    from metaser.protocol import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        from metaser import benchmark as harness

        arguments = {
            "data": data,
            "task_folders": tasks or (),
            "targets": [name for name in targets.split(",") if name],
            "methods": [name for name in methods.split(",") if name],
        }
        out = out or Path("results") / plan.name
        if dry_run:
            typer.echo(harness.forecast(plan, out, jobs=jobs, cache=cache, **arguments))
            return
        try:
            harness.run(
                plan,
                out,
                jobs=jobs,
                cache=cache,
                scheduler=scheduler,
                device=device,
                command=_command_line(),
                **arguments,
            )
        except KeyboardInterrupt:
            typer.echo(f"stopped; the same command goes on where it was ({out})", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"rows: {out / 'rows.jsonl'}\nnext: metaser report {out}")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder that `metaser benchmark` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder or .html file; the results folder if not given.")
    ] = None,
) -> None:
    """Write the report of a results folder: one HTML page and a Markdown file."""
    from metaser.report import write

    with plain_errors():
        page, markdown = write(results, out)
    typer.echo(f"{page}\n{markdown}")


@app.command()
def episodes(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol, or path of its TOML file.")],
    target: Annotated[str, typer.Argument(help="Name of the target task.")],
    shots: Annotated[int, typer.Option(help="Support clips a class.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the episodes.")] = 0,
    data: Data = None,
    tasks: Folders = None,
) -> None:
    """Write the clip names of a protocol's episodes, so that anyone can score the same draws."""
    from metaser.protocol import read_protocol

    with plain_errors():
        plan = read_protocol(protocol)
        from metaser import benchmark as harness

        digest = harness.write_episodes(plan, target, shots, seed, out, data, tasks or ())
    typer.echo(f"{out}: digest {digest}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to work in.")] = Path("demo"),
    jobs: Jobs = 2,
) -> None:
    """Compare the methods on made-up languages: synthesise, benchmark smoke, report."""
    from metaser.protocol import read_protocol

    with plain_errors(hint=f"To begin anew, delete {folder} or name another folder."):
        from metaser.synthetic import generate

        typer.echo("Speaking the made-up languages (synthetic speech) ...")
        made = generate(folder / "languages")
        from metaser import benchmark as harness
        from metaser.report import overview, write

        results = folder / "results"
        try:
            harness.run(
                read_protocol("smoke"),
                results,
                data=made / "audio",
                task_folders=[made / "tasks"],
                jobs=jobs,
                cache=folder / "cache",
                command=_command_line(),
            )
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on where it was", err=True)
            raise typer.Exit(130) from None
        page, _ = write(results)
    from rich.console import Console

    Console().print(overview(results))
    typer.echo(f"Report: {page.resolve()}")
    models.demonstrate(folder, made)


def _command_line() -> str:
    """The command as typed, without the folders above the program."""
    return " ".join(["metaser", *sys.argv[1:]])
