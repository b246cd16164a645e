"""Which clips to label first: strategies against random choice, on corpora whose labels are hidden.

    python benchmarks/selection/compare.py --data DIR

In each draw half of a corpus's speakers are the pool and the other half is tested on. A strategy
chooses N clips of the pool without seeing labels; then their labels are revealed, and logistic
regression learns from them. Classes may be missing among the chosen; they are scored as missed.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import torch

from metaser import metrics, rows, stats
from metaser.features import extract, normalise
from metaser.frontends import make_frontend
from metaser.labelling import choose as labelling
from metaser.methods.baselines import LogisticRegression
from metaser.tasks import read_task
from metaser.version import version

HERE = Path(__file__).parents[1]
CLASSES = ("angry", "happy", "neutral", "sad")
SOURCES = ("de_emodb", "en_ravdess", "pl_nemo", "tr_turev")
TARGETS = ("it_emovo", "ur_urdu")
COUNTS = (8, 20, 40, 80)
KEY = ("task", "strategy", "count", "sources")
STRATEGIES = [
    (f"{name}{' + speakers' * speakers}", choose, speakers)
    for name, choose in labelling.STRATEGIES.items()
    for speakers in (False, True)
]


class Corpus:
    """Clips of those of the four classes that it has: features, targets, speakers."""

    def __init__(self, name: str, data: str, cache: str | None):
        self.task = read_task(name, data)
        self.name, self.language = name, self.task.language
        features = normalise(
            extract(self.task, make_frontend({"name": "statistics"}), cache), self.task, "corpus"
        )
        table = self.task.table
        code = table["emotion"].map({name: i for i, name in enumerate(CLASSES)})
        self.clips = np.flatnonzero(code.notna())
        self.targets = code.to_numpy()[self.clips].astype(int)
        self.units = table["unit"].to_numpy()[self.clips]
        self.speakers = table["speaker"].to_numpy()[self.clips]
        self.features = features
        self.classes = np.isin(np.arange(len(CLASSES)), self.targets)
        self.values = np.asarray(features.values)[self.clips, 0]

    def batch(self, places: np.ndarray):
        return self.features.batch(self.clips[places], self.targets[places], self.classes)


def split(corpus: Corpus, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Halve the speakers so that both halves hold every class."""
    units = np.unique(corpus.units)
    for _ in range(1000):
        pool = np.isin(corpus.units, rng.permutation(units)[: len(units) // 2])
        held = [len(set(corpus.targets[side])) for side in (pool, ~pool)]
        if min(held) == corpus.classes.sum():
            if pool.sum() >= max(COUNTS):
                return np.flatnonzero(pool), np.flatnonzero(~pool)
    raise ValueError(f"{corpus.name}: no split in two has every class on both sides")


def score(corpus: Corpus, chosen: np.ndarray, tested: np.ndarray, sources: list) -> float:
    """UAR on the tested clips after learning from the chosen ones."""
    method = LogisticRegression(0.1 if sources else 1.0, use_sources=bool(sources))
    method.fit(sources)
    if not sources and len(set(corpus.targets[chosen])) == 1:
        guesses = np.full(len(tested), corpus.targets[chosen[0]])  # nothing else was heard of
    else:
        predict = method.adapt(corpus.batch(chosen))
        guesses = predict(corpus.batch(tested).modalities).argmax(dim=1).numpy()
    return metrics.uar(corpus.targets[tested], guesses)


def measure(corpora: list[Corpus], draws: int, out: Path) -> None:
    """Append a row for every corpus, strategy and number of clips that is not there."""
    done = {tuple(row[key] for key in KEY) for row in rows.read_rows(out)}
    plan = [(corpus, False) for corpus in corpora]
    plan += [(corpus, True) for corpus in corpora if corpus.name in TARGETS]
    for corpus, learn_sources in plan:
        others = [one for one in corpora if one.name in SOURCES] if learn_sources else []
        sources = [one.batch(np.arange(len(one.clips))) for one in others]
        for name, choose, speakers in STRATEGIES:
            for count in COUNTS:
                key = (corpus.name, name, count, learn_sources)
                if key in done:
                    continue
                few = draws // 2 if learn_sources else draws
                row = dict(zip(KEY, key)) | {"task_version": corpus.task.version}
                row |= _score_draws(corpus, choose, speakers, count, sources, few)
                rows.append_row(out, row)
                print(*key, f"UAR {np.mean(row['uar']):.3f}", flush=True)


def _score_draws(corpus, choose, speakers: bool, count: int, sources: list, draws: int) -> dict:
    uar, missing = [], []
    for draw in range(draws):
        seed = [draw, zlib.crc32(corpus.name.encode())]
        pool, tested = split(corpus, np.random.default_rng(seed))
        who = corpus.speakers[pool] if speakers else None
        values = labelling.standardise(corpus.values[pool])
        chosen = pool[choose(values, count, np.random.default_rng([*seed, count]), who)]
        uar.append(round(score(corpus, chosen, tested, sources), 5))
        missing.append(int(corpus.classes.sum()) - len(set(corpus.targets[chosen])))
    seeds = list(range(draws))  # each with the corpus's checksum, see above
    return {"draws": draws, "seeds": seeds, "uar": uar, "missing": missing, "metaser": version()}


def report(found: list[dict]) -> str:
    """Tables in Markdown: means, and paired differences from random choice."""
    text = [INTRODUCTION]
    for title, names, sources in (
        ("Source corpora, on which the strategy was chosen", SOURCES, False),
        ("Target corpora", TARGETS, False),
        ("Target corpora, learning from the source corpora as well", TARGETS, True),
    ):
        kept = [row for row in found if row["task"] in names and row["sources"] == sources]
        text += [f"\n## {title}\n", *_table(kept), ""]
        if not sources:
            text += _by_corpus(kept)
    return "\n".join(text) + "\n"


def _scores(found: list[dict], strategy: str, count: int) -> list[list[list[float]]]:
    """UAR nested as targets -> one seed -> draws."""
    kept = [row for row in found if (row["strategy"], row["count"]) == (strategy, count)]
    return [[row["uar"]] for row in sorted(kept, key=lambda row: row["task"])]


def _table(found: list[dict]) -> list[str]:
    strategies = [name for name, _, _ in STRATEGIES]
    lines = ["| strategy | " + " | ".join(f"N = {count}" for count in COUNTS) + " |"]
    lines.append("|---" * (len(COUNTS) + 1) + "|")
    for strategy in strategies:
        cells = []
        for count in COUNTS:
            mean = stats.interval(_scores(found, strategy, count))
            rows_here = [r for r in found if (r["strategy"], r["count"]) == (strategy, count)]
            missing = np.mean([row["missing"] for row in rows_here])
            cells.append(f"{_percent(mean.mean, mean.low, mean.high)}; {missing:.2f}")
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    lines += ["", "UAR less that of random choice (p corrected by Holm):", ""]
    lines += ["| strategy | " + " | ".join(f"N = {count}" for count in COUNTS) + " |"]
    lines.append("|---" * (len(COUNTS) + 1) + "|")
    base = strategies[0]
    tests = {
        (strategy, count): stats.paired_test(
            _scores(found, strategy, count), _scores(found, base, count)
        )
        for strategy in strategies[1:]
        for count in COUNTS
    }
    corrected = dict(zip(tests, stats.holm([test.p for test in tests.values()])))
    for strategy in strategies[1:]:
        cells = []
        for count in COUNTS:
            test = tests[strategy, count]
            told = _percent(test.difference, test.low, test.high, "+")
            cells.append(f"{told} p = {corrected[strategy, count]:.3f}")
        lines.append(f"| {strategy} | " + " | ".join(cells) + " |")
    return [*lines, "", f"Compared with: {base}. {_draws(found)}"]


def _by_corpus(found: list[dict]) -> list[str]:
    lines = ["Each corpus, mean UAR:", ""]
    lines += ["| corpus | strategy | " + " | ".join(f"N = {count}" for count in COUNTS) + " |"]
    lines.append("|---" * (len(COUNTS) + 2) + "|")
    for task in dict.fromkeys(row["task"] for row in found):
        for strategy, _, _ in STRATEGIES:
            own = {
                row["count"]: row["uar"]
                for row in found
                if (row["task"], row["strategy"]) == (task, strategy)
            }
            means = [stats.interval(own[count]) for count in COUNTS]
            cells = [_percent(mean.mean, mean.low, mean.high) for mean in means]
            lines.append(f"| {task} | {strategy} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _draws(found: list[dict]) -> str:
    corpora = len({row["task"] for row in found})
    return f"{found[0]['draws']} draws of each of {corpora} corpora, the same for all strategies."


def _percent(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


INTRODUCTION = """# Which clips to label first

Made by `python benchmarks/selection/compare.py --data DIR`; rows in `benchmarks/results/selection`.

In each draw half of a corpus's speakers are the pool, the others are tested on. A strategy chooses
N clips of the pool (angry, happy, neutral and sad, of which TurEV has no neutral) without seeing
labels. Then they are labelled, whatever they are, and logistic regression on pooled statistics
learns from them. UAR in % [95 % interval over draws], then how many of the classes are missing
among the chosen clips on average; a missing class counts as never recognised. "+ speakers": all
speakers are taken equally often. Features are standardised over the whole corpus, which needs no
labels. Draws of one corpus share its clips, so the intervals say nothing about other corpora."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="data root")
    parser.add_argument("--cache", help="feature cache")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "selection")
    parser.add_argument("--report", type=Path, default=HERE / "reports" / "selection")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for folder in (arguments.out, arguments.report):
        folder.mkdir(parents=True, exist_ok=True)
    corpora = [Corpus(name, arguments.data, arguments.cache) for name in (*SOURCES, *TARGETS)]
    measure(corpora, arguments.draws, arguments.out / "rows.jsonl")
    found = rows.read_rows(arguments.out / "rows.jsonl")
    (arguments.report / "report.md").write_text(report(found), encoding="utf-8")


if __name__ == "__main__":
    main()
