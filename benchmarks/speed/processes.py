"""Two processes against one, each with trainings of its own, as a benchmark runs them.

Run with ``OMP_NUM_THREADS=1 python benchmarks/speed/processes.py``. One and two processes take
turns; each takes meta-gradients of second-order MAML on vectors for some seconds.
"""

import time
from statistics import median

import torch
from joblib import Parallel, delayed

from metaser.backbones import MLP
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.meta_batch import MetaBatch

SECONDS, ROUNDS, META_BATCH = 4.0, 5, 16


def _clips(count: int) -> Batch:
    audio = Padded(torch.randn(count, 1, 88), torch.ones(count, 1, dtype=torch.bool))
    return Batch({"audio": audio}, torch.arange(count) % 4, torch.ones(4, dtype=torch.bool))


def episodes_per_second() -> float:
    """Meta-gradients of 16 episodes (20 support, 60 query clips, 5 steps), again and again."""
    torch.set_num_threads(1)
    episodes = [EpisodeBatch(_clips(20), _clips(60)) for _ in range(META_BATCH)]
    engine = MetaBatch(MAML(Model(MLP(88, (128, 64)), 4), second_order=True))
    engine.backward(episodes)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        engine.backward(episodes)
        done += META_BATCH
    return done / (time.perf_counter() - started)


def main() -> None:
    ratios = []
    with Parallel(n_jobs=2) as pool:
        pool(delayed(episodes_per_second)() for _ in range(2))
        for _ in range(ROUNDS):
            alone = pool([delayed(episodes_per_second)()])[0]
            both = sum(pool(delayed(episodes_per_second)() for _ in range(2)))
            ratios.append(both / alone)
            print(f"one {alone:.0f}, two {both:.0f} episodes/s: x {ratios[-1]:.2f}", flush=True)
    print(f"median x {median(ratios):.2f}")


if __name__ == "__main__":
    main()
