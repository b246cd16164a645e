"""`metaser tasks`: list the tasks, or check one."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from metaser.cli.options import Data, Folders, plain_errors

if TYPE_CHECKING:
    from rich.table import Table

    from metaser.tasks.task import Task


def list_tasks(context: typer.Context, data: Data = None, tasks: Folders = None) -> None:
    """List the tasks: language, corpus, clips, speakers, classes, licence, where to obtain them.

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


def _task_table() -> "Table":
    """Return the empty table of tasks."""
    from rich.table import Table

    table = Table(show_lines=True, header_style="bold")
    table.add_column("task, language, corpus", overflow="fold", min_width=14)
    table.add_column("clips, speakers")
    table.add_column("classes", ratio=3)
    table.add_column("licence; present, or where to obtain", ratio=3, overflow="fold")
    return table


def _task_cells(task: "Task") -> list[str]:
    """Return the row of a task, in the columns of ``_task_table``."""
    from rich.markup import escape

    from metaser.tasks.schema import language_name

    def share(present: int, declared: int) -> str:
        whole = task.audio is None or present == declared
        return str(declared) if whole else f"{present} of {declared}"

    counts = task.counts
    classes = ", ".join(f"{name} {counts[name]}" for name in counts) or ", ".join(task.classes)
    state = f"get it: {task.homepage}"
    if task.audio is not None:
        state = "present" if task.clips_found == task.utterances else "present, a subset"
    synthetic = ", synthetic" if task.synthetic else ""
    clips = share(task.clips_found, task.utterances)
    speakers = share(task.speakers_found, task.speakers)
    cells = [
        f"{task.name}\n{language_name(task.language)}\n{task.corpus}{synthetic}",
        f"{clips} clips\n{speakers} speakers",
        classes,
        f"{task.licence}\n{state}",
    ]
    return [escape(cell) for cell in cells]


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

    outer_data, outer_tasks = context.obj or (None, None)  # options before "check"
    data, folders = data or outer_data, [*(outer_tasks or ()), *(tasks or ())]
    with plain_errors():
        folder = library.find_task(task, folders)
        root = library.data_root(data)
    with plain_errors(code=1):
        read = library.read_task(folder, data=root, strict=False)
        check = library.check_task(read, data=root, subset=subset)
    typer.echo(check.text())
    if check.problems:
        raise typer.Exit(1)
