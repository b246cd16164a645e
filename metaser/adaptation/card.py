"""A model's card: what it learnt from, how well it works, and what it must not be used for."""

from pathlib import Path

import numpy as np

from metaser.adaptation.model_file import Header, ModelFile, measured_at
from metaser.contracts import method_traits
from metaser.files import write_text
from metaser.protocol.build import method_type
from metaser.tasks.schema import language_name

SYNTHETIC = (
    "This model has learnt from synthetic speech only. What it says about people means nothing: it "
    "shows that the steps work."
)

ZERO_SHOT = (
    "This model is not adapted to a language: it predicts zero-shot, from what the source "
    "languages taught it. `metaser adapt` makes it fit a language."
)

FOLDS = {
    "none": "cross-validated",  # of too few draws for a band of its own, in files of format 1 and 2
    "clips": "with clips left out in turn, for the speakers are not known or there is one only",
    "speakers": "with speakers left out in turn",
}


def warnings(header: Header) -> list[str]:
    """Return what everyone who uses the model must be told, in sentences."""
    sentences = [SYNTHETIC] if header.synthetic else []
    return sentences + ([] if header.adaptation else [ZERO_SHOT])


def percent(value: float, low: float, high: float) -> str:
    """Return a share and its interval in percent, such as ``61.2 % [50.1, 72.3]``."""
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def measured_lines(header: Header) -> list[str]:
    """Return a table in Markdown: quality on what was left out, by clips per class."""
    lines = [
        "| clips per class | UAR [95 % interval] | chance | calibration error, before and after |",
        "|---|---|---|---|",
    ]
    for measured in header.quality:
        shots = measured.shots or "0 (zero-shot)"
        interval = percent(measured.uar, measured.low, measured.high)
        errors = f"{measured.ece_before:.3f}, {measured.ece_after:.3f}"
        lines.append(f"| {shots} | {interval} | {100 * measured.chance:.0f} % | {errors} |")
    return lines


def expected_lines(header: Header) -> list[str]:
    """Return what to expect of an adapted model, in sentences without a full stop."""
    own = header.adaptation
    assert own is not None  # the model is adapted
    left_out = measured_at(header, own.shots)
    people = {None: "", 1: " of one speaker"}.get(own.speakers, f" of {own.speakers} speakers")
    low, uar, high = (f"{100 * value:.0f}" for value in (own.low, own.uar, own.high))
    lines = [
        f"UAR to expect on new clips of other speakers: {low} to {high} % (95 % interval), most "
        f"likely about {uar} %; chance is {100 / len(own.classes):.0f} %",
    ]
    if own.contradicted:
        lines.append(
            f"the {own.clips} clips{people} contradict themselves more than those of any left-out "
            "language, so the range holds both of what they say"
        )
    elif np.isnan(own.unadapted):  # in files of format 1 and 2
        lines.append(f"from {own.clips} clips{people}")
    else:
        lines.append(
            f"the {own.clips} clips{people} count for {100 * own.weight:.0f} % of this, what "
            f"left-out {_plural(header)} gave for the rest"
        )
    if not np.isnan(own.unadapted):
        lines.append(f"on these clips, before it adapted, it was {100 * own.unadapted:.0f} %")
    if not np.isnan(own.seen):
        lines.append(f"on these clips, {FOLDS[own.folds]}, it was {100 * own.seen:.0f} %")
    lines.append(
        f"on left-out {_plural(header)} with {left_out.shots} clips per class it was "
        f"{percent(left_out.uar, left_out.low, left_out.high)} ({len(left_out.tasks)} corpora)"
    )
    if own.trust >= 0.5:
        lines.append("it holds where it is said who speaks in the new clips; else it is lower")
    return lines


def _plural(header: Header) -> str:
    """Return what was left out of trainings in turn, in words."""
    return {"language": "languages", "task": "corpora", "speakers": "speakers"}[header.left_out]


def _others(header: Header) -> str:
    """Return a sentence about tasks that the quality was measured on, but nothing learnt from."""
    learnt = {source.name for source in header.sources}
    others = [name for name in header.quality[0].tasks if name not in learnt]
    return f"So were clips of {', '.join(others)}, never learnt from. " if others else ""


def card(file: ModelFile, name: str, onnx_difference: float | None = None) -> str:
    """Return the card in Markdown.

    Parameters
    ----------
    file : ModelFile
        The model.
    name : str
        What the card calls it.
    onnx_difference : float, optional
        Largest difference between the scores of the ONNX file and of the model, if there is such
        a file.
    """
    header = file.header
    lines = [f"# {name}", ""]
    lines += [f"**{sentence}**\n" for sentence in warnings(header)]
    classes = ", ".join(header.classes)
    lines += [
        f"Recognises emotion in speech: {classes}. Made by MetaSER {header.metaser} (method "
        f"{header.method}, setup {header.setup_name} of protocol {header.protocol}, seed "
        f"{header.seed}).",
        "",
        "## What it learnt from",
        "",
        "| task | language | corpus | clips, speakers | licence |",
        "|---|---|---|---|---|",
    ]
    for source in header.sources:
        made = ", synthetic" if source.synthetic else ""
        lines.append(
            f"| {source.name} (version {source.version}) | {language_name(source.language)} | "
            f"{source.corpus}{made}; {source.reference} | {source.clips}, {source.speakers} | "
            f"{source.licence} |"
        )
    lines += ["", "The model may be bound by these licences.", "", "## Measured quality", ""]
    lines += [
        f"Each of its {_plural(header)} was left out of a training in turn, and clips of few "
        "speakers were drawn from it as a user would give them; the others' clips were judged on. "
        f"{_others(header)}UAR is the mean recall over the classes.",
        "",
        *measured_lines(header),
        "",
    ]
    if header.adaptation is not None:
        own = header.adaptation
        lines += [f"## Adapted to {own.name}", ""]
        lines += [f"- {sentence}." for sentence in expected_lines(header)]
        lines += [f"- Classes: {', '.join(own.classes)}.", ""]
    lines += ["## How it hears", "", *_hearing(header), ""]
    if onnx_difference is not None:
        lines += [
            f"The ONNX file takes {_onnx_input(file)}. Its scores differ by at most "
            f"{onnx_difference:.1e}.",
            "",
        ]
    lines += [
        "## Limits",
        "",
        "- How a person sounds is not how they feel. Do not judge anyone by it.",
        "- Acted speech is easier than speech of daily life; most of what it learnt is acted.",
        "- The interval is about new speakers recorded in the same way. Another microphone, room "
        "or age group was not measured.",
        "- A recording of anything else than one voice gets an emotion, too.",
    ]
    return "\n".join(lines) + "\n"


def _hearing(header: Header) -> list[str]:
    """Return how the model turns sound into scores, as items of a list."""
    setup = header.setup
    assert setup.frontend is not None  # a model file hears audio
    arguments = {key: value for key, value in setup.frontend.items() if key != "name"}
    detail = f" with {arguments}" if arguments else ""
    traits = method_traits(*method_type(header.method, setup))
    body = f"; backbone: {setup.backbone['name']}" if traits.takes_model else ""
    lines = [f"- Front end: {setup.frontend['name']}{detail}{body}."]
    if setup.normalise == "voice":
        lines.append(
            "- Features of a clip are normalised by mean and deviation of its speaker, where that "
            "is known and as far as the clips that it was adapted to show that it is safe; else by "
            "those of the language. An ONNX file holds the model for the latter alone."
        )
    if setup.normalise != "none":
        lines.append(
            "- Features are normalised by mean and deviation of the clips that it was adapted to, "
            "leaning on those of the sources; not adapted, by those of the clips predicted on."
        )
    versions = ", ".join(f"{name} {number}" for name, number in header.libraries.items())
    return [*lines, f"- Libraries: {versions}."]


def _onnx_input(file: ModelFile) -> str:
    """Return what an ONNX file of the model takes and gives."""
    if file.predictor.model.frontend is None:
        return "normalised features and gives scores; front end and normalisation stand outside"
    return "frames of samples and gives scores; the learnt front end is inside"


def write_card(path: str | Path, text: str) -> None:
    """Write a card, whole or not at all."""
    write_text(path, text)
