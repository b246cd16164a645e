"""Train a model that others can adapt, and measure it on languages left out in turn."""

import shutil
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from metaser.adaptation.expect import fit_bands
from metaser.adaptation.measure import DRAWS, measure, measure_quality
from metaser.adaptation.model_file import Header, save
from metaser.adaptation.recipe import Recipe, prepare, train_file
from metaser.files import Places
from metaser.outside import pinned


def train_model(
    out: str | Path,
    recipe: Recipe,
    places: Places | None = None,
    *,
    seed: int = 0,
    console: Console | None = None,
    draws: int = DRAWS,
) -> Header:
    """Train on all sources that are present and write a model file.

    Before that, each language is left out of a training in turn. Where there is one language only,
    each task is left out; where there is one task only, half of its speakers. Clips are drawn from
    what is left out, and from the recipe's other tasks, as a user would give them. This tells how
    good the model is, which temperature turns its scores into probabilities, and how far what few
    clips say can be trusted.

    A run that was stopped continues where it was: its checkpoints are kept next to ``out`` until it
    is done.

    Parameters
    ----------
    out : str or Path
        Model file to write.
    recipe : Recipe
        What to train.
    places : Places, optional
        Corpora, task folders, feature cache, and processes that extract features.
    seed : int
        Seed of trainings and draws.
    console : rich.console.Console, optional
        Where progress is printed.
    draws : int
        Draws per left-out task and number of shots; with fewer, the intervals are less certain.

    Returns
    -------
    Header
        The header of the file.
    """
    out, console = Path(out), console or Console(stderr=True)
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    with pinned(recipe.protocol.files):
        materials, raw, others = prepare(recipe, places or Places(), console)
        kind, scored = measure(
            recipe, materials, raw, seed, checkpoints, console, draws=draws, others=others
        )
        console.print(f"training on {', '.join(materials)}", highlight=False)
        file = train_file(recipe, materials, raw, seed, checkpoints / "all")
    quality = {
        "quality": measure_quality(scored),
        "bands": fit_bands([one.draw for one in scored if one.draw.shots]),
        "left_out": kind,
    }
    file = replace(file, header=file.header.model_copy(update=quality))
    save(out, file)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return file.header
