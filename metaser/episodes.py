"""Few-shot episodes: which clips of a task a method adapts to, and which ones it is scored on.

The clips to adapt to are the *support*, those to score are the *query*. Episode *i* of a sampler
depends only on (task, protocol, seed, i): it is the same whoever asks for it, and whatever was
drawn before, so that every method is scored on the same draws.

Examples
--------
Four speakers with two angry and two sad clips each. A stand-in has the attributes of a task that a
sampler reads; ``metaser.tasks.read_task`` gives a real one.

>>> from types import SimpleNamespace
>>> import pandas as pd
>>> table = pd.DataFrame({"emotion": ["angry", "angry", "sad", "sad"] * 4, "clique": range(16)})
>>> table["unit"] = table.index // 4  # the speaker
>>> task = SimpleNamespace(name="xx_toy", version=1, table=table)

One clip per class to adapt to, two per class to score, no speaker on both sides:

>>> episode = TaskSampler(task, ("angry", "sad"), shots=1, queries=2).episode(0)
>>> episode.support_targets.tolist(), episode.query_targets.tolist()
([0, 1], [0, 0, 1, 1])
>>> set(table["unit"][episode.support]) & set(table["unit"][episode.query])
set()
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaser.batch import EpisodeBatch
from metaser.features.table import Features
from metaser.files import write_json
from metaser.tasks.task import Task, clips_of
from metaser.tasks.task import join_same_audio as join_same_audio

SPEAKERS = ("disjoint", "same", "any")
"""How the speakers of support and query may relate, see `TaskSampler`."""

ATTEMPTS = 512
"""Random splits of the speakers that are tried at once."""

ROUNDS = 32
"""How often that many splits are tried before the sampler gives up."""


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
        Class names; targets are indices into it.
    support, query : ndarray of int
        Rows of the task's table.
    support_targets, query_targets : ndarray of int
        Class index of each row.

    Examples
    --------
    >>> rows, targets = np.array([3, 8]), np.array([0, 1])
    >>> episode = Episode("xx_toy", 0, ("angry", "sad"), rows, rows + 1, targets, targets)
    >>> [episode.classes[target] for target in episode.support_targets]
    ['angry', 'sad']
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
    """Draw N-way K-shot Q-query episodes of one task.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    classes : sequence of str
        The protocol's classes. Their order gives the class indices, the same for every task. A
        task that lacks some of them gives episodes over the others, with the same indices.
    shots, queries : int
        Support and query clips per class, at least 1.
    seed : int
        Another seed gives other episodes.
    speakers : {"disjoint", "same", "any"}
        Support and query share no speaker ("disjoint"), come from one speaker ("same"), or are
        drawn regardless of speakers ("any"). Clips that share audio are never on both sides.
    permute : bool
        Draw new class indices for each episode instead of the fixed ones.
    units : sequence of int, optional
        Draw only from clips of these units (speakers) of the task's table.
    unequal : float, optional
        Draw the shares of the classes, for support and query apart, from a Dirichlet distribution
        with this concentration; the smaller, the more unequal. The commonest class then has the
        ``shots`` and ``queries``, the others have fewer, at least one.

    Raises
    ------
    ValueError
        If the task cannot give such episodes; the message names the class and the counts.

    Examples
    --------
    A class keeps its index where a task lacks another: "sad" is 2, though nobody is happy here.

    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> table = pd.DataFrame({"emotion": ["angry", "sad"] * 6, "clique": range(12)})
    >>> task = SimpleNamespace(name="xx_toy", version=1, table=table.assign(unit=table.index // 2))
    >>> sampler = TaskSampler(task, ("angry", "happy", "sad"), shots=2, queries=1)
    >>> episode = sampler.episode(0)
    >>> episode.support_targets.tolist(), episode.query_targets.tolist()
    ([0, 0, 2, 2], [0, 2])

    Any episode can be drawn again, in any order:

    >>> bool((sampler.episode(0).support == episode.support).all())
    True
    """

    task: Task
    classes: Sequence[str]
    shots: int
    queries: int
    seed: int = 0
    speakers: str = "disjoint"
    permute: bool = False
    units: Sequence[int] | None = None
    unequal: float | None = None
    _counts: np.ndarray = field(init=False, repr=False, compare=False)
    _rows: np.ndarray = field(init=False, repr=False, compare=False)
    _targets: np.ndarray = field(init=False, repr=False, compare=False)
    _units: np.ndarray = field(init=False, repr=False, compare=False)
    _present: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.speakers not in SPEAKERS:
            raise ValueError(f"speakers must be one of {SPEAKERS}, not {self.speakers!r}")
        if self.shots < 1 or self.queries < 1:
            raise ValueError(
                "an episode must have at least 1 shot and 1 query, not "
                f"{self.shots} and {self.queries}: ask for more"
            )
        if self.unequal is not None and not self.unequal > 0:
            raise ValueError(f"unequal must be above 0, not {self.unequal}: take one such as 1")
        table = clips_of(self.task)
        code = {name: index for index, name in enumerate(self.classes)}
        targets = table["emotion"].map(code)
        eligible = targets.notna()
        if self.units is not None:
            eligible &= table["unit"].isin(self.units)
        if self.speakers == "same":
            eligible &= ~table["clique"].where(eligible).duplicated()
        rows = np.flatnonzero(eligible)
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

    def _check(self) -> None:
        """Refuse a task from which no episode can be drawn."""
        name, needed = self.task.name, self.shots + self.queries
        if len(self._present) < 2:
            present = [self.classes[index] for index in self._present]
            raise ValueError(
                f"an episode must have at least two classes, but {name} holds {len(present)} of "
                f"{list(self.classes)} ({present}): choose other classes or another task"
            )
        for index in self._present:
            clip_count = self._counts[:, index].sum()
            if clip_count < needed:
                raise ValueError(
                    f"every class must have {needed} clips for {self.shots} shots + {self.queries} "
                    f"queries, but {self.classes[index]!r} of {name} holds {clip_count} clips: use "
                    "fewer shots or queries, or leave the class out"
                )
        if self.speakers == "disjoint" and len(self._counts) < 2:
            raise ValueError(
                f"support and query must have different speakers, but {name} has one speaker: add "
                "recordings of another speaker, or choose a protocol with speakers = 'any'"
            )
        self.episode(0)

    def _generator(self, index: int) -> np.random.Generator:
        """Random numbers for one episode, the same at every call."""
        protocol = [self.task.name, self.task.version, *self.classes, self.shots, self.queries]
        protocol += [self.speakers, self.permute, *filter(None, [self.unequal])]
        key = zlib.crc32("|".join(map(str, protocol)).encode())
        return np.random.default_rng([self.seed, index, key])

    def episode(self, index: int) -> Episode:
        """Return episode ``index`` (>= 0), the same at every call.

        Raises
        ------
        ValueError
            If no split of the speakers leaves enough clips of every class on both sides.
        """
        rng = self._generator(index)
        if self.speakers == "same":
            support_side, query_side = self._within_unit(rng)
        else:
            side = self._sides(rng)
            support_side, query_side = np.flatnonzero(side), np.flatnonzero(~side)
        support_parts, query_parts = [], []
        shots, queries = self._sizes(self.shots, rng), self._sizes(self.queries, rng)
        for target, shot_count, query_count in zip(self._present, shots, queries):
            first = rng.permutation(support_side[self._targets[support_side] == target])
            second = rng.permutation(query_side[self._targets[query_side] == target])
            support_parts.append(first[:shot_count])
            query_parts.append(second[:query_count])
        support, query = np.concatenate(support_parts), np.concatenate(query_parts)
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

    def _sizes(self, most: int, rng: np.random.Generator) -> list[int]:
        """Return how many clips each class that is present gives."""
        if self.unequal is None:
            return [most] * len(self._present)
        shares = rng.dirichlet(np.full(len(self._present), self.unequal))
        return np.maximum(np.rint(most * shares / shares.max()), 1).astype(int).tolist()

    def _sides(self, rng: np.random.Generator) -> np.ndarray:
        """Split the units at random so that every class has its shots and its queries.

        Returns (clips,) bool, True where a clip is on the side of the support.
        """
        unit_count = len(self._counts)
        counts = self._counts[:, self._present]
        for _ in range(ROUNDS):
            sizes = rng.integers(1, max(unit_count, 2), size=(ATTEMPTS, 1))
            sides = rng.random((ATTEMPTS, unit_count)).argsort(axis=1) < sizes
            enough = (sides @ counts >= self.shots) & (~sides @ counts >= self.queries)
            feasible = np.flatnonzero(enough.all(axis=1))
            if len(feasible):
                return np.asarray(sides[feasible[0]][self._units])
        rare = self._present[enough.mean(axis=0).argmin()]
        holder_count = np.count_nonzero(self._counts[:, rare])
        units, remedy = "clips", ""
        if self.speakers == "disjoint":
            units, remedy = "speakers", ", or choose a protocol with speakers = 'any'"
        raise ValueError(
            f"a split of the {unit_count} {units} of {self.task.name} must leave {self.shots} "
            f"support and {self.queries} query clips of every class, but none of "
            f"{ROUNDS * ATTEMPTS} random ones does; {self.classes[rare]!r} is the hardest "
            f"({holder_count} of the {units} have it): use fewer shots or queries, leave the class "
            f"out{remedy}"
        )

    def _within_unit(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw one speaker, and split this speaker's clips of each class into shots and others."""
        needed = self.shots + self.queries
        able = np.flatnonzero((self._counts[:, self._present] >= needed).all(axis=1))
        if len(able) == 0:
            raise ValueError(
                f"a speaker must have {needed} clips of each class for speakers = 'same', but no "
                f"speaker of {self.task.name} has: use fewer shots or queries, or "
                "speakers = 'disjoint'"
            )
        rows = rng.permutation(np.flatnonzero(self._units == rng.choice(able)))
        first = np.concatenate(
            [rows[self._targets[rows] == target][: self.shots] for target in self._present]
        )
        return first, np.setdiff1d(rows, first)


@dataclass(frozen=True)
class SplitSampler:
    """Draw random splits of a task into training and test clips, regardless of speakers.

    This is the protocol of the MetaSER paper. The support is a fraction of the training clips, the
    query is all test clips; both keep the class proportions. Clips that share audio are on one
    side.

    Parameters
    ----------
    task : Task
        A task whose audio is present.
    classes : sequence of str
        The protocol's classes; their order gives the class indices.
    test : float
        Share of each class's clips to test on, in (0, 1).
    fraction : float
        Share of the other clips to learn from, in (0, 1]; smaller shares are parts of larger ones.
    seed : int
        Another seed gives other splits.

    Examples
    --------
    Ten clips per class: a fifth is tested on, and half of the others is learnt from.

    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> table = pd.DataFrame({"emotion": ["angry", "sad"] * 10, "clique": range(20)})
    >>> task = SimpleNamespace(name="xx_toy", version=1, table=table)
    >>> split = SplitSampler(task, ("angry", "sad"), test=0.2, fraction=0.5).episode(0)
    >>> np.bincount(split.support_targets).tolist(), np.bincount(split.query_targets).tolist()
    ([4, 4], [2, 2])
    """

    task: Task
    classes: Sequence[str]
    test: float
    fraction: float
    seed: int = 0

    def episode(self, index: int) -> Episode:
        """Return split ``index`` (>= 0), the same at every call.

        Raises
        ------
        ValueError
            If a class has too few clips for both sides; the message names it.
        """
        key = zlib.crc32(f"{self.task.name}|{self.task.version}|{self.test}".encode())
        rng = np.random.default_rng([self.seed, index, key])
        support, query = [], []
        table = clips_of(self.task)
        cliques, emotions = (table[name].to_numpy() for name in ("clique", "emotion"))
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
                    "every class must have clips on both sides of a split with test = "
                    f"{self.test}, but {name!r} of {self.task.name} holds {len(rows)} clips: "
                    "leave the class out, or add recordings"
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


def digest(task: Task, episodes: Sequence[Episode]) -> str:
    """Return a fingerprint of the clips that episodes draw, in their order.

    Parameters
    ----------
    task : Task
        The task of the episodes.
    episodes : sequence of Episode
        Episodes of this task.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    Two episodes with the same clips on other sides have other digests:

    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> from dataclasses import replace
    >>> task = SimpleNamespace(table=pd.DataFrame({"file": ["a.wav", "b.wav"]}))
    >>> one, two, targets = np.array([0]), np.array([1]), np.array([0])
    >>> first = Episode("xx_toy", 0, ("sad",), one, two, targets, targets)
    >>> digest(task, [first]), digest(task, [replace(first, support=two, query=one)])
    ('b6df38d39f36f086', '3831348dad71a12c')
    """
    files = clips_of(task)["file"].to_numpy()
    fingerprint = hashlib.blake2b(digest_size=8)
    for episode in episodes:
        for side in (episode.support, episode.query):
            fingerprint.update("\n".join([*files[side], "", ""]).encode())
    return fingerprint.hexdigest()


def write_manifest(path: Path, task: Task, episodes: Sequence[Episode]) -> str:
    """Write the clip names of episodes as JSON, so that anyone can score the same draws.

    Parameters
    ----------
    path : Path
        The file, replaced if it exists.
    task : Task
        The task of the episodes.
    episodes : sequence of Episode
        Episodes of this task.

    Returns
    -------
    str
        The digest, as result rows have it.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> table = pd.DataFrame({"file": ["a.wav", "b.wav"], "emotion": ["sad", "sad"]})
    >>> task = SimpleNamespace(name="xx_toy", version=1, table=table)
    >>> target = np.array([0])
    >>> episode = Episode("xx_toy", 0, ("sad",), np.array([0]), np.array([1]), target, target)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "episodes.json"
    ...     written = write_manifest(path, task, [episode])
    ...     manifest = json.loads(path.read_text(encoding="utf-8"))
    >>> manifest["digest"] == written == digest(task, [episode])
    True
    >>> manifest["episodes"]
    [{'index': 0, 'classes': ['sad'], 'support': {'a.wav': 'sad'}, 'query': {'b.wav': 'sad'}}]
    """
    table = clips_of(task)
    files, emotions = (table[name].to_numpy() for name in ("file", "emotion"))

    def side(rows: np.ndarray) -> dict[str, str]:
        """File to class of the clips of one side."""
        return dict(zip(files[rows], emotions[rows]))

    fingerprint = digest(task, episodes)
    manifest = {
        "task": task.name,
        "version": task.version,
        "digest": fingerprint,
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
    write_json(path, manifest, indent=1)
    return fingerprint


def read_manifest(path: Path, task: Task) -> list[Episode]:
    """Read the episodes that `write_manifest` wrote for the same task.

    Parameters
    ----------
    path : Path
        The file.
    task : Task
        The task of the episodes, whose audio is present.

    Returns
    -------
    list of Episode
        The episodes in the order of the file.

    Raises
    ------
    ValueError
        If the manifest belongs to another task or version, names clips that the task does not
        have, or was changed after it was written.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> import pandas as pd
    >>> table = pd.DataFrame({"file": ["a.wav", "b.wav"], "emotion": ["sad", "sad"]})
    >>> task = SimpleNamespace(name="xx_toy", version=1, table=table)
    >>> target = np.array([0])
    >>> episode = Episode("xx_toy", 0, ("sad",), np.array([0]), np.array([1]), target, target)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "episodes.json"
    ...     fingerprint = write_manifest(path, task, [episode])
    ...     (again,) = read_manifest(path, task)
    >>> table["file"][again.support].tolist(), table["file"][again.query].tolist()
    (['a.wav'], ['b.wav'])
    """
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if (manifest["task"], manifest["version"]) != (task.name, task.version):
        raise ValueError(
            f"{path} must hold episodes of {task.name} version {task.version}, not of "
            f"{manifest['task']} version {manifest['version']}: write it again for this task"
        )
    table = clips_of(task)
    row = {file: index for index, file in enumerate(table["file"])}
    all_sides = [entry[side] for entry in manifest["episodes"] for side in ("support", "query")]
    missing = [file for side in all_sides for file in side if file not in row]
    if missing:
        raise ValueError(
            f"all clips of {path} must be present, but {len(missing)} are not, such as "
            f"{missing[0]}: complete the corpus"
        )
    emotions = table["emotion"].to_numpy()
    episodes, relabelled = [], False
    for entry in manifest["episodes"]:
        names = entry["classes"]
        sides = [entry["support"], entry["query"]]
        rows = [np.array([row[file] for file in side], int) for side in sides]
        targets = [np.array([names.index(name) for name in side.values()], int) for side in sides]
        episodes.append(Episode(task.name, entry["index"], tuple(names), *rows, *targets))
        labels = [list(side.values()) for side in sides]
        relabelled |= labels != [emotions[side].tolist() for side in rows]
    if relabelled or digest(task, episodes) != manifest["digest"]:
        raise ValueError(
            f"{path} must be as it was written, but its digest does not agree: "
            "undo the changes, or write it again"
        )
    return episodes


def tensors(episode: Episode, features: Features) -> EpisodeBatch:
    """Gather the features of an episode's clips.

    Parameters
    ----------
    episode : Episode
        An episode of the task of ``features``.
    features : Features
        Features of all clips of the task, in the order of its table.

    Returns
    -------
    EpisodeBatch
        Support and query; their ``classes`` are True where the support has a clip of the class.

    Examples
    --------
    Four clips of one frame with two channels each; the first two are the support.

    >>> values = np.arange(8, dtype=np.float32).reshape(4, 1, 2)
    >>> features = Features(values, lengths=np.ones(4, int), hashes=np.array(["", "", "", ""]))
    >>> sides, targets = np.array([[0, 1], [2, 3]]), np.array([0, 2])
    >>> episode = Episode("xx_toy", 0, ("angry", "happy", "sad"), *sides, targets, targets)
    >>> batch = tensors(episode, features)
    >>> batch.support.modalities["audio"].values.tolist()
    [[[0.0, 1.0]], [[2.0, 3.0]]]
    >>> batch.query.targets.tolist(), batch.query.classes.tolist()
    ([0, 2], [True, False, True])
    """
    present = np.isin(np.arange(len(episode.classes)), episode.support_targets)
    return EpisodeBatch(
        support=features.batch(episode.support, episode.support_targets, present),
        query=features.batch(episode.query, episode.query_targets, present),
    )
