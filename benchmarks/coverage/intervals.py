"""Does the interval that `metaser adapt` states hold the UAR that is then measured?

    python benchmarks/coverage/intervals.py --data DIR [--draws 100] [--cache DIR]

A few clips of some speakers are drawn from a corpus, the model is adapted to them and states its
interval; then the UAR is measured on all clips of the other speakers. The targets of the protocol
take no part in anything before. For a source, the model has not learnt from its language, and the
interval comes from the draws of the other languages.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console

from metaser.adaptation.expect import Draw, expect, fit_bands, uar_of
from metaser.adaptation.measure import measure, score_draws
from metaser.adaptation.recipe import prepare, read_recipe, train_file
from metaser.benchmark import restrict
from metaser.features import extract
from metaser.files import Places
from metaser.tasks import read_task

HERE = Path(__file__).parent
TARGETS = ("it_emovo", "ur_urdu")


def main(
    data: Annotated[Path, typer.Option(help="Data root.")],
    cache: Annotated[Path | None, typer.Option(help="Feature cache.")] = None,
    draws: Annotated[int, typer.Option(help="Draws a target and number of shots.")] = 100,
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("checkpoints"),
) -> None:
    """Measure and write draws.csv and coverage.md."""
    recipe, console = read_recipe(), Console(stderr=True)
    materials, raw = prepare(recipe, Places.at(data, cache=cache), console)
    _, scored = measure(recipe, materials, raw, 0, checkpoints, console)
    known = [one.draw for one in scored if one.draw.shots]
    languages = {name: material.task.language for name, material in materials.items()}
    classes = {one.draw.task: len(np.unique(one.targets)) for one in scored}
    rows = []
    for name, language in languages.items():
        bands = fit_bands([draw for draw in known if languages[draw.task] != language])
        own = [draw for draw in known if draw.task == name]
        rows += [judge(draw, bands, classes[name], "left-out source") for draw in own]
    file = train_file(recipe, materials, raw, 0, checkpoints / "all")
    bands = fit_bands(known)
    for name in TARGETS:
        task = restrict(read_task(name, data), recipe.protocol.classes)
        console.print(f"drawing from {name}", highlight=False)
        found = score_draws(file, task, extract(task, file.frontend(), cache), 1, draws)
        count = len(np.unique(found[0].targets))
        rows += [judge(one.draw, bands, count, "target") for one in found if one.draw.shots]
    table = pd.DataFrame(rows)
    table.to_csv(HERE / "draws.csv", index=False, float_format="%.4f")
    (HERE / "coverage.md").write_text(summary(table), encoding="utf-8")
    console.print(summary(table), highlight=False)


def judge(draw: Draw, bands, classes: int, role: str) -> dict:
    """One row: what was stated, what was measured, and what cross-validation alone would state."""
    seen = uar_of(draw.seen, classes) if draw.folds != "none" else float("nan")
    stated = expect(bands, draw.shots, classes, draw.folds, seen)
    spread = 1.96 * np.sqrt(seen * (1 - seen) / (draw.shots * classes))
    return {
        "task": draw.task,
        "role": role,
        "shots": draw.shots,
        "folds": draw.folds,
        "expected": stated.uar,
        "low": stated.low,
        "high": stated.high,
        "measured": uar_of(draw.truth, classes),
        "cross_validated": seen,
        "binomial_half": spread,
    }


def summary(table: pd.DataFrame) -> str:
    """Coverage in Markdown, by task and number of shots."""
    table = table.assign(
        inside=table["measured"].between(table["low"], table["high"]),
        width=table["high"] - table["low"],
        error=(table["expected"] - table["measured"]).abs(),
        naive=(
            (table["cross_validated"] - table["measured"]).abs() <= table["binomial_half"]
        ).where(table["folds"] != "none"),
    )
    lines = [
        "| task | clips a class | draws | measured inside | width | error | naive |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = [*table.groupby(["role", "task", "shots"], sort=False), *_all(table)]
    for (role, task, shots), own in groups:
        naive = own["naive"].dropna()
        alone = f"{100 * naive.mean():.0f} %" if len(naive) else ""
        lines.append(
            f"| {task} ({role}) | {shots} | {len(own)} | {100 * own['inside'].mean():.0f} % | "
            f"{100 * own['width'].mean():.0f} | {100 * own['error'].mean():.1f} | {alone} |"
        )
    return "\n".join(lines) + "\n"


def _all(table: pd.DataFrame):
    """Each role as a whole."""
    for role, own in table.groupby("role", sort=False):
        yield (role, "all", "all"), own


if __name__ == "__main__":
    typer.run(main)
