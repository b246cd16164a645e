"""Where a benchmark's trainings run: in processes of this machine, or on a Dask or Ray cluster."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from joblib import parallel_config

PATIENCE = 10.0
"""Seconds within which a cluster must answer and show a worker."""


@contextmanager
def workplace(scheduler: str, jobs: int) -> Iterator[tuple[dict, Callable]]:
    """Yield joblib's arguments for a place of work, and what hands it large data once."""
    kind = scheduler.partition("://")[0]
    everywhere = {"n_jobs": -1, "pre_dispatch": "all"}  # workers that join later find work, too
    if not scheduler:
        yield {"n_jobs": jobs}, lambda materials: materials
    elif kind in ("tcp", "tls"):
        with _dask(scheduler) as (backend, share):
            yield {"backend": backend, **everywhere}, share
    elif kind == "ray":
        with _ray(scheduler) as backend:
            yield {"backend": backend, **everywhere}, lambda materials: materials
    else:
        raise ValueError(
            f"the scheduler must be tcp://HOST:PORT or tls://HOST:PORT (Dask), or ray://HOST:PORT "
            f"(Ray), not {scheduler!r}"
        )


@contextmanager
def _dask(address: str) -> Iterator[tuple[Any, Callable]]:
    """Yield joblib's backend for a Dask cluster, and what hands it large data once."""
    try:
        import dask
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError(
            f'the scheduler {address} needs Dask: pip install "dask[distributed]"'
        ) from error
    try:
        with ThreadPoolExecutor(1) as aside:  # a notebook's own thread has a loop already
            aside.submit(asyncio.run, _shake_hands(address)).result()
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address} within {PATIENCE:.0f} s: start one by `dask "
            f"scheduler`, or correct the address ({error!r})"
        ) from error
    with client, dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ConnectionError(
                f"the Dask scheduler at {address} has no workers: start them by "
                f"`dask worker {address} --nthreads 1`"
            ) from error
        crowded = {name: count for name, count in client.nthreads().items() if count > 1}
        if crowded:
            raise ValueError(
                "workers must have one thread each, because a process trains one model at a time, "
                f"but threads are {crowded}: start them by `dask worker {address} --nthreads 1 "
                "--nworkers N`"
            )
        with parallel_config(backend="dask", client=client) as config:
            backend = config["backend"]
        _heed_errors(backend)
        _use_a_lone_worker(backend)
        try:
            # A task, unlike scattered data, is made again when its workers die.
            yield backend, lambda materials: client.submit(lambda: materials, pure=False)
        except CancelledError as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"the cluster at {address} gave up: {reason} Rows that had come are kept; the same "
                "command goes on where it was"
            ) from error


async def _shake_hands(address: str) -> None:
    """Fail unless Dask answers in time; a client waits for ever on a port of something else."""
    from dask.distributed import Security, connect

    how = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=PATIENCE, **how), PATIENCE)
    await comm.close()


def _heed_errors(backend: Any) -> None:
    """Hand joblib the error of a job that Dask gave up; joblib 1.6 would wait for it for ever."""
    submit = backend.submit

    def heeding(work: Callable, callback: Callable) -> Any:
        def tell(job: Any) -> None:
            if job.exception():
                callback(CancelledError(str(job.exception())))

        job = submit(work, callback)
        job.add_done_callback(tell)
        return job

    backend.submit = heeding


def _use_a_lone_worker(backend: Any) -> None:
    """Tell joblib of two workers at least; with one it would do the work in this process."""
    count = backend.effective_n_jobs
    backend.effective_n_jobs = lambda n_jobs=1: max(2, count(n_jobs))


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    """Yield joblib's backend for a Ray cluster."""
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError(
            f'the scheduler {address} needs Ray: pip install "ray[client]"'
        ) from error
    try:
        context = ray.init(address, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address}: start one by `ray start --head "
            f"--ray-client-server-port PORT`, or correct the address ({error})"
        ) from error
    with context:
        register_ray()
        with parallel_config(backend="ray") as config:
            backend = config["backend"]
        backend.supports_return_generator = True  # rows as they come; the class says it cannot
        yield backend
