"""The `metaser` command.

Heavy imports stand inside the commands, so that help and listings are quick.
"""

from typing import Annotated

import typer

from metaser.cli import benchmark, features, labelling, models, probe, tasks, tasks_new
from metaser.cli.dimensional import dimensional
from metaser.cli.page import page
from metaser.cli.similarity import similarity, transferability
from metaser.version import version

app = typer.Typer(
    name="metaser",
    help="Recognise emotion in speech of a language with few labelled clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
tasks_app = typer.Typer(help="List the tasks (one corpus of one language each), or check one.")
app.add_typer(tasks_app, name="tasks")
tasks_app.callback(invoke_without_command=True)(tasks.list_tasks)
tasks_app.command("check")(tasks.check_task)
tasks_app.command("new")(tasks_new.new)
for command in (
    models.train,
    models.adapt,
    models.predict,
    models.evaluate,
    models.export,
    models.models,
    labelling.curve,
    labelling.select,
    similarity,
    transferability,
    probe.probe,
    dimensional,
    page,
    benchmark.synthesise,
    features.features,
    benchmark.benchmark,
    benchmark.report,
    benchmark.episodes,
    benchmark.demo,
):
    app.command("app" if command is page else None)(command)


def _print_version(wanted: bool) -> None:
    """Print the version and end the program."""
    if wanted:
        typer.echo(f"metaser {version()}")
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
