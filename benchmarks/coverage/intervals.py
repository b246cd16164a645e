"""Does the interval that `metaser adapt` states hold the UAR that is then measured?

    python benchmarks/coverage/intervals.py --data DIR [--draws 40] [--cache DIR]

A few clips of some speakers are drawn from a corpus, the model is adapted to them and states its
interval; then the UAR is measured on all clips of the other speakers. The targets take no part in
anything before. For another corpus, the model has not learnt from its language, and the interval
comes from the draws of the other languages.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console

from metaser.adaptation.expect import Band, expect, fit_bands
from metaser.adaptation.measure import Scored, measure, score_draws
from metaser.adaptation.recipe import prepare, read_recipe, train_file
from metaser.benchmark import restrict
from metaser.features import extract
from metaser.files import Places
from metaser.tasks import read_task

HERE = Path(__file__).parent
TARGETS = ("it_emovo", "ur_urdu")
OTHERS = ("de_emodb", "en_tess", "tr_turev")
MODELS = {
    "starter": ("starter", "starter", OTHERS),
    "starter-light": ("starter", "starter-light", OTHERS),
    "all sources, whisper": ("unseen_language_2", "whisper_voice", ()),
    "all sources, light": ("unseen_language_2", "light_voice", ()),
}
"""Protocol and setup of each model, and what it is measured on besides its own sources."""


def main(
    data: Annotated[Path, typer.Option(help="Data root.")],
    cache: Annotated[Path | None, typer.Option(help="Feature cache.")] = None,
    draws: Annotated[int, typer.Option(help="Draws per corpus and number of shots.")] = 40,
    checkpoints: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("checkpoints"),
) -> None:
    """Measure and write draws.csv and coverage.md."""
    console = Console(stderr=True)
    tables = []
    for model in MODELS:
        table = pd.DataFrame(
            judged(model, Places.at(data, cache=cache), draws, checkpoints, console)
        )
        table.insert(0, "model", model)
        tables.append(table)
    table = pd.concat(tables)
    table.to_csv(HERE / "draws.csv", index=False, float_format="%.4f")
    text = "\n".join(f"## {name}\n\n{summary(own)}" for name, own in table.groupby("model"))
    (HERE / "coverage.md").write_text(text, encoding="utf-8")
    console.print(text, highlight=False)


def judged(
    model: str, places: Places, draws: int, checkpoints: Path, console: Console
) -> list[dict]:
    """Return one row per draw from each corpus."""
    protocol, setup, measured_on = MODELS[model]
    recipe = read_recipe(protocol, setup, "gaussian_process", measured_on=measured_on)
    materials, raw, others = prepare(recipe, places, console)
    folder = checkpoints / f"{protocol}-{setup}"
    _, scored = measure(recipe, materials, raw, 0, folder, console, draws=draws, others=others)
    known = [one for one in scored if one.draw.shots]
    tasks = [*(material.task for material in materials.values()), *(task for task, _ in others)]
    languages = {task.name: task.language for task in tasks}
    rows = []
    for name, language in languages.items():
        draws_of_others = [one.draw for one in known if languages[one.draw.task] != language]
        bands = fit_bands(draws_of_others)
        rows += [judge(one, bands, "left out") for one in known if one.draw.task == name]
    file = train_file(recipe, materials, raw, 0, folder / "all")
    bands = fit_bands([one.draw for one in known])
    for name in TARGETS:
        task = restrict(read_task(name, places.data), recipe.protocol.classes)
        console.print(f"drawing from {name}", highlight=False)
        found = score_draws(file, task, extract(task, file.frontend(), places.cache), 1, draws)
        rows += [judge(one, bands, "target") for one in found if one.draw.shots]
    return rows


def judge(scored: Scored, bands: list[Band], role: str) -> dict:
    """One row: what was stated, and what was measured."""
    draw = scored.draw
    stated = expect(bands, draw.shots, draw.clues)
    return {
        "task": draw.task,
        "role": role,
        "shots": draw.shots,
        "named": scored.named,
        "folds": draw.clues.folds,
        "unadapted": draw.clues.unadapted.soft,
        "cross_validated": None if draw.clues.seen is None else draw.clues.seen.soft,
        "expected": stated.uar,
        "low": stated.low,
        "high": stated.high,
        "contradicted": stated.contradicted,
        "measured": draw.truth,
    }


def summary(table: pd.DataFrame) -> str:
    """Coverage, width and error in Markdown, by corpus and number of shots."""
    table = table.assign(
        inside=100 * table["measured"].between(table["low"], table["high"]),
        width=100 * (table["high"] - table["low"]),
        error=100 * (table["expected"] - table["measured"]).abs(),
    )
    lines = [
        "| corpus | clips per class | draws | measured inside, % | width | error |",
        "|---|---|---|---|---|---|",
    ]
    for role in ("left out", "target"):
        own = table[table["role"] == role]
        groups = [(f"{task} ({role})", some) for task, some in own.groupby("task", sort=False)]
        for name, some in [*groups, (f"all ({role})", own)]:
            for shots in [*sorted(some["shots"].unique()), "3, 5, 8"]:
                wanted = [3, 5, 8] if shots == "3, 5, 8" else [shots]
                few = some[some["shots"].isin(wanted)]
                means = few[["inside", "width", "error"]].mean()
                lines.append(
                    f"| {name} | {shots} | {len(few)} | {means['inside']:.0f} | "
                    f"{means['width']:.0f} | {means['error']:.1f} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
