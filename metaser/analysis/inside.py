"""Look into a trained network: what corrupted clips cost, and what adapting changes."""

from dataclasses import dataclass

import pandas as pd

from metaser import stats
from metaser.analysis.layers import probe
from metaser.analysis.transfer import Pool
from metaser.benchmark.materials import Material, gather
from metaser.benchmark.plan import Job
from metaser.benchmark.trainings import train_method
from metaser.contracts import LearningMethod, model_of
from metaser.episodes import TaskSampler, tensors
from metaser.features.extraction import extract
from metaser.features.table import normalise
from metaser.frontends import make_frontend
from metaser.methods.inner_loop import predictor
from metaser.metrics import uar
from metaser.protocol.build import settle
from metaser.protocol.schema import Episodes
from metaser.recording import Situation

SHOTS = 5
"""Labelled clips per class."""

PROBED = 20
"""Episodes per target in which the layers of a network are compared."""

CORRUPTIONS: dict[str, Situation | None] = {
    "as recorded": None,
    "noise, 20 dB": Situation(noise=20.0),
    "noise, 5 dB": Situation(noise=5.0),
    "room, 0.6 s": Situation(reverberation=0.6, wet=1.0),
    "telephone band, 300 to 3400 Hz": Situation(lowest=300.0, highest=3400.0),
    "GSM codec": Situation(codec="gsm"),
    "MP3 codec": Situation(codec="mp3"),
}
"""Recording situations in which a target is heard, while the trained network stays the same."""


@dataclass(frozen=True)
class Trained:
    """A method that is trained on the sources of a protocol, and targets that it has not heard.

    Attributes
    ----------
    pool : Pool
        Protocol and tasks.
    setup : str
        Name of the setup.
    method : LearningMethod
        The trained method, ready to adapt.
    materials : dict of str to Material
        Sources and targets with their features, by the name of the task.
    seed : int
        Seed of the training and the episodes.
    """

    pool: Pool
    setup: str
    method: LearningMethod
    materials: dict[str, Material]
    seed: int

    @property
    def episodes(self) -> Episodes:
        """How the protocol draws episodes."""
        episodes = self.pool.protocol.episodes
        assert episodes is not None  # a protocol that looks inside has no random split
        return episodes

    def sampler(self, target: str) -> TaskSampler:
        """Return the sampler of a target's episodes."""
        protocol = self.pool.protocol
        return TaskSampler(
            self.materials[target].task,
            protocol.classes,
            SHOTS,
            self.episodes.queries,
            self.seed,
            protocol.speakers,
        )


def train_once(pool: Pool, setup: str, seed: int = 0) -> Trained:
    """Train the first method of a setup on all sources whose language is no target's.

    Parameters
    ----------
    pool : Pool
        Protocol and tasks.
    setup : str
        Name of the setup.
    seed : int
        Seed of the training and the episodes.
    """
    targets = pool.targets()
    sources = [name for name in pool.sources(targets[0]) if name not in targets]
    for target in targets:
        sources = [name for name in sources if name in pool.sources(target)]
    own = pool.protocol.setups[setup]
    job = Job(setup, (next(iter(own.methods)),), tuple(sources), tuple(targets), seed)
    settled = settle(pool.protocol)[setup]
    materials = gather(settled, [job], pool.tasks, pool.places)
    method = train_method(job.methods[0], pool.protocol, settled.setup, job, materials)
    return Trained(pool, setup, method, materials, seed)


def corrupted(trained: Trained, target: str) -> pd.DataFrame:
    """Score a trained network on the same clips of a target in several recording situations.

    The network, the episodes and the language stay the same, so every loss compared with the clips
    as recorded comes from the acoustics alone. Support and query are heard in the same situation,
    and the target is normalised in it.

    Parameters
    ----------
    trained : Trained
        The network; not changed.
    target : str
        Name of the target.

    Returns
    -------
    DataFrame
        One row per situation and number of ``shots`` (0: not adapted): mean ``uar`` and its
        interval over episodes, the ``difference`` from the clips as recorded with its interval
        (``stats.paired_test``), and the number of ``episodes``. There is one training, and the
        intervals say nothing about others.
    """
    pool, task = trained.pool, trained.materials[target].task
    setup = pool.protocol.setups[trained.setup]
    model = model_of(trained.method)
    assert setup.frontend is not None and model is not None  # corruptions are heard by a network
    frontend, sampler = make_frontend(setup.frontend), trained.sampler(target)
    uars: dict[tuple[str, int], list[float]] = {}
    for name, situation in CORRUPTIONS.items():
        heard = extract(
            task, frontend, pool.places.cache, situation=situation, jobs=pool.places.jobs
        )
        heard = normalise(heard, task, setup.normalise)
        for index in range(trained.episodes.count):
            episode = sampler.episode(index)
            batch = tensors(episode, heard)
            unadapted = predictor(model, {}, batch.support.classes)
            for shots, predict in ((0, unadapted), (SHOTS, trained.method.adapt(batch.support))):
                guesses = predict(batch.query.modalities).argmax(dim=1).numpy()
                score = uar(episode.query_targets, guesses)
                uars.setdefault((name, shots), []).append(score)
    rows = []
    for (name, shots), scores in uars.items():
        mean = stats.interval(scores)
        loss = stats.paired_test(scores, uars["as recorded", shots])
        row = {"target": target, "situation": name, "shots": shots, "episodes": len(scores)}
        row |= {"uar": mean.mean, "low": mean.low, "high": mean.high}
        row |= {"difference": loss.difference}
        rows.append(row | {"difference_low": loss.low, "difference_high": loss.high})
    return pd.DataFrame(rows)


def probed(trained: Trained, target: str) -> pd.DataFrame:
    """Measure how far adapting to a target changes each layer of a trained network.

    Parameters
    ----------
    trained : Trained
        The network; not changed.
    target : str
        Name of the target.

    Returns
    -------
    DataFrame
        One row per layer: mean ``change`` and ``cka`` (see ``analysis.layers.probe``) with 95 %
        intervals over the ``episodes``.
    """
    sampler, features = trained.sampler(target), trained.materials[target].plain
    tables = [
        probe(trained.method, tensors(sampler.episode(index), features)) for index in range(PROBED)
    ]
    rows = []
    for layer, values in pd.concat(tables).groupby("layer", sort=False):
        row = {"target": target, "setup": trained.setup, "layer": layer, "episodes": len(values)}
        for name in ("change", "cka"):
            mean = stats.interval(values[name].to_numpy())
            row |= {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
        rows.append(row)
    return pd.DataFrame(rows)
