"""Few-shot episodes: which clips of a task support an adaptation and which ones query it.

Episode *i* of a sampler is a pure function of (task, protocol, seed, i): whoever asks for it, and
whatever was drawn before, it is the same, so that every method is scored on the same draws.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from metaser.batch import EpisodeBatch
from metaser.features.table import Features
from metaser.tasks.task import Task

SPEAKERS = ("disjoint", "same", "any")
ATTEMPTS = 512
ROUNDS = 32
"""Random splits that are looked at together, and how often before giving up."""


@dataclass(frozen=True)
class Episode:
    """The clips of one episode, as rows of the task's table.

    Attributes
    ----------
    task : str
        Name of the task.
    index : int
        Number of the episode in its sampler.
    classes : tuple of str
        Class names; targets index into it.
    support, query : ndarray of int
        Rows of the task's table.
    support_targets, query_targets : ndarray of int
        Class index of each row.
    """

    task: str
    index: int
    classes: tuple[str, ...]
    support: np.ndarray
    query: np.ndarray
    support_targets: np.ndarray
    query_targets: np.ndarray


@dataclass(frozen=True)
class TaskSampler:
    """N-way K-shot Q-query episodes of one task.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    classes : sequence of str
        The protocol's classes. Their order gives the class indices, the same for every task; a
        task that lacks some of them gives episodes over the others, under the same indices.
    shots, queries : int
        Support and query clips a class.
    seed : int
        Another seed gives other episodes.
    speakers : {"disjoint", "same", "any"}
        Support and query share no speaker ("disjoint"), come from one speaker ("same"), or are
        drawn regardless of speakers ("any"). Clips that share audio never stand on both sides.
    permute : bool
        Draw new class indices for each episode instead of the fixed ones.
    units : sequence of int, optional
        Draw only from clips of these units (speakers) of the task's table.

    Raises
    ------
    ValueError
        If the task cannot give such episodes; the message names the class and the counts.
    """

    task: Task
    classes: Sequence[str]
    shots: int
    queries: int
    seed: int = 0
    speakers: str = "disjoint"
    permute: bool = False
    units: Sequence[int] | None = None
    _counts: np.ndarray = field(init=False, repr=False, compare=False)
    _rows: np.ndarray = field(init=False, repr=False, compare=False)
    _targets: np.ndarray = field(init=False, repr=False, compare=False)
    _units: np.ndarray = field(init=False, repr=False, compare=False)
    _present: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.speakers not in SPEAKERS:
            raise ValueError(f"speakers must be one of {SPEAKERS}, not {self.speakers!r}")
        if self.shots < 1 or self.queries < 1:
            raise ValueError(
                f"an episode needs at least 1 shot and 1 query, not {self.shots} and {self.queries}"
            )
        table = self.task.table
        code = {name: index for index, name in enumerate(self.classes)}
        targets = table["emotion"].map(code)
        wanted = targets.notna()
        if self.units is not None:
            wanted &= table["unit"].isin(self.units)
        if self.speakers == "same":
            wanted &= ~table["clique"].where(wanted).duplicated()
        rows = np.flatnonzero(wanted)
        targets = targets.to_numpy()[rows].astype(int)
        column = "clique" if self.speakers == "any" else "unit"
        units = np.unique(table[column].to_numpy()[rows], return_inverse=True)[1]
        counts = np.zeros((units.max(initial=-1) + 1, len(self.classes)), int)
        np.add.at(counts, (units, targets), 1)
        present = np.flatnonzero(counts.sum(axis=0))
        for name, value in [
            ("_rows", rows),
            ("_targets", targets),
            ("_units", units),
            ("_counts", counts),
            ("_present", present),
        ]:
            object.__setattr__(self, name, value)
        self._check()

    def _check(self):
        """Refuse what no draw could satisfy."""
        name, need = self.task.name, self.shots + self.queries
        if len(self._present) < 2:
            held = [self.classes[i] for i in self._present]
            raise ValueError(
                f"{name} holds {len(held)} of the classes {list(self.classes)} ({held}); "
                "an episode needs at least two: choose other classes or another task"
            )
        for index in self._present:
            held = self._counts[:, index].sum()
            if held < need:
                raise ValueError(
                    f"class {self.classes[index]!r} of {name} holds {held} clips, but {self.shots} "
                    f"shots + {self.queries} queries need {need}: use fewer shots or queries, or "
                    "leave the class out"
                )
        if self.speakers == "disjoint" and len(self._counts) < 2:
            raise ValueError(
                f"{name} has one speaker, so support and query speakers cannot be disjoint: add "
                "recordings of another speaker, or choose a protocol with speakers = 'any'"
            )
        self.episode(0)

    def _generator(self, index: int) -> np.random.Generator:
        protocol = [self.task.name, self.task.version, *self.classes, self.shots, self.queries]
        protocol += [self.speakers, self.permute]
        key = zlib.crc32("|".join(map(str, protocol)).encode())
        return np.random.default_rng([self.seed, index, key])

    def episode(self, index: int) -> Episode:
        """Draw episode ``index`` (>= 0)."""
        rng = self._generator(index)
        if self.speakers == "same":
            support_side, query_side = self._within_unit(rng)
        else:
            side = self._sides(rng)
            support_side, query_side = np.flatnonzero(side), np.flatnonzero(~side)
        support, query = [], []
        for target in self._present:
            first = rng.permutation(support_side[self._targets[support_side] == target])
            second = rng.permutation(query_side[self._targets[query_side] == target])
            support.append(first[: self.shots])
            query.append(second[: self.queries])
        support, query = np.concatenate(support), np.concatenate(query)
        names = np.array(self.classes)
        order = rng.permutation(len(names)) if self.permute else np.arange(len(names))
        return Episode(
            task=self.task.name,
            index=index,
            classes=tuple(names[np.argsort(order)].tolist()),
            support=self._rows[support],
            query=self._rows[query],
            support_targets=order[self._targets[support]],
            query_targets=order[self._targets[query]],
        )

    def _sides(self, rng: np.random.Generator) -> np.ndarray:
        """Split the units at random so that every class has its shots and its queries."""
        units = len(self._counts)
        counts = self._counts[:, self._present]
        for _ in range(ROUNDS):
            sizes = rng.integers(1, max(units, 2), size=(ATTEMPTS, 1))
            sides = rng.random((ATTEMPTS, units)).argsort(axis=1) < sizes
            enough = (sides @ counts >= self.shots) & (~sides @ counts >= self.queries)
            feasible = np.flatnonzero(enough.all(axis=1))
            if len(feasible):
                return sides[feasible[0]][self._units]
        rare = self._present[enough.mean(axis=0).argmin()]
        holders = np.count_nonzero(self._counts[:, rare])
        what, remedy = "clips", ""
        if self.speakers == "disjoint":
            what, remedy = "speakers", ", or choose a protocol with speakers = 'any'"
        raise ValueError(
            f"{self.task.name}: no split of its {units} {what} in {ROUNDS * ATTEMPTS} random ones "
            f"leaves {self.shots} support and {self.queries} query clips of every class on their "
            f"sides; {self.classes[rare]!r} is the hardest ({holders} of them have it): use fewer "
            f"shots or queries, leave the class out{remedy}"
        )

    def _within_unit(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw one speaker who speaks every class, and halve the speaker's clips of each class."""
        need = self.shots + self.queries
        able = np.flatnonzero((self._counts[:, self._present] >= need).all(axis=1))
        if len(able) == 0:
            raise ValueError(
                f"no speaker of {self.task.name} has {need} clips of each class, which speakers = "
                "'same' needs: use fewer shots or queries, or speakers = 'disjoint'"
            )
        rows = rng.permutation(np.flatnonzero(self._units == rng.choice(able)))
        first = np.concatenate(
            [rows[self._targets[rows] == target][: self.shots] for target in self._present]
        )
        return first, np.setdiff1d(rows, first)


@dataclass(frozen=True)
class SplitSampler:
    """One random split of a task into training and test clips, regardless of speakers.

    This is the protocol of the MetaSER paper. Support is a fraction of the training clips, query
    all test clips; both keep the class proportions. Clips that share audio stay on one side.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    classes : sequence of str
        The protocol's classes; their order gives the class indices.
    test : float
        Share of each class's clips that is tested on, in (0, 1).
    fraction : float
        Share of the other clips to learn from, in (0, 1]; smaller shares are parts of larger ones.
    seed : int
        Another seed gives other splits.

    Raises
    ------
    ValueError
        When drawn, if a class has too few clips for both sides; the message names it.
    """

    task: Task
    classes: Sequence[str]
    test: float
    fraction: float
    seed: int = 0

    def episode(self, index: int) -> Episode:
        """Draw split ``index`` (>= 0)."""
        key = zlib.crc32(f"{self.task.name}|{self.task.version}|{self.test}".encode())
        rng = np.random.default_rng([self.seed, index, key])
        support, query = [], []
        cliques, emotions = (self.task.table[name].to_numpy() for name in ("clique", "emotion"))
        position = rng.permutation(cliques.max() + 1)[cliques]
        parts = [np.flatnonzero(emotions == name) for name in self.classes]
        parts = [rows[np.argsort(position[rows], kind="stable")] for rows in parts]
        tested = np.zeros(len(cliques), bool)
        for rows in parts:
            place = np.searchsorted(position[rows], position[rows])
            tested[rows[place < round(self.test * len(rows))]] = True
        tested = np.isin(cliques, cliques[tested])  # audio that is labelled twice, differently
        for name, rows in zip(self.classes, parts):
            learnt = rows[~tested[rows]]
            query.append(rows[tested[rows]])
            support.append(learnt[: max(round(self.fraction * len(learnt)), 1)])
            if len(rows) and not (len(learnt) and len(query[-1])):
                raise ValueError(
                    f"class {name!r} of {self.task.name} holds {len(rows)} clips, too few for a "
                    f"split with test = {self.test}: leave the class out, or add recordings"
                )
        targets = [
            np.repeat(np.arange(len(side)), [len(part) for part in side])
            for side in (support, query)
        ]
        return Episode(
            task=self.task.name,
            index=index,
            classes=tuple(self.classes),
            support=np.concatenate(support),
            query=np.concatenate(query),
            support_targets=targets[0],
            query_targets=targets[1],
        )


def join_same_audio(task: Task, hashes: np.ndarray) -> Task:
    """Return the task with clips of identical audio joined into one unit and one clique.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    hashes : ndarray of str
        Content of each clip's audio, in the order of the table.
    """
    content = np.unique(hashes, return_inverse=True)[1]
    if len(np.unique(content)) == len(content):
        return task
    table = task.table.copy()
    for column in ("unit", "clique"):
        groups = table[column].to_numpy()
        size = groups.max() + 1
        nodes = size + content.max() + 1
        edges = coo_array((np.ones(len(groups)), (groups, size + content)), shape=(nodes, nodes))
        table[column] = connected_components(edges, directed=False)[1][groups]
    return replace(task, table=table)


def digest(task: Task, episodes: Sequence[Episode]) -> str:
    """Fingerprint of the clips that episodes draw, in their order."""
    files = task.table["file"].to_numpy()
    found = hashlib.blake2b(digest_size=8)
    for episode in episodes:
        for side in (episode.support, episode.query):
            found.update("\n".join([*files[side], "", ""]).encode())
    return found.hexdigest()


def write_manifest(path: Path, task: Task, episodes: Sequence[Episode]) -> str:
    """Write the clip names of episodes as JSON, so that anyone can score the same draws.

    Returns
    -------
    str
        The digest, which result rows carry too.
    """
    files, emotions = (task.table[name].to_numpy() for name in ("file", "emotion"))

    def side(rows: np.ndarray) -> dict[str, str]:
        return dict(zip(files[rows], emotions[rows]))

    facts = {
        "task": task.name,
        "version": task.version,
        "digest": digest(task, episodes),
        "episodes": [
            {
                "index": episode.index,
                "classes": list(episode.classes),
                "support": side(episode.support),
                "query": side(episode.query),
            }
            for episode in episodes
        ],
    }
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    return facts["digest"]


def read_manifest(path: Path, task: Task) -> list[Episode]:
    """Read the episodes of a manifest back for the same task.

    Raises
    ------
    ValueError
        If the manifest belongs to another task or version, names clips that the task does not
        have, or was changed after it was written.
    """
    facts = json.loads(path.read_text(encoding="utf-8"))
    if (facts["task"], facts["version"]) != (task.name, task.version):
        raise ValueError(
            f"{path} holds episodes of {facts['task']} version {facts['version']}, not of "
            f"{task.name} version {task.version}"
        )
    row = {file: index for index, file in enumerate(task.table["file"])}
    sides = [entry[side] for entry in facts["episodes"] for side in ("support", "query")]
    missing = [file for side in sides for file in side if file not in row]
    if missing:
        raise ValueError(
            f"{path} names {len(missing)} clips that are not present, such as {missing[0]}"
        )
    emotions = task.table["emotion"].to_numpy()
    found, renamed = [], False
    for entry in facts["episodes"]:
        names = entry["classes"]
        sides = [entry["support"], entry["query"]]
        rows = [np.array([row[file] for file in side], int) for side in sides]
        targets = [np.array([names.index(name) for name in side.values()], int) for side in sides]
        found.append(Episode(task.name, entry["index"], tuple(names), *rows, *targets))
        spoken = [list(side.values()) for side in sides]
        renamed |= spoken != [emotions[side].tolist() for side in rows]
    if renamed or digest(task, found) != facts["digest"]:
        raise ValueError(f"{path} was changed after it was written: its digest does not agree")
    return found


def tensors(episode: Episode, features: Features) -> EpisodeBatch:
    """Gather the features of an episode's clips."""
    has = np.isin(np.arange(len(episode.classes)), episode.support_targets)
    return EpisodeBatch(
        support=features.batch(episode.support, episode.support_targets, has),
        query=features.batch(episode.query, episode.query_targets, has),
    )
