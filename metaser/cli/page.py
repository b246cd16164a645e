"""`metaser app`: the page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from metaser.cli.options import Encoder, plain_errors


def page(
    model: Annotated[
        Path | None,
        typer.Option(help="Model file; a starter model trained on synthetic speech if not given."),
    ] = None,
    encoder: Encoder = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Open a page on this machine: label clips, adapt a model to them, predict new clips."""
    with plain_errors():
        from metaser.adaptation.model_file import load
        from metaser.page import serve

        def ready(address: str) -> None:
            typer.echo(f"the page is open at {address}, for this machine alone; Ctrl+C ends it")
            if browser:
                typer.launch(address)

        path = model or _starter()
        try:
            serve(load(path, encoder), path.stem, port, ready)
        except KeyboardInterrupt:
            typer.echo("ended; the clips are removed", err=True)


def _starter() -> Path:
    """Return the path of this version's starter model; train it if there is none."""
    import platformdirs

    from metaser.adaptation.recipe import read_recipe
    from metaser.adaptation.train import train_model
    from metaser.files import Places
    from metaser.synthetic.corpus import generate
    from metaser.version import release, version

    folder = platformdirs.user_cache_path("metaser") / "starter"
    path = folder / f"starter-{release(version())}.safetensors"
    if not path.exists():
        typer.echo(
            "no --model is given: training a starter model on synthetic speech, which shows the "
            "steps and says nothing true about people; this happens once and takes some minutes",
            err=True,
        )
        codes = ("de", "en")
        languages = generate(folder / f"languages-{release(version())}", codes)
        recipe = read_recipe("smoke", None, "metaser", [f"{code}_synthetic" for code in codes])
        places = Places.at(languages / "audio", languages / "tasks")
        train_model(path, recipe, places, draws=12)
    return path
