"""Training and benchmarks on a GPU: the same result as on the processor, and twice the same."""

import json
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from torch import distributed, nn

from metaser import benchmark
from metaser.backbones import MLP, Recurrent
from metaser.machine import available_memory, find_device, is_shared, process_group
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.protocol import Protocol
from metaser.training import Training, train

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

CLASSES = ("angry", "happy", "neutral", "sad")
SHORT = Training(updates=8, meta_batch=3, validate_every=2, validation_episodes=4, rate=1e-2)


def _method(backbone=MLP, device="cuda", second_order=False, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(backbone(6, **options), len(CLASSES))
        return MAML(model, second_order=second_order).to(device)


DROPOUT = {"hidden": (8,), "dropout": 0.3}


def _assert_same(one: nn.Module, other: nn.Module, **tolerance) -> None:
    for expected, found in zip(one.state_dict().values(), other.state_dict().values()):
        torch.testing.assert_close(found.cpu(), expected.cpu(), **tolerance)


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("backbone, options", [(MLP, {"hidden": (8,)}), (Recurrent, {"hidden": 8})])
def test_training_arrives_where_the_processor_arrives(sources, backbone, options, second_order):
    methods, histories = [], []
    for device in ("cuda", "cpu"):
        method = _method(backbone, device, second_order, **options)
        histories.append(train(method, *sources, SHORT))
        methods.append(method)
    _assert_same(*methods, rtol=1e-2, atol=1e-3)
    for one, other in zip(*histories, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
        assert one["validation"] == pytest.approx(other["validation"], rel=1e-2)


def test_a_resumed_run_is_the_uninterrupted_one(sources, tmp_path):
    """With dropout, whose masks must not depend on whether memory was measured before."""
    whole, parts = _method(**DROPOUT), _method(**DROPOUT)
    train(whole, *sources, SHORT)

    def interrupt(step, loss):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parts, *sources, SHORT, checkpoint=tmp_path / "run.pt", progress=interrupt)
    resumed = _method(**DROPOUT)
    train(resumed, *sources, SHORT, checkpoint=tmp_path / "run.pt")
    _assert_same(whole, resumed, rtol=0, atol=0)


def test_training_leaves_the_gpu_s_generator_as_it_was(sources):
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    train(_method(**DROPOUT), *sources, SHORT)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"hidden": (8,)}, {"hidden": 8}], ids=["mlp", "lstm"])
@pytest.mark.parametrize("second_order", [False, True])
def test_mixed_precision_trains(sources, options, second_order):
    backbone = MLP if isinstance(options["hidden"], tuple) else Recurrent
    plan = Training(updates=8, meta_batch=3, validate_every=8, mixed_precision=True)
    (entry,) = train(_method(backbone, "cuda", second_order, **options), *sources, plan)
    assert np.isfinite([entry["loss"], entry["validation"]]).all() and entry["skipped"] == 0


@pytest.fixture
def group_of_one(monkeypatch):
    """``process_group`` joins, but there is no other process: NCCL takes one process a GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    join = partial(distributed.init_process_group, store=distributed.HashStore())
    monkeypatch.setattr(distributed, "init_process_group", partial(join, rank=0, world_size=1))


def test_messages_between_gpus_leave_the_training_as_it_is(sources, group_of_one):
    if not distributed.is_nccl_available():
        pytest.skip("needs a PyTorch with NCCL")
    alone, shared = _method(**DROPOUT), _method(**DROPOUT)
    train(alone, *sources, SHORT)
    with process_group():
        assert is_shared()
        train(shared, *sources, SHORT)
    assert not is_shared()
    _assert_same(alone, shared, rtol=0, atol=0)


def test_each_process_of_torchrun_has_its_gpu(monkeypatch):
    assert find_device("cuda").type == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert find_device("cuda") == torch.device("cuda:0")
    assert 0 < available_memory(find_device("cuda"))
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(ValueError, match="device must be.*not 'cuda'"):
        find_device("cuda")


TASK = """
language = "{language}"
corpus = "Tones"
audio = "{language}"
version = 1
speakers = 4
utterances = 48
licence = "CC0"
homepage = "https://example.org"
reference = "none"

[files]
pattern = '(?P<speaker>s\\d)_(?P<emotion>[a-z]+)_(?P<take>\\d)'

[emotion]
angry = "angry"
happy = "happy"
neutral = "neutral"
sad = "sad"
"""
LANGUAGES = ("fa", "it", "ur")


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Three languages in which every emotion is a tone of its own pitch, in noise."""
    root = tmp_path_factory.mktemp("tones")
    time, rng = np.arange(4000) / 8000, np.random.default_rng(0)
    for language in LANGUAGES:
        folder = root / "tasks" / f"{language}_tones"
        folder.mkdir(parents=True)
        (folder / "task.toml").write_text(TASK.format(language=language))
        (folder / "README.md").write_text("# Tones\n")
        (root / language).mkdir()
        for speaker, emotion, take in np.ndindex(4, len(CLASSES), 3):
            tone = np.sin(2 * np.pi * (200 + 150 * emotion + 20 * speaker) * time)
            clip = 0.1 * tone + 0.1 * rng.standard_normal(len(time))
            soundfile.write(
                root / language / f"s{speaker}_{CLASSES[emotion]}_{take}.wav", clip, 8000
            )
    return root


PROTOCOL = Protocol.model_validate(
    {
        "name": "tones",
        "title": "Tones",
        "description": "On a GPU.",
        "classes": list(CLASSES),
        "sources": ["fa_tones", "it_tones"],
        "targets": ["ur_tones"],
        "seeds": [0],
        "episodes": {"shots": [2], "queries": 2, "count": 10},
        "setups": {
            "lstm": {
                "frontend": {"name": "log_mel", "bands": 8},
                "normalise": "corpus",
                "backbone": {"name": "recurrent", "hidden": 8},
                "training": {"queries": 2, "shots": [2], "held_out": 0.5, "updates": 6},
                "methods": {
                    "metaser": {},
                    "maml": {"inner_steps": 2},
                    "transser_released": {"steps": 20},
                    "fine_tuning": {"steps": 20},
                    "logistic_regression": {},
                },
            }
        },
    }
)


def test_a_benchmark_on_a_gpu_gives_the_scores_of_the_processor(tones, tmp_path):
    found = {}
    for device in ("cuda", "cpu"):
        path = benchmark.run(
            PROTOCOL,
            tmp_path / device,
            data=tones,
            task_folders=[tones / "tasks"],
            cache=tmp_path / "cache",
            device=device,
            console=Console(quiet=True),
        )
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[device] = {row["method"]: row for row in rows}
    methods = set(PROTOCOL.setups["lstm"].methods)
    assert set(found["cuda"]) == set(found["cpu"]) == methods
    for method, row in found["cuda"].items():
        # scikit-learn's regression is the processor's in any case.
        assert row["device"] == ("cpu" if method == "logistic_regression" else "cuda")
        assert row["digest"] == found["cpu"][method]["digest"]
        # A clip between two classes may fall to either side: one of the 80 is 0.0125.
        assert np.mean(row["uar"]) == pytest.approx(np.mean(found["cpu"][method]["uar"]), abs=0.03)
