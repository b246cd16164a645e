"""The benchmark harness: methods compared on the same episodes of languages they have not heard."""

from metaser.benchmark.card import leakage
from metaser.benchmark.estimate import forecast
from metaser.benchmark.harness import run, run_job
from metaser.benchmark.materials import Material, gather
from metaser.benchmark.plan import (
    Job,
    choose_sources,
    finished_cells,
    job_cells,
    other_languages,
    plan_jobs,
    present_tasks,
    restrict,
)
from metaser.benchmark.scoring import cell_sampler, score_cell, write_episodes
from metaser.benchmark.trainings import build_method, source_episodes, train_job, train_method

__all__ = [
    "Job",
    "Material",
    "build_method",
    "cell_sampler",
    "choose_sources",
    "finished_cells",
    "forecast",
    "gather",
    "job_cells",
    "leakage",
    "other_languages",
    "plan_jobs",
    "present_tasks",
    "restrict",
    "run",
    "run_job",
    "score_cell",
    "source_episodes",
    "train_job",
    "train_method",
    "write_episodes",
]
