"""Draw the figures of a report: learning curves, their legends, and confusions."""

import io
import math
import re
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from metaser.report.names import AXIS_TITLES, ROLES
from metaser.report.results import Results, Scope

STYLES: dict[str, tuple[str, Any, str]] = {
    "metaser": ("#0072B2", "-", "o"),
    "metaser_second_order": ("#56B4E9", "-", "s"),
    "multiser": ("#D55E00", "-", "^"),
    "transser": ("#009E73", "-", "v"),
    "fine_tuning": ("#B88A00", "-", "D"),
    "logistic_regression": ("#CC79A7", "--", "P"),
    "logistic_regression_sources": ("#CC79A7", "-", "X"),
    "from_scratch": ("#57606A", "--", "<"),
    "zero_shot": ("#57606A", "-", ">"),
    "majority": ("#8C959F", ":", "d"),
    "chance": ("#8C959F", ":", "."),
}
"""Colour, dashes and marker of each method.

The palette of Okabe and Ito is safe for colour-blind readers; methods of the same colour differ in
dashes or markers.
"""

SPARE_STYLES: tuple[tuple[Any, str, str], ...] = tuple(
    product(("-.", (0, (4, 1, 1, 1, 1, 1))), ("h", "p", "*", "8"), ("#000000",))
)
"""Dashes, marker and colour for methods that `STYLES` does not name."""

RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "metaser",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": "#1b1f24",
    "axes.edgecolor": "#57606a",
    "axes.labelcolor": "#1b1f24",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
}
"""Settings of matplotlib; they make the same rows give the same page, byte by byte."""


# --- figures -------------------------------------------------------------------------------------


def _style(results: Results, method: str) -> dict[str, Any]:
    """Return the arguments of `plot` for the line of a method."""
    if method in STYLES:
        colour, dashes, marker = STYLES[method]
    else:
        others = [name for name in results.methods if name not in STYLES]
        dashes, marker, colour = SPARE_STYLES[others.index(method) % len(SPARE_STYLES)]
    return {
        "color": colour,
        "linestyle": dashes,
        "marker": marker,
        "markersize": 4.5,
        "linewidth": 2.2 if method == "metaser" else 1.3,
        "zorder": 4 if method == "metaser" else 3,
    }


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """Return a figure as inline SVG that scales with its container; its ids begin with `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"'DejaVu Sans'", "system-ui, sans-serif", text)
    size = re.search(r'viewBox="([^"]*)"', text)
    assert size  # matplotlib writes it into each figure
    head = f'<svg {size.group(0)} role="img" aria-label="{Markup.escape(label)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))


def legends(results: Results) -> dict[tuple[str, str], list[tuple[str, Markup]]]:
    """Draw the legends of the learning curves.

    Returns
    -------
    dict
        By (setup, role): the title of each method with its line and marker as SVG. The ids in the
        SVG differ between setups and roles, so that they are unique on the page.
    """
    with matplotlib.rc_context(RC):
        swatches = [_swatch(results, method) for method in results.methods]
    return {
        (setup, role): [
            (
                results.label(m),
                Markup(svg.replace("swatch-", f"l{results.setups.index(setup)}{role[0]}{n}-")),
            )
            for n, (m, svg) in enumerate(zip(results.methods, swatches, strict=True))
        ]
        for setup, role in product(results.setups, ROLES)
    }


def _swatch(results: Results, method: str) -> Markup:
    """Draw a short piece of a method's line with its marker."""
    figure = Figure(figsize=(0.45, 0.16))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_style(results, method))
    axes.set(xlim=(0, 2), ylim=(-1, 1))
    axes.axis("off")
    return _svg(figure, "swatch", f"Line style of {results.label(method)}")


def _curve(
    results: Results, setup: str, role: str, scope: Scope, limits: tuple[float, float], name: str
) -> Markup:
    """Draw UAR against the number of shots (or the fraction) in one scope, one line per method."""
    figure = Figure(figsize=(3.0, 2.5))
    axes = figure.add_axes((0.15, 0.17, 0.83, 0.79))
    spaced = results.axis == "fraction" or results.levels[0] <= 0
    x = np.array(results.levels) if spaced else np.log2(results.levels)
    alone = len(x) == 1  # one level gives no lines: points stand side by side
    step = 0.05 if alone else (x[-1] - x[0]) / 400
    descriptions = []
    for index, m in enumerate(results.methods):
        entries = [results.table.get((setup, role, scope.name, m, v)) for v in results.levels]
        if not any(entries):
            continue
        means, low, high = (
            np.array([100 * getattr(e.uar, part) if e else math.nan for e in entries])
            for part in ("mean", "low", "high")
        )
        style = _style(results, m)
        shifted = x + (index - (len(results.methods) - 1) / 2) * step * 2
        if m in results.challengers and not alone:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        else:
            axes.vlines(shifted, low, high, style["color"], linewidth=0.8, alpha=0.75)
        axes.plot(shifted if alone else x, means, label=results.label(m), **style)
        descriptions.append(
            f"{results.label(m)} {', '.join('NaN' if np.isnan(v) else f'{v:.1f}' for v in means)}"
        )
    labels = [_tick(results, value) for value in results.levels]
    if len(labels) > 6:
        labels = [text if number % 2 else "" for number, text in enumerate(labels)]
    axes.set_xticks(x, labels)
    if alone:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    axes.set(ylim=limits, ylabel="UAR (%)", xlabel=AXIS_TITLES[results.axis])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.7)
    axes.set_axisbelow(True)
    levels = results.levels_text(results.levels)
    return _svg(figure, name, f"{scope.title}: UAR in percent {levels}. {'; '.join(descriptions)}.")


def _tick(results: Results, value: float) -> str:
    """Return the label of a level on the horizontal axis."""
    return f"{100 * value:.3g}" if results.axis == "fraction" else f"{value:g}"


def _limits(results: Results, setup: str, role: str) -> tuple[float, float]:
    """Return one range in percent for all panels of a setup, so that the eye can compare them."""
    values = [
        100 * bound
        for (s, r, *_), entry in results.table.items()
        if (s, r) == (setup, role)
        for bound in (entry.uar.mean, entry.uar.low, entry.uar.high)
        if not math.isnan(bound)
    ]
    if not values:
        return 0, 100
    return 5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5 + 1e-9)


def curves(results: Results, setup: str, role: str) -> list[tuple[str, Markup]]:
    """Draw the learning curves of a setup and a role.

    Returns
    -------
    list of (str, Markup)
        Title and SVG of one panel per scope.
    """
    limits = _limits(results, setup, role)
    prefix = f"c{results.setups.index(setup)}{role[0]}"
    with matplotlib.rc_context(RC):
        return [
            (scope.title, _curve(results, setup, role, scope, limits, f"{prefix}{number}"))
            for number, scope in enumerate(results.scopes(role))
        ]


# --- the page ------------------------------------------------------------------------------------


def confusions(results: Results, setup: str) -> list[dict[str, Any]]:
    """Return the confusions at the middle level for the first challenger and its best rival.

    Returns
    -------
    list of dict
        One group per method with `method` (title), `level` (in words) and `panels`, one per target:
        `target`, `classes`, `shares` (true class, predicted class) in [0, 1], NaN where a class has
        no clip, and `count`, the number of predictions.
    """
    level = results.levels[(len(results.levels) - 1) // 2]
    methods = [*results.challengers[:1], results.rival(setup, level)]
    groups = []
    for m in filter(None, methods):
        panels = []
        for target in results.targets("target"):
            rows = list(results.cells.get((setup, m, target, level), {}).values())
            if not rows:
                continue
            counts = sum(row["confusion"] for row in rows)
            with np.errstate(invalid="ignore"):
                shares = counts / counts.sum(axis=1, keepdims=True)
            panels.append(
                {
                    "target": target + (" (synthetic)" if rows[0]["synthetic"] else ""),
                    "classes": rows[0]["classes"],
                    "shares": shares.tolist(),
                    "count": counts.sum(),
                }
            )
        groups.append({"method": results.label(m), "level": results.level(level), "panels": panels})
    return groups
