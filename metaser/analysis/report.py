"""The report of ``metaser transferability``: tables of its CSV files and figures, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from metaser.files import whole, write_text

RC: dict[Any, Any] = {
    "svg.hashsalt": "metaser",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
METHODS = {"fine_tuning": "fine-tuning", "zero_shot": "zero-shot"}
FILES = ("pairs", "agreement", "layers", "corruptions")
"""Tables of ``analysis.study`` that the report shows."""

INTRODUCTION = """\
# Which languages should I learn from?

Each corpus teaches a small network alone (protocol `similarity`), which is then scored on every
corpus of another language: {episodes} episodes a pair over {seeds} seeds, support and query
speakers apart, the same episodes whatever the source. Against that stand distances between corpora
that need no training. UAR in percent; every interval is of 95 %. Pairs of one language are left
out."""

TRANSFER = """\
## Measured transfer

Rows are sources, columns targets: UAR with interval over seeds and episodes. Targets with three
classes (marked 3) guess at 33.3, the others at 25. A source that lacks a class teaches nothing of
it: this is a mismatch of task, not of sound."""

AGREEMENT = """\
## Do cheap scores tell?

ρ is Spearman's correlation between score and UAR over the sources of one target, mean over
{targets} targets; "pooled" is over all {pairs} pairs at once, where how hard a target is counts
too. Gain is the UAR of the source that the score puts first minus the mean over sources, in
points: what a user would win by following it. Intervals are by drawing the targets again; with
{targets} targets they are rough, and with {scores} scores some look good by chance alone: the best
of a long table is not a finding. Labelled distances hear {shots} clips a class. The last three
rows hear no target at all."""

LAYERS = """\
## What adapting changes, layer by layer

Fine-tuning on 5 clips a class: relative change of each layer's parameters, ‖after − before‖ /
‖before‖, and linear CKA of its outputs on query clips before and after (1: nothing changed but
rotation and scale). Mean over {episodes} episodes of one training; protocol `layers`."""

CORRUPTIONS = """\
## Acoustic mismatch alone

One network, trained once on the sources as recorded, on the same episodes' clips heard in other
situations, support and query alike; each situation is normalised over the target. What is lost
against "as recorded" is lost to acoustics alone; the language and the task stay. Differences are
paired over {episodes} episodes; one training."""


def write(results: Path, out: Path) -> Path:
    """Write ``report.md`` and its figures (SVG) from the CSV files of ``analysis.study``.

    Parameters
    ----------
    results : Path
        Folder of the CSV files.
    out : Path
        Folder to write to.

    Returns
    -------
    Path
        The file ``report.md``.

    Raises
    ------
    FileNotFoundError
        If one of the files is missing.
    """
    missing = [name for name in FILES if not (results / f"{name}.csv").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{results} must hold {', '.join(FILES)}, each a CSV file, but lacks "
            f"{missing[0]}.csv: run `metaser transferability --out {results}` first"
        )
    tables = {name: pd.read_csv(results / f"{name}.csv") for name in FILES}
    with matplotlib.rc_context(RC):
        for name, figure in (
            ("transfer", _transfer_figure(tables["pairs"])),
            ("agreement", _agreement_figure(tables["agreement"])),
            ("layers", _layer_figure(tables["layers"])),
        ):
            with whole(out / f"{name}.svg") as part:
                figure.savefig(part, format="svg", metadata={"Date": None})
    write_text(out / "report.md", "\n\n".join(_text(**tables)) + "\n")
    return out / "report.md"


def _text(
    pairs: pd.DataFrame, agreement: pd.DataFrame, layers: pd.DataFrame, corruptions: pd.DataFrame
) -> list[str]:
    """Return the paragraphs, tables and figures of the page."""
    parts = [INTRODUCTION.format(episodes=pairs["episodes"].max(), seeds=pairs["seeds"].max())]
    parts.append(TRANSFER)
    for method in pairs["method"].unique():
        parts += [f"### {METHODS.get(method, method)}", _matrix(pairs[pairs["method"] == method])]
    parts.append("![Measured transfer](transfer.svg)")
    first = agreement.iloc[0]
    scores = agreement["predictor"].nunique()
    facts = {"targets": first["targets"], "pairs": first["pairs"], "scores": scores, "shots": 5}
    parts.append(AGREEMENT.format(**facts))
    for method, own in agreement.groupby("method", sort=False):
        rows = [
            [
                row.predictor,
                _bounded(row.within, row.within_low, row.within_high, 2),
                _bounded(row.pooled, row.pooled_low, row.pooled_high, 2),
                _bounded(100 * row.gain, 100 * row.gain_low, 100 * row.gain_high),
            ]
            for row in own.itertuples()
        ]
        parts.append(f"### {METHODS.get(method, method)}")
        parts.append(_markdown(["score", "ρ within targets", "ρ pooled", "gain"], rows))
    parts.append("![Correlation of each score with measured transfer](agreement.svg)")
    parts.append(LAYERS.format(episodes=layers["episodes"].max()))
    rows = [
        [
            row.setup,
            row.target,
            row.layer,
            _bounded(row.change, row.change_low, row.change_high, 3),
            _bounded(row.cka, row.cka_low, row.cka_high, 3),
        ]
        for row in layers.itertuples()
    ]
    parts.append(_markdown(["set-up", "target", "layer", "relative change", "CKA"], rows))
    parts.append("![Change and CKA by layer](layers.svg)")
    parts.append(CORRUPTIONS.format(episodes=corruptions["episodes"].max()))
    rows = [
        [
            row.target,
            row.situation,
            str(row.shots),
            _percent(row.uar, row.low, row.high),
            _percent(row.difference, row.difference_low, row.difference_high),
        ]
        for row in corruptions.itertuples()
    ]
    parts.append(_markdown(["target", "heard with", "shots", "UAR", "against as recorded"], rows))
    return parts


def _bounded(value: float, low: float, high: float, digits: int = 1) -> str:
    """Return a value and its interval, such as ``0.25 [0.20, 0.30]``."""
    rounded = [round(number, digits) + 0.0 for number in (value, low, high)]  # −0.0 becomes 0.0
    texts = [f"{number:.{digits}f}".replace("-", "−") for number in rounded]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _percent(value: float, low: float, high: float) -> str:
    """Return a share and its interval in percent, without the sign."""
    return _bounded(100 * value, 100 * low, 100 * high)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _names(pairs: pd.DataFrame) -> dict[str, str]:
    """Return how the targets are shown: with their classes where they have fewer than others."""
    counts = pairs.groupby("target")["classes"].max()
    return {
        name: name if count == counts.max() else f"{name} ({count})"
        for name, count in counts.items()
    }


def _matrix(pairs: pd.DataFrame) -> str:
    """Return a table of measured transfer, sources in rows and targets in columns."""
    names = _names(pairs)
    cells = {
        (row.source, row.target): _percent(row.uar, row.low, row.high) for row in pairs.itertuples()
    }
    rows = [
        [source, *[cells.get((source, target), "same language") for target in names]]
        for source in sorted(pairs["source"].unique())
    ]
    for row in rows:
        row[1:] = ["–" if row[0] == target else cell for target, cell in zip(names, row[1:])]
    return _markdown(["source", *names.values()], rows)


def _transfer_figure(pairs: pd.DataFrame) -> Figure:
    """Draw measured transfer as a heat map, one panel per method."""
    methods = list(pairs["method"].unique())
    figure = Figure(figsize=(3.6 * len(methods), 3.4), layout="constrained")
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods):
        own = pairs[pairs["method"] == method]
        table = 100 * own.pivot(index="source", columns="target", values="uar")
        axes.imshow(table, cmap="viridis", vmin=25, vmax=80)
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            if not np.isnan(value):
                shade = "white" if value < 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=shade)
        axes.set_xticks(range(table.shape[1]), table.columns, rotation=45, ha="right")
        axes.set_yticks(range(table.shape[0]), table.index)
        axes.set(title=f"UAR, %: {METHODS.get(method, method)}", xlabel="target", ylabel="source")
    return figure


def _agreement_figure(agreement: pd.DataFrame) -> Figure:
    """Draw the mean correlation of each score within targets, with its interval."""
    names = agreement["predictor"].unique()[::-1]
    figure = Figure(figsize=(6.5, 0.17 * len(names) + 0.8), layout="constrained")
    axes = figure.subplots()
    for index, (method, own) in enumerate(agreement.groupby("method", sort=False)):
        own = own.set_index("predictor").loc[names]
        height = np.arange(len(names)) + 0.25 * index
        label = METHODS.get(method, method)
        axes.plot(own["within"], height, "o", color=f"C{index}", markersize=3, label=label)
        axes.hlines(height, own["within_low"], own["within_high"], color=f"C{index}", linewidth=1)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-1, 1), xlabel="Spearman's ρ with measured UAR within targets, 95 % interval")
    axes.legend(loc="upper right")
    return figure


def _layer_figure(layers: pd.DataFrame) -> Figure:
    """Draw relative change and CKA by layer, one row of panels per setup."""
    setups = list(layers["setup"].unique())
    figure = Figure(figsize=(6.5, 2.3 * len(setups)), layout="constrained")
    for line, setup in zip(figure.subplots(len(setups), 2, squeeze=False), setups):
        own = layers[layers["setup"] == setup]
        for axes, what, label in zip(line, ("change", "cka"), ("relative change", "linear CKA")):
            for target, values in own.groupby("target", sort=False):
                spread = [
                    values[what] - values[f"{what}_low"],
                    values[f"{what}_high"] - values[what],
                ]
                axes.errorbar(values["layer"], values[what], spread, marker="o", label=target)
            names = own["layer"].unique()
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axes.set(title=setup, ylabel=label)
        line[0].legend()
    return figure
