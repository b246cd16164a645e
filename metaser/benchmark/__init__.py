"""The benchmark harness: methods compared on the same episodes of languages they have not heard."""

from metaser.benchmark.card import leakage
from metaser.benchmark.estimate import forecast
from metaser.benchmark.harness import Order, Run, measure, run, run_job
from metaser.benchmark.materials import Material, gather
from metaser.benchmark.plan import Cell, Job, Plan, choose_sources, make_plan, present_tasks
from metaser.benchmark.scoring import cell_sampler, score_cell, write_episodes
from metaser.benchmark.trainings import build_method, source_episodes, train_job, train_method
from metaser.tasks.task import restrict

__all__ = [
    "Cell",
    "Job",
    "Material",
    "Order",
    "Plan",
    "Run",
    "build_method",
    "cell_sampler",
    "choose_sources",
    "forecast",
    "gather",
    "leakage",
    "make_plan",
    "measure",
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
