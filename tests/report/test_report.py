"""The report on made-up rows whose truth is known."""

import json
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from metaser import report, stats

CLASSES = ["angry", "happy", "neutral", "sad"]
TARGETS = ("it_emovo", "ur_urdu", "fa_shemo")
HELD_OUT = ("de_emodb", "en_ravdess", "pl_nemo", "tr_turev")
METHODS = {
    "metaser": 0.50, "metaser_second_order": 0.50, "multiser": 0.45, "transser": 0.46,
    "fine_tuning": 0.47, "logistic_regression": 0.44, "logistic_regression_sources": 0.46,
    "from_scratch": 0.40, "zero_shot": 0.38, "majority": 0.25, "chance": 0.25,
}  # fmt: skip
FEW = {name: METHODS[name] for name in ("metaser", "multiser", "transser", "chance")}
VOID = {"meta", "br", "path", "use", "rect", "line", "hr", "img"}


def make_rows(
    methods=FEW, targets=TARGETS[:2], held_out=(), setups=("statistics_mlp",), shots=(1, 5),
    fractions=(), seeds=3, episodes=12, **fields,
):  # fmt: skip
    """Rows of a benchmark in which the methods' mean UAR is the one given, plus noise."""
    rng = np.random.default_rng(0)
    rows = []
    places = product(setups, (*targets, *held_out), fractions or shots, range(seeds))
    for setup, target, level, seed in places:
        number = 1 if fractions else episodes
        shared = rng.normal(0, 0.05, number)
        for method, mean in methods.items():
            scores = np.clip(mean + shared + rng.normal(0, 0.02, number), 0, 1)
            hits = round(10 * number * scores.mean())
            row = {
                "protocol": "unseen_language", "setup": setup, "method": method, "target": target,
                "task_version": 1, "language": target[:2], "synthetic": False,
                "sources": [name for name in HELD_OUT if name != target],
                "shots": None if fractions else level, "queries": None if fractions else 10,
                "fraction": level if fractions else None, "seed": seed, "episodes": number,
                "digest": f"{target}-{level}-{seed}", "speakers": "disjoint", "normalise": "corpus",
                "frontend": setup.split("_")[0], "backbone": setup.split("_")[1],
                "uar": scores.tolist(), "macro_f1": (0.9 * scores).tolist(),
                "confusion": (np.eye(4, dtype=int) * hits + 10 * number - hits).tolist(),
                "classes": CLASSES, "role": "held_out_source" if target in held_out else "target",
                "train_seconds": 41.2, "adapt_seconds": 0.011, "parameters": 39940,
                "metaser": "0.1.0", "torch": "2.13.0", "created": "2026-11-22T11:40:12+00:00",
            }  # fmt: skip
            rows.append(row | fields)
    return rows


def save(folder: Path, rows, **run) -> Path:
    """A results folder with these rows, and a run.json that fits them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row).replace("NaN", "null") + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    names = dict.fromkeys([row["target"] for row in rows] + list(HELD_OUT))
    tasks = {
        name: {
            "language": name[:2], "corpus": name[3:].upper(), "version": 1, "licence": "CC BY",
            "reference": "doi:10.1/x", "homepage": "somewhere", "synthetic": False, "clips": 586,
            "speakers": 6, "declared_clips": 588, "declared_speakers": 6, "duplicates": 2,
            "classes": dict.fromkeys(CLASSES, 84), "left_out": {"bored": 79}, "role": "both",
            "leakage": f"{name} repeats its sentences on both sides.",
        }
        for name in names
    }  # fmt: skip
    facts = {
        "protocol": {"name": "unseen_language"}, "command": "metaser benchmark x.toml --jobs 2",
        "metaser": "0.1.0", "python": "3.11.7", "packages": {"numpy": "2.4.6"},
        "machine": "2 × Example CPU", "started": "2026-11-22T10:00:00+00:00", "tasks": tasks,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts | run))
    return folder


class Balance(HTMLParser):
    """Collects the visible text, and complains about tags that do not close."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text, self.ids, self.links = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [v for k, v in attributes.items() if k in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in VOID:
            self.handle_starttag(tag, attributes)
            self.open.pop()
        else:
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def pages(folder: Path, rows, **run) -> tuple[str, str]:
    """Text of the HTML page, without tags and with single spaces, and the Markdown."""
    html, markdown = report.write(save(folder, rows, **run))
    text = " ".join(" ".join(Balance(html.read_text("utf-8")).text).split())
    return text, markdown.read_text("utf-8")


def cell(markdown: str, heading: str, kind: str, method: str, column: int) -> str:
    """A cell of a score table in the Markdown."""
    section = markdown.split(f"#### {heading}\n")[1].split(f"{kind}, %:")[1]
    line = next(line for line in section.splitlines() if line.startswith(f"| {method} |"))
    return line.split("|")[column + 1].strip()


def test_full_report_is_one_small_page_without_scripts_or_links(tmp_path):
    rows = make_rows(
        METHODS,
        targets=TARGETS, held_out=HELD_OUT, setups=("statistics_mlp", "mfcc_lstm"),
        shots=(1, 5, 10, 20), seeds=5, episodes=100,
    )  # fmt: skip
    html, markdown = report.write(save(tmp_path / "results", rows), tmp_path / "new" / "out")
    assert (html.name, markdown.name) == ("report.html", "report.md")
    assert html.parent == markdown.parent == tmp_path / "new" / "out"
    page = html.read_text("utf-8")
    assert len(page.encode()) < 3e6
    assert '<html lang="en">' in page and "<script" not in page and "@import" not in page
    parsed = Balance(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    panels = 2 * (1 + len(TARGETS) + 1 + len(HELD_OUT))
    assert page.count("<figure>") == panels
    labels = re.findall(r'<svg[^>]*role="img"[^>]*aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg") and any("MetaSER" in label for label in labels)


def test_a_number_of_the_table_recomputed_by_hand(tmp_path):
    rows = make_rows()
    _, markdown = pages(tmp_path, rows)
    chosen = [
        [row["uar"] for row in rows if (row["method"], row["target"], row["shots"]) == key]
        for key in [("transser", "it_emovo", 5), ("transser", "ur_urdu", 5)]
    ]
    mean = np.mean(chosen)
    interval = stats.interval(chosen)
    shown = cell(markdown, "Mean over 2 targets", "UAR", "TransSER", 2)
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\] \(72\)", shown)
    assert shown.startswith(f"{100 * mean:.1f} ")
    bounds = [float(number) for number in re.findall(r"\d+\.\d", shown)[1:]]
    assert bounds == pytest.approx([100 * interval.low, 100 * interval.high], abs=0.06)
    single = cell(markdown, "it_emovo", "UAR", "TransSER", 2)
    assert single.startswith(f"{100 * np.mean(chosen[0]):.1f} ") and single.endswith("(36)")
    f1 = cell(markdown, "it_emovo", "Macro-F1", "TransSER", 2)
    assert f1.startswith(f"{90 * np.mean(chosen[0]):.1f} ")


def test_paired_tests_find_what_was_planted(tmp_path):
    rows = make_rows(METHODS, seeds=5, episodes=60)
    results = report.Results(report.read_rows(save(tmp_path, rows)))
    beaten = results.tests["statistics_mlp", "mean", "metaser", "multiser", 5]
    equal = results.tests["statistics_mlp", "mean", "metaser", "metaser_second_order", 5]
    assert beaten.holm < 0.01 and beaten.result.low < 0.05 < beaten.result.high
    assert (beaten.wins, beaten.targets, beaten.result.episodes) == (2, 2, 600)
    assert equal.holm > 0.05
    family = [k for k in results.tests if k[0] == "statistics_mlp" and k[1] == "mean" and k[4] == 5]
    assert len(family) == 10 + 9
    expected = stats.holm([results.tests[key].result.p for key in family])
    np.testing.assert_allclose([results.tests[key].holm for key in family], expected)


def test_the_summary_follows_the_numbers(tmp_path):
    better = {"metaser": 0.5, "multiser": 0.4, "chance": 0.25}
    text, markdown = pages(tmp_path / "a", make_rows(better, seeds=5))
    assert "Highest UAR on the mean over 2 targets: MetaSER at 1 and 5 shots" in text
    assert "MetaSER is higher than MultiSER and Chance at every number of shots" in text
    assert "MetaSER is higher than MultiSER and Chance" in markdown
    worse = {"metaser": 0.4, "multiser": 0.5, "chance": 0.25}
    text, _ = pages(tmp_path / "b", make_rows(worse, seeds=5))
    assert "MetaSER is lower than MultiSER" in text and "higher than Chance" in text
    assert "Highest UAR on the mean over 2 targets: MultiSER at 1 and 5 shots" in text
    mixed = make_rows({"metaser": 0.5, "multiser": 0.5}, seeds=5)
    for row in mixed:
        if (row["method"], row["shots"]) == ("multiser", 5):
            row["uar"] = (np.array(row["uar"]) - 0.1).tolist()
    text, _ = pages(tmp_path / "c", mixed)
    assert "compared with MultiSER, higher at 5 shots, not clearly different elsewhere" in text
    text, _ = pages(tmp_path / "d", make_rows({"multiser": 0.5, "our_own": 0.4}))
    assert "No method named metaser… is among them" in text and "our_own" in text


def test_synthetic_speech_cannot_be_missed(tmp_path):
    text, markdown = pages(tmp_path, make_rows(synthetic=True))
    words = "SYNTHETIC SPEECH: says that the pipeline works, nothing about real emotion"
    assert words in text and words in markdown
    assert "Mean over 2 targets (synthetic)" in text and "it_emovo (synthetic)" in markdown
    text, _ = pages(tmp_path / "real", make_rows())
    assert "SYNTHETIC" not in text and "LEAKY" not in text


def test_leaky_protocols_are_marked(tmp_path):
    text, markdown = pages(tmp_path / "a", make_rows(speakers="any"))
    words = "LEAKY BY DESIGN: speakers appear on both sides"
    assert words in text and words in markdown
    text, _ = pages(tmp_path / "b", make_rows(sources=["it_emovo", "de_emodb"]))
    assert "LEAKY: it_emovo among the sources of its own training" in text


def test_held_out_sources_stand_apart_and_are_not_tested(tmp_path):
    rows = make_rows(held_out=HELD_OUT)
    text, markdown = pages(tmp_path / "a", rows)
    before, after = markdown.split("## Held-out sources: used for choosing, so optimistic")
    assert (
        "#### de_emodb" in after and "de_emodb" not in before.split("## Scores on the targets")[1]
    )
    assert "Mean over 2 targets" in before and "Mean over 4 held-out sources" in after
    assert "used for choosing, so optimistic" in text
    results = report.Results(report.read_rows(tmp_path / "a"))
    assert {scope for _, scope, *_ in results.tests} == {"mean", "it_emovo", "ur_urdu"}
    text, _ = pages(tmp_path / "b", [row for row in rows if row["role"] != "target"])
    assert "No target was scored" in text and "Paired tests" not in text


def test_split_protocols_are_shown_by_fraction(tmp_path):
    rows = make_rows(fractions=(0.1, 0.5, 1.0), seeds=5, speakers="any", protocol="icassp2021")
    text, markdown = pages(tmp_path, rows)
    assert "| Method | 10 % | 50 % | 100 % |" in markdown
    assert cell(markdown, "it_emovo", "UAR", "MultiSER", 1).endswith("(5)")
    assert "at 10, 50 and 100 % of the target’s training data" in text
    assert "Random splits of one corpus overlap" in text


def test_confusions_are_normalised_per_true_class(tmp_path):
    rows = make_rows({"metaser": 0.5, "multiser": 0.4}, targets=("it_emovo",), shots=(5,), seeds=2)
    for row in rows:
        row["confusion"] = [[30, 10, 0, 0], [0, 0, 0, 0], [0, 0, 20, 20], [0, 0, 0, 40]]
    text, _ = pages(tmp_path, rows)
    assert "it_emovo 240 predictions angry happy neutral sad angry 75.0 25.0 0.0 0.0" in text
    assert "happy NaN NaN NaN NaN" in text


def test_data_card_command_versions_and_leakage_are_told(tmp_path):
    text, markdown = pages(tmp_path, make_rows())
    for words in (
        "metaser benchmark x.toml --jobs 2", "2 × Example CPU", "numpy 2.4.6", "586 of 588",
        "it_emovo repeats its sentences on both sides.", "bored 79", "doi:10.1/x",
        "normalised per corpus: mean and deviation of the target come from all its clips",
    ):  # fmt: skip
        assert words in text and words in markdown
    assert "It says nothing about other speakers" in text


def test_text_from_outside_is_escaped(tmp_path):
    rows = make_rows({"metaser": 0.5, "a|<b>": 0.4})
    html, markdown = report.write(save(tmp_path, rows, command="metaser <script>x</script>"))
    page = html.read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "a|&lt;b&gt;" in page
    assert "| a\\|<b> |" in markdown.read_text()


def test_nan_is_shown_as_nan(tmp_path):
    rows = make_rows({"metaser": 0.5, "multiser": 0.4}, seeds=2)
    for row in rows:
        if row["method"] == "multiser" and row["shots"] == 5 and row["seed"] == 1:
            row["uar"] = [None, *row["uar"][1:]]
        row["train_seconds"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text, markdown = pages(tmp_path, rows)
    assert cell(markdown, "it_emovo", "UAR", "MultiSER", 2) == "NaN [NaN, NaN] (24)"
    assert "NaN [NaN, NaN] (24)" in text and "not tested against" not in text
    assert "compared with MultiSER" in text and "not tested" in text


def test_missing_cells_are_counted_and_named(tmp_path):
    rows = make_rows()
    gone = [
        row
        for row in rows
        if row["method"] == "transser" and row["target"] == "it_emovo" and row["shots"] == 5
    ]
    kept = [row for row in rows if row not in gone]
    kept.remove(next(row for row in kept if row["method"] == "multiser" and row["seed"] == 2))
    text, markdown = pages(tmp_path, kept)
    assert f"4 of {len(rows)} cells are missing" in text
    assert "Missing: statistics_mlp / transser / it_emovo / 5 shots: seed(s) 0, 1 and 2" in markdown
    assert cell(markdown, "it_emovo", "UAR", "TransSER", 2) == "no rows"
    assert cell(markdown, "Mean over 2 targets", "UAR", "TransSER", 2) == "no rows"
    assert cell(markdown, "Mean over 2 targets", "UAR", "MultiSER", 1).endswith("(48)")


def test_held_out_sources_may_have_fewer_seeds_and_setups_other_methods(tmp_path):
    rows = make_rows() + make_rows(targets=(), held_out=HELD_OUT[:2], seeds=1)
    rows += make_rows({"metaser": 0.5}, setups=("mfcc_lstm",))
    text, _ = pages(tmp_path, rows)
    assert "cells are missing" not in text


def test_same_rows_give_the_same_page(tmp_path):
    folder = save(tmp_path, make_rows())
    first = [path.read_bytes() for path in report.write(folder, tmp_path / "a.html")]
    second = [path.read_bytes() for path in report.write(folder, tmp_path / "b")]
    assert first == second
    assert not list(tmp_path.rglob("*.part"))


def test_read_rows_and_episodes(tmp_path):
    made = make_rows(seeds=2, episodes=4)
    made[0]["uar"][1] = None
    rows = report.read_rows(save(tmp_path, made))
    assert len(rows) == len(made) and rows.loc[3, "uar"].shape == (4,)
    pd.testing.assert_frame_equal(rows, report.read_rows(tmp_path / "rows.jsonl"))
    single = report.episodes(rows)
    assert len(single) == 4 * len(rows) and single["uar"].dtype == single["macro_f1"].dtype == float
    assert single.loc[:4, "episode"].tolist() == [0, 1, 2, 3, 0]
    assert np.isnan(single.loc[1, "uar"]) and single.loc[2, "uar"] == made[0]["uar"][2]
    assert "confusion" not in single and "confusion" in rows


def test_a_cut_last_line_is_said_and_left_out(tmp_path):
    path = save(tmp_path, make_rows(METHODS)) / "rows.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])
    with pytest.warns(UserWarning, match=r"rows\.jsonl: line 132, the last, is cut"):
        assert len(report.read_rows(path)) == 131
    path.write_text(text.replace("}\n", "\n", 1))
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 1 is not a row"):
        report.read_rows(path)


def spoil(**changes):
    """Rows of which the last one differs in these fields."""
    rows = make_rows({"metaser": 0.5, "multiser": 0.4})
    rows[-1] = rows[-1] | changes
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (spoil(protocol="smoke"), "mixes the protocols smoke, unseen_language"),
        (spoil(uar=[0.5]), "declares 12 episodes but holds 1 values of uar"),
        (spoil(confusion=[[1]]), r"names 4 classes but its confusion has shape \(1, 1\)"),
        (spoil(shots=None), "either shots or a fraction"),
        (spoil(shots=None, fraction=0.5), "mixes rows by shots and rows by fraction"),
        (spoil(role="source"), "role 'source', expected 'target'"),
        (spoil(seed=1), r"holds the cell .*'multiser'.* twice"),
        (spoil(digest="else"), "not scored on the same episodes.*ur_urdu"),
        (spoil(task_version=2), r"ur_urdu disagree on task_version \(1 / 2\)"),
        ([{k: v for k, v in spoil()[0].items() if k != "digest"}], "lacks the field.* digest"),
        ([[1, 2]], "line 1 is not a JSON object"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows, message):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        report.read_rows(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results folder .*nowhere"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no result rows at .*rows\.jsonl"):
        report.write(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match="no complete row"):
        report.write(tmp_path)
    save(tmp_path, make_rows({"metaser": 0.5}))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match='lacks "tasks"'):
        report.write(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        report.write(tmp_path)


def test_one_method_target_level_seed_and_episode_is_enough(tmp_path):
    rows = make_rows({"metaser": 0.5}, targets=("it_emovo",), shots=(5,), seeds=1, episodes=1)
    text, markdown = pages(tmp_path, rows)
    assert "1 method scored on 1 target (it_emovo) at 5 shots, with 1 seed and 1 episode" in text
    assert "With one seed, nothing here says" in text and "[NaN, NaN] (1)" in markdown


def test_report_needs_neither_torch_nor_audio_libraries(tmp_path):
    folder = save(tmp_path, make_rows({"metaser": 0.5, "multiser": 0.4}))
    code = (
        "import sys; from metaser import report; report.write(sys.argv[1]); "
        "print({'torch', 'librosa', 'soundfile', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
