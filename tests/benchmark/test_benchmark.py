"""A protocol end to end, on a small made-up corpus."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from joblib import Parallel, delayed
from rich.console import Console

from metaser import benchmark, metrics
from metaser.benchmark import cluster as cluster_module
from metaser.benchmark import harness
from metaser.benchmark import materials as materials_module
from metaser.files import Places
from metaser.methods import METHODS
from metaser.protocol import Protocol, build

CLASSES = ["angry", "happy", "neutral", "sad"]
VARYING = {"created", "train_seconds", "adapt_seconds"}
IN_THREADS = {"processes": False, "protocol": "tcp://", "dashboard_address": ":0"}
FACTS = {
    "name": "trial",
    "title": "A trial",
    "description": "Everything small.",
    "classes": CLASSES,
    "sources": ["fa_synthetic", "it_synthetic"],
    "targets": ["ur_synthetic"],
    "seeds": [0, 1],
    "episodes": {"shots": [1, 2], "queries": 2, "count": 3},
    "setups": {
        "mel": {
            "frontend": {"name": "log_mel", "bands": 8},
            "normalise": "corpus",
            "backbone": {"name": "mlp", "hidden": [8]},
            "training": {
                "queries": 2,
                "shots": [1],
                "held_out": 0.5,
                "updates": 4,
                "meta_batch": 2,
            },
            "methods": {"metaser": {}, "logistic_regression": {}, "majority": {}},
        }
    },
}


def _protocol(methods=None, **changes) -> Protocol:
    facts = json.loads(json.dumps(FACTS | changes))
    if methods is not None:
        facts["setups"]["mel"]["methods"] = methods
    return Protocol.model_validate(facts)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(spoken, cache):
    def run(out, protocol=None, **options):
        told = io.StringIO()
        benchmark.run(
            protocol or _protocol(),
            out,
            data=spoken / "audio",
            task_folders=[spoken / "tasks"],
            cache=cache,
            console=Console(file=told, width=300),
            **options,
        )
        return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()], told

    return run


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("results")
    return out, run(out, command="metaser benchmark trial")[0]


@pytest.fixture
def results(measured, tmp_path) -> Path:
    """A copy of the measured results that a test may harm."""
    out = tmp_path / "copy"
    out.mkdir()
    for name in ("rows.jsonl", "run.json"):
        (out / name).write_bytes((measured[0] / name).read_bytes())
    return out


@pytest.fixture
def tasks(spoken):
    return benchmark.present_tasks(_protocol(), Places.at(spoken / "audio", spoken / "tasks"))[0]


def _plan(protocol: Protocol, tasks: dict) -> benchmark.Plan:
    return benchmark.Plan(protocol, build.settle(protocol), tasks)


def _scores(rows) -> list[dict]:
    rows = [{key: value for key, value in row.items() if key not in VARYING} for row in rows]
    return sorted(rows, key=lambda row: (row["method"], row["shots"] or 0, row["seed"]))


def test_every_cell_has_one_row(measured):
    cells = [(row["method"], row["target"], row["shots"], row["seed"]) for row in measured[1]]
    methods = FACTS["setups"]["mel"]["methods"]
    assert sorted(cells) == sorted(
        (method, "ur_synthetic", shots, seed)
        for method in methods
        for shots in (1, 2)
        for seed in (0, 1)
    )


def test_rows_hold_what_the_report_needs(measured):
    for row in measured[1]:
        assert row["synthetic"] is True and row["language"] == "ur" and row["role"] == "target"
        assert row["classes"] == CLASSES and row["episodes"] == 3 == len(row["uar"])
        assert row["sources"] == ["fa_synthetic", "it_synthetic"]
        assert row["speakers"] == "disjoint" and row["normalise"] == "corpus"
        assert np.sum(row["confusion"]) == 3 * 4 * 2
        hits = np.diag(row["confusion"]) / np.sum(row["confusion"], axis=1)
        assert np.mean(hits) == pytest.approx(np.mean(row["uar"]), abs=1e-4)  # balanced queries
    majority = [row for row in measured[1] if row["method"] == "majority"]
    assert all(row["uar"] == [0.25] * 3 for row in majority)
    parameters = {row["method"]: row["parameters"] for row in measured[1]}
    network = 8 * 8 + 8 + 8 * 4 + 4
    assert parameters["majority"] == 0 and parameters["metaser"] >= network


def test_a_score_is_that_of_its_episodes(measured, spoken, cache, tasks):
    """The scores of a row, once more by hand, for a method without training."""
    protocol = _protocol()
    row = next(
        row
        for row in measured[1]
        if (row["method"], row["shots"], row["seed"]) == ("logistic_regression", 2, 1)
    )
    from metaser.episodes import TaskSampler, tensors
    from metaser.features import extract, normalise
    from metaser.frontends import make_frontend

    task = tasks["ur_synthetic"]
    frontend = make_frontend(protocol.setups["mel"].frontend)
    features = normalise(extract(task, frontend, cache), task, "corpus")
    sampler = TaskSampler(task, CLASSES, 2, 2, seed=1)
    found = []
    for index in range(3):
        episode = sampler.episode(index)
        batch = tensors(episode, features)
        scores = METHODS["logistic_regression"]().adapt(batch.support)(batch.query.modalities)
        found.append(metrics.uar(episode.query_targets, scores.argmax(dim=1).numpy()))
    assert row["uar"] == pytest.approx(found, abs=1e-4)


def test_methods_are_scored_on_the_same_episodes(measured):
    digests = {}
    for row in measured[1]:
        digests.setdefault((row["shots"], row["seed"]), set()).add(row["digest"])
    assert [len(found) for found in digests.values()] == [1] * 4
    assert len(set.union(*digests.values())) == 4


def test_run_json_tells_protocol_command_and_data(measured):
    facts = json.loads((measured[0] / "run.json").read_text())
    assert Protocol.model_validate(facts["protocol"]) == _protocol()
    assert facts["command"] == "metaser benchmark trial"
    assert {name: card["role"] for name, card in facts["tasks"].items()} == {
        "fa_synthetic": "source",
        "it_synthetic": "source",
        "ur_synthetic": "target",
    }
    card = facts["tasks"]["ur_synthetic"]
    assert card["classes"] == dict.fromkeys(CLASSES, 8) and card["synthetic"] is True
    assert "share no speaker" in card["leakage"]


def test_the_same_command_gives_the_same_scores_in_another_folder(measured, run, tmp_path):
    assert _scores(run(tmp_path)[0]) == _scores(measured[1])


def test_a_second_run_measures_nothing(results, run, monkeypatch):
    before = (results / "rows.jsonl").read_bytes()
    monkeypatch.setattr(harness, "score_cell", None)
    monkeypatch.setattr(materials_module, "extract", None)
    _, told = run(results)
    assert (results / "rows.jsonl").read_bytes() == before
    assert "12 cells are there, 0 remain" in told.getvalue()


@pytest.mark.filterwarnings("ignore:.*cut short:UserWarning")
def test_a_last_row_that_is_cut_short_is_measured_again(results, run, measured):
    path = results / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    rows, _ = run(results)
    assert _scores(rows) == _scores(measured[1])
    assert path.read_bytes().startswith(whole[: whole[:-1].rfind(b"\n") + 1])
    assert path.read_bytes().endswith(b"}\n")


def test_an_interrupted_run_goes_on_where_it_stopped(run, measured, tmp_path, monkeypatch):
    append, written = harness.append_row, []

    def interrupted(path, row):
        if len(written) == 5:
            raise KeyboardInterrupt
        append(path, row)
        written.append(row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(harness, "append_row", interrupted)
        run(tmp_path)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5
    rows, told = run(tmp_path)
    assert "5 cells are there, 7 remain" in told.getvalue()
    assert _scores(rows) == _scores(measured[1])


def _training(**changes) -> dict:
    setup = FACTS["setups"]["mel"]
    return {"mel": setup | {"training": setup["training"] | changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes": FACTS["episodes"] | {"queries": 1}},
        {"classes": CLASSES[:3]},
        {"setups": _training(updates=5)},
        {"methods": {"metaser": {"adapt_steps": 3}}},
    ],
)
def test_other_settings_are_refused_and_nothing_is_changed(results, run, changes):
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    with pytest.raises(ValueError, match="rows.jsonl.*other settings.*--out"):
        run(results, _protocol(**changes))
    assert {name: (results / name).read_bytes() for name in before} == before


def test_a_folder_with_another_protocol_is_refused(results, run):
    with pytest.raises(ValueError, match="trial"):
        run(results, _protocol(name="other"))


def test_further_seeds_are_added(results, run, measured):
    rows, told = run(results, _protocol(seeds=[0, 1, 2], methods={"majority": {}}))
    assert [row["seed"] for row in rows[12:]] == [2, 2]
    assert _scores(rows[:12]) == _scores(measured[1])


def test_two_runs_in_the_same_folder_are_refused(results, run):
    with FileLock(results / "run.lock"), pytest.raises(ValueError, match="another run.*--out"):
        run(results)


def test_absent_targets_are_told_and_left_out(run, tmp_path):
    protocol = _protocol({"majority": {}}, targets=["en_savee", "ur_synthetic"])
    rows, told = run(tmp_path, protocol)
    assert "en_savee is not present" in told.getvalue()
    assert {row["target"] for row in rows} == {"ur_synthetic"}
    assert json.loads((tmp_path / "run.json").read_text())["absent"] == ["en_savee"]


def test_absent_sources_are_refused_with_the_remedy(run, tmp_path):
    with pytest.raises(ValueError, match="none of the source tasks.*--data or METASER_DATA"):
        run(tmp_path, _protocol(sources=["en_savee"]))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"targets": ["it_emovo"]}, "target 'it_emovo' is not among"),
        ({"methods": ["metasser"]}, "method 'metasser' is not among"),
    ],
)
def test_unknown_targets_and_methods_are_refused(run, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, **options)


@pytest.mark.parametrize(
    "methods, words",
    [
        ({"metaserr": {}}, "method must be one of.*'metaserr'"),
        ({"metaser": {"inner_step": 3}}, "inner_steps.*not 'inner_step'"),
    ],
)
def test_unknown_methods_and_arguments_are_refused_before_any_work(
    run, tmp_path, methods, words, monkeypatch
):
    monkeypatch.setattr(materials_module, "extract", None)
    with pytest.raises(ValueError, match=words):
        run(tmp_path, _protocol(methods))


def test_a_run_can_be_restricted(run, tmp_path):
    rows, _ = run(tmp_path, methods=["majority"], targets=["ur_synthetic"])
    assert {row["method"] for row in rows} == {"majority"} and len(rows) == 4


def test_no_training_sees_the_language_it_is_scored_on(tasks):
    other = replace(tasks["it_synthetic"], name="it_other")
    protocol = _protocol(
        sources=["fa_synthetic", "it_synthetic", "it_other"],
        targets=["ur_synthetic"],
        leave_one_language_out=[0],
    )
    jobs = _plan(protocol, tasks | {"it_other": other}).jobs()
    for job in jobs:
        heard = {name[:2] for name in job.sources}
        assert not heard & {name[:2] for name in job.targets}
    scored = {target for job in jobs for target in job.targets}
    assert scored == {"fa_synthetic", "it_synthetic", "it_other", "ur_synthetic"}
    alone = [job.sources for job in jobs if "it_other" in job.targets]
    assert set(alone) == {("fa_synthetic",)}


def test_only_the_target_s_language_as_source_is_refused(tasks):
    protocol = _protocol(sources=["ur_synthetic"])
    with pytest.raises(ValueError, match="another language than ur_synthetic"):
        _plan(protocol, tasks).jobs()


def test_methods_share_a_training_where_only_the_adaptation_differs(tasks):
    methods = {
        "fine_tuning": {},
        "zero_shot": {},
        "slow": {"method": "fine_tuning", "rate": 1e-5},
        "transser": {},
        "from_scratch": {},
        "metaser": {},
        "metaser_second_order": {},
    }
    jobs = _plan(_protocol(methods, seeds=[0]), tasks).jobs()
    assert sorted(job.methods for job in jobs) == [
        ("fine_tuning", "zero_shot", "slow"),
        ("from_scratch",),
        ("metaser",),
        ("metaser_second_order",),
        ("transser",),
    ]


def test_sharing_a_training_does_not_change_a_score(run, tmp_path):
    methods = {"fine_tuning": {}, "zero_shot": {}}
    protocol = _protocol(methods, seeds=[0])
    together, _ = run(tmp_path / "together", protocol)
    apart = [row for name in methods for row in run(tmp_path / name, protocol, methods=[name])[0]]
    assert _scores(together) == _scores(apart)


def test_a_checkpoint_for_other_classes_is_not_taken_up(run, tmp_path):
    """Rows may be deleted, as an error advises, while the checkpoints stay."""
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    options = {"methods": {"zero_shot": {}}, "seeds": [0]}
    run(used, _protocol(**options))
    (used / "rows.jsonl").unlink()
    turned = _protocol(**options, classes=CLASSES[::-1])
    assert _scores(run(used, turned)[0]) == _scores(run(fresh, turned)[0])


def test_the_two_sides_of_a_source_share_no_speaker(tasks, plant):
    task = tasks["it_synthetic"]
    material = benchmark.Material(task, plant(task), ())
    plan = _protocol().setups["mel"].training
    sources, validation = benchmark.source_episodes(material, CLASSES, plan, seed=0)
    units = [
        {unit for source in side for unit in source.sampler.units} for side in (sources, validation)
    ]
    assert units[0] and units[1] and not units[0] & units[1]


def test_a_random_split_is_scored_once_a_fraction(run, tmp_path):
    protocol = _protocol(
        {"majority": {}, "logistic_regression": {}},
        episodes=None,
        split={"test": 0.3, "fractions": [0.5, 1.0]},
        speakers="any",
    )
    rows, _ = run(tmp_path, protocol)
    assert len(rows) == 8
    for row in rows:
        assert row["shots"] is None and row["fraction"] in (0.5, 1.0) and len(row["uar"]) == 1
        assert np.sum(row["confusion"], axis=1).tolist() == [2] * 4  # 0.3 of 8
    card = json.loads((tmp_path / "run.json").read_text())["tasks"]["ur_synthetic"]
    assert "leaky by design" in card["leakage"]


def test_the_seed_decides_the_initial_parameters_alone(tasks, plant):
    task = tasks["ur_synthetic"]
    materials = {"ur_synthetic": benchmark.Material(task, plant(task), ())}
    protocol = _protocol()
    state = torch.get_rng_state()
    built = []
    for seed in (0, 0, 1):
        job = benchmark.Job("mel", ("metaser",), (), ("ur_synthetic",), seed)
        built.append(
            benchmark.build_method("metaser", protocol, protocol.setups["mel"], job, materials)
        )
    first, same, other = (method.model.backbone.layers[0][0].weight for method in built)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_over_frames_get_the_cores_that_the_processes_leave(tasks, plant, monkeypatch):
    monkeypatch.setattr(materials_module, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    task = tasks["ur_synthetic"]
    vectors, frames = (
        {task.name: benchmark.Material(task, plant(task, frames=count), ())} for count in (1, 3)
    )
    assert [materials_module.threads_for(frames, jobs) for jobs in (1, 3, 16)] == [8, 2, 1]
    assert [materials_module.threads_for(vectors, jobs) for jobs in (1, 3, 16)] == [1, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert materials_module.threads_for(frames, 1) == 3


def test_a_job_uses_its_threads_and_puts_the_number_back(tasks, plant, monkeypatch):
    task = tasks["ur_synthetic"]
    materials = {task.name: benchmark.Material(task, plant(task), ())}
    job = benchmark.Job("mel", ("majority",), (), (task.name,), 0)
    monkeypatch.setattr(
        harness, "score_cell", lambda *arguments: {"threads": torch.get_num_threads()}
    )
    before = torch.get_num_threads()
    protocol = _protocol()
    order = benchmark.Order(protocol=protocol, setups=protocol.setups, threads=before + 2)
    _, _, rows = benchmark.run_job(job, order, materials)
    assert [row["threads"] for row in rows] == [before + 2] * 2
    assert torch.get_num_threads() == before


def _setup(**changes) -> dict:
    return {"setups": {"mel": FACTS["setups"]["mel"] | changes}}


def test_a_learnable_front_end_is_trained_with_the_rest(run, tmp_path):
    leaf = {"name": "leaf", "filters": 3, "seconds": 0.5, "step": 16}
    changes = _setup(frontend=leaf, normalise="none", methods={"metaser": {}, "fine_tuning": {}})
    rows, _ = run(tmp_path, _protocol(**changes, seeds=[0]))
    assert len(rows) == 4 and {row["frontend"] for row in rows} == {"leaf"}
    network = 3 * 8 + 8 + 8 * 4 + 4
    assert {row["parameters"] for row in rows} == {7 * 3 + network}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frontend": {"name": "leaf"}}, "'leaf'.*normalise = 'none'"),
        ({"frontend": {"name": "waveform"}}, "'waveform'.*normalise = 'none'"),
        (
            {"frontend": {"name": "leaf"}, "normalise": "none", "training": {"mask_channels": 3}},
            "'leaf'.*mask_channels = 0",
        ),
        ({"frontend": {"name": "leaf"}, "normalise": "none"}, "logistic_regression.*leave it out"),
        (
            {"frontend": {"name": "log_mel", "bands": "many"}},
            "bands of front end 'log_mel' must be a whole number",
        ),
    ],
)
def test_a_front_end_that_cannot_do_is_refused_before_any_work(run, tmp_path, changes, words):
    setups = _setup()["setups"] | {"second": FACTS["setups"]["mel"] | changes}
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "results", _protocol(setups=setups))
    assert not (tmp_path / "results").exists()


def test_a_method_is_built_without_the_front_end_that_is_done(tasks, plant, monkeypatch):
    def refuse(arguments):
        raise AssertionError("the features are there already")

    protocol = _protocol()
    job = _plan(protocol, tasks).jobs()[0]
    materials = {name: benchmark.Material(task, plant(task), ()) for name, task in tasks.items()}
    monkeypatch.setattr(build, "make_frontend", refuse)
    benchmark.build_method("metaser", protocol, protocol.setups["mel"], job, materials)


def test_chosen_recordings_are_heard_in_sources_alone(spoken, cache, tasks):
    training = FACTS["setups"]["mel"]["training"]
    chosen = [{"speed": 1.5}, {"noise": 0.0}]
    protocol = _protocol(**_setup(training=training | {"recordings": chosen, "situations": 1}))
    plan = _plan(protocol, tasks)
    jobs = plan.jobs()
    materials = benchmark.gather(plan.settled["mel"], jobs, tasks, Places(cache=cache))
    assert not materials["ur_synthetic"].situations
    drawn, faster, noisy = materials["fa_synthetic"].situations
    plain = materials["fa_synthetic"].plain
    assert faster.lengths.mean() == pytest.approx(plain.lengths.mean() / 1.5, rel=0.1)
    assert np.array_equal(noisy.lengths, plain.lengths)
    assert not np.allclose(noisy.values, plain.values)


def test_an_unknown_fact_of_a_recording_is_refused(run, tmp_path):
    training = FACTS["setups"]["mel"]["training"] | {"recordings": [{"snr": 10}]}
    with pytest.raises(ValueError, match="noise.*not 'snr'"):
        run(tmp_path, _protocol(**_setup(training=training)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a Dask scheduler with two workers, and what starts one more.

    Each is a process; they talk over loopback.
    """
    dask = pytest.importorskip("dask.distributed", reason='pip install "dask[distributed]"')
    folder = tmp_path_factory.mktemp("cluster")
    file, log = folder / "scheduler.json", folder / "log"

    processes = []

    def start(*arguments: str) -> None:
        command = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(file)]
        with log.open("a") as output:
            processes.append(
                subprocess.Popen([*command, "--no-dashboard"], stdout=output, stderr=output)
            )

    def start_worker() -> None:
        start("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        start_worker()
        start_worker()
        while not file.exists():
            assert processes[0].poll() is None, log.read_text()
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        with dask.Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, start_worker
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_job_that_the_cluster_cannot_load_ends_the_run(cluster):
    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(ConnectionError, match="gave up.*different environments"):
        with cluster_module.workplace(cluster[0], 1) as (place, _):
            Parallel(**place)([delayed(repr)(Unreadable())])


def test_a_cluster_that_loses_a_worker_midway_loses_and_doubles_no_row(run, cluster, tmp_path):
    from dask.distributed import Client

    address, start_worker = cluster

    def kill_a_busy_worker() -> int:
        """Return how many rows there were when it was killed."""
        rows, started = out / "rows.jsonl", time.monotonic()
        with Client(address) as client:
            processes = client.run(os.getpid)
            while not rows.exists() or not any(client.processing().values()):
                assert time.monotonic() < started + 60, "no worker was ever busy"
                time.sleep(0.01)
            victim = next(name for name, jobs in client.processing().items() if jobs)
            os.kill(processes[victim], signal.SIGKILL)
            return len(rows.read_text().splitlines())

    protocol = _protocol(setups=_training(updates=20))
    local, _ = run(tmp_path / "local", protocol)
    out = tmp_path / "cluster"
    with ThreadPoolExecutor() as pool:
        known = pool.submit(kill_a_busy_worker)
        rows, _ = run(out, protocol, scheduler=address)
        assert 0 < known.result() < len(rows)
    with Client(address) as client:
        assert len(client.nthreads()) == 1
        start_worker()  # for tests to come
        client.wait_for_workers(2, timeout=60)
    assert _scores(rows) == _scores(local)
    assert not (out / "checkpoints").exists()


def test_a_lone_worker_does_the_work_and_gets_what_is_shared():
    dask = pytest.importorskip("dask.distributed", reason='pip install "dask[distributed]"')
    with dask.LocalCluster(1, threads_per_worker=1, **IN_THREADS) as cluster:
        with cluster_module.workplace(cluster.scheduler_address, 1) as (place, share):
            work = [delayed(_who_adds)(share({"a": 1, "b": 2}))]
            (total, thread), *_ = Parallel(**place)(work)
    assert total == 3
    assert thread != threading.get_ident()


def _who_adds(shared: dict[str, int]) -> tuple[int, int]:
    return sum(shared.values()), threading.get_ident()


def test_workers_with_several_threads_are_refused(run, tmp_path):
    dask = pytest.importorskip("dask.distributed", reason='pip install "dask[distributed]"')
    with dask.LocalCluster(1, threads_per_worker=2, **IN_THREADS) as cluster:
        with pytest.raises(ValueError, match="one thread each.*--nthreads 1"):
            run(tmp_path, scheduler=cluster.scheduler_address)


def test_a_scheduler_without_workers_and_none_at_all_are_told_apart(run, tmp_path, monkeypatch):
    dask = pytest.importorskip("dask.distributed", reason='pip install "dask[distributed]"')
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)
    with dask.LocalCluster(1, **IN_THREADS) as cluster, dask.Client(cluster) as client:
        address = cluster.scheduler_address
        cluster.scale(0)
        while client.nthreads():
            time.sleep(0.01)
        with pytest.raises(ConnectionError, match=f"has no workers.*dask worker {address}"):
            run(tmp_path, scheduler=address)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for wrong in (address, f"tcp://127.0.0.1:{silent.getsockname()[1]}"):
            with pytest.raises(ConnectionError, match=f"no Dask scheduler answers at {wrong}"):
                run(tmp_path, scheduler=wrong)


@pytest.mark.parametrize("address", ["localhost:8786", "http://localhost:8786", "dask"])
def test_an_address_of_unknown_kind_is_refused(run, tmp_path, address):
    with pytest.raises(ValueError, match=f"tcp://HOST:PORT.*ray://HOST:PORT.*not '{address}'"):
        run(tmp_path, scheduler=address)


@pytest.mark.parametrize(
    "address, package, advice",
    [
        ("tcp://127.0.0.1:8786", "dask.distributed", r'pip install "dask\[distributed\]"'),
        ("ray://127.0.0.1:10001", "ray", r'pip install "ray\[client\]"'),
    ],
)
def test_a_package_that_is_missing_is_told(run, tmp_path, monkeypatch, address, package, advice):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{address} needs.*{advice}"):
        run(tmp_path, scheduler=address)
