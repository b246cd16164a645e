"""Tasks adapted together give what tasks adapted one by one give, in double precision."""

import inspect
import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from metaser.backbones import BACKBONES, MLP
from metaser.batch import Batch, EpisodeBatch, Padded, stack
from metaser.machine import PeakMemory, cpu_threads, device_of
from metaser.methods import METHODS
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training import meta_batch
from metaser.training.meta_batch import MetaBatch, memory_of_task

CHANNELS, CLASSES = 3, 4
DOMAINS = {"speaker": 5, "corpus": 2}
STACKABLE = [
    name
    for name, kind in METHODS.items()
    if getattr(getattr(kind, "func", kind), "stackable", False)
    or getattr(kind, "func", kind) is MAML
]
_STREAM = {"width": 4, "heads": 2, "pool": 2, "dropout": 0.0, "dense_dropout": 0.0}
_KERNELS = {"widths": (3,), "kernels": ((5, 3),), "small": 3, "stride": 2}
_ENCODER = {"width": 4, "heads": 2, "feedforward": 3, "layers": 1, "dropout": 0.0}
_SEGMENTS = {
    "inner": {"kernels": (1, 3), "filters": 2},
    "hidden": 2,
    "pause": 1,
    "shortest": 1,
}
SMALL = {
    "mlp": {"hidden": (5,)},
    "multiscale_cnn": {"kernels": (3, 5), "filters": 2},
    "recurrent": {"hidden": 4, "layers": 2},
    "gru_attention": {"hidden": 2, "pool": 2},
    "daae": {"width": 4, "tokens": 2, "heads": 2},
    "modality_hopping": {"hidden": 2, "streams": (2, 1), "pool": 2},
    "multimodal_transformer": {**_ENCODER, "pool": 2, "context": 2},
    "resnet18": {"widths": (2, 3)},
    "segment_sequence": _SEGMENTS,
    "key_sparse_transformer": {**_STREAM, "vanilla_layers": 1, "sparse_layers": 1},
    "replknet": _KERNELS,
}


def _batch(clips: int, present, frames: int, generator) -> Batch:
    labels = torch.tensor([index for index, there in enumerate(present) if there])
    lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
    mask = torch.arange(frames) < lengths[:, None]
    values = torch.randn(clips, frames, CHANNELS, generator=generator, dtype=torch.float64)
    padded = Padded(values * mask[..., None], mask)
    domains = {
        name: torch.randint(count, (clips,), generator=generator) for name, count in DOMAINS.items()
    }
    targets = labels[torch.arange(clips) % len(labels)]
    return Batch({"audio": padded}, targets, torch.tensor(present), domains)


def _episode(seed: int, support=6, query=8, frames=4, present=(True,) * 4) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)
    sides = (_batch(clips, present, frames, generator) for clips in (support, query))
    return EpisodeBatch(*sides, other=_batch(7, (True,) * 4, frames, generator))


EPISODES = [
    _episode(0),
    _episode(1, frames=6),  # longer clips
    _episode(2, present=(True, False, True, True)),  # a class is lacking
    _episode(3, support=9, query=5),  # another size
    _episode(4, support=9, query=5, frames=3),
]
# Of one size, so that they are stacked; the second has shorter clips and lacks a class.
PAIR = [_episode(5), _episode(6, frames=3, present=(True, False, True, True))]


def _method(name="maml", backbone="mlp", **arguments) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(BACKBONES[backbone](CHANNELS, **SMALL[backbone]), CLASSES)
        if "domains" in inspect.signature(METHODS[name]).parameters:
            arguments = {"domains": DOMAINS} | arguments
        if "channels" in inspect.signature(METHODS[name]).parameters:
            arguments = {"channels": CHANNELS, "classes": CLASSES} | arguments
        return METHODS[name](model=model, **arguments).double()


def _gradients(method: nn.Module, engine: str, episodes=EPISODES) -> tuple[list, dict]:
    method.zero_grad()
    losses = MetaBatch(method, engine).backward(episodes)
    return losses, {k: v.grad for k, v in method.named_parameters() if v.grad is not None}


def _assert_same(method: nn.Module, engine="stacked", episodes=EPISODES) -> None:
    one, expected = _gradients(method, "loop", episodes)
    two, found = _gradients(method, engine, episodes)
    assert two == pytest.approx(one, rel=1e-10)
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-4
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("name", STACKABLE)
def test_every_method_stacked_is_the_loop(name):
    _assert_same(_method(name))


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("name", ["fomaml", "maml", "anil", "fine_tuning"])
def test_every_backbone_stacked_is_the_loop(name, backbone):
    steps = {} if name == "fine_tuning" else {"inner_steps": 2}
    _assert_same(_method(name, backbone, **steps), episodes=PAIR)


def test_the_pair_is_stacked(monkeypatch):
    method, tasks = _method(), []
    engine, loss = MetaBatch(method, "stacked"), method.loss
    engine.plan(PAIR[0])

    def counted(episodes):
        tasks.append(len(episodes.query))
        return loss(episodes)

    monkeypatch.setattr(method, "loss", counted)
    engine.backward(PAIR)
    assert tasks == [2]


def test_every_architecture_is_tested():
    kinds = {name: getattr(entry, "func", entry) for name, entry in BACKBONES.items()}
    assert {kinds[name] for name in SMALL} == set(kinds.values())


def test_the_loop_is_the_mean_of_the_losses():
    method = _method()
    losses, found = _gradients(method, "loop")
    method.zero_grad()
    (sum(method.loss(episode) for episode in EPISODES) / len(EPISODES)).backward()
    assert losses == pytest.approx([float(method.loss(e).detach()) for e in EPISODES])
    for key, value in method.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(found[key], value.grad, rtol=1e-12, atol=1e-14)


def test_a_stack_keeps_every_episode_as_it_was():
    episodes = EPISODES[:3]
    whole = stack(episodes)
    assert whole.support.targets.shape == (3, 6) and whole.query.targets.shape == (3, 8)
    for index, episode in enumerate(episodes):
        for side in ("support", "query"):
            one, all_ = getattr(episode, side), getattr(whole, side)
            frames = one.modalities["audio"].mask.shape[1]
            values, mask = (getattr(all_.modalities["audio"], k)[index] for k in ("values", "mask"))
            assert torch.equal(values[:, :frames], one.modalities["audio"].values)
            assert torch.equal(mask[:, :frames], one.modalities["audio"].mask)
            assert not mask[:, frames:].any() and not values[:, frames:].any()
            assert torch.equal(all_.targets[index], one.targets)
            assert torch.equal(all_.classes[index], one.classes)


def test_episodes_of_different_size_do_not_stack():
    with pytest.raises(ValueError, match=r"equally many clips, not \[6, 9\]"):
        stack(EPISODES)


def test_chunks_give_the_same_gradient(monkeypatch):
    method = _method()
    needed = memory_of_task(method, EPISODES[0])
    monkeypatch.setattr(meta_batch, "SPARE", needed // 2)  # one and a half times, plus a half: two
    sizes = []
    loss = method.loss

    def counted(episode):
        sizes.append(len(episode.query.targets) if episode.query.targets.dim() == 2 else 1)
        return loss(episode)

    monkeypatch.setattr(method, "loss", counted)
    five = [_episode(seed) for seed in range(5)]
    engine = MetaBatch(method, "stacked")
    engine.backward(five)
    assert sizes[-3:] == [2, 2, 1]
    monkeypatch.setattr(method, "loss", loss)
    _assert_same(method, episodes=five)


@pytest.mark.parametrize(
    "name, backbone",
    [("maml", "mlp"), ("maml_plus_plus", "mlp"), ("meta_sgd", "mlp"), ("maml", "recurrent")],
)
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_checkpointed_steps_give_the_same_gradient(name, engine, backbone):
    own = {"inner_steps": 2}
    _, expected = _gradients(_method(name, backbone, **own), engine, PAIR)
    own["checkpoint_steps"] = True
    _, found = _gradients(_method(name, backbone, **own), engine, PAIR)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-15)


def test_checkpointed_steps_draw_the_same_dropout():
    found = []
    for checkpoint in (False, True):
        model = Model(MLP(CHANNELS, (20,), dropout=0.5), CLASSES)
        method = MAML(model, second_order=True, checkpoint_steps=checkpoint)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for value in method.model.parameters():
                nn.init.uniform_(value, -1, 1)
            method.double().train()
            found.append(_gradients(method, "loop", EPISODES[:1])[1])
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-12, atol=1e-15)


def test_checkpointing_keeps_memory_from_growing_with_the_steps():
    episode = _episode(0, support=60, query=60, frames=20)

    def needed(steps, checkpoint):
        arguments = {"inner_steps": steps, "checkpoint_steps": checkpoint}
        return memory_of_task(_method("maml", "multiscale_cnn", **arguments), episode)

    assert needed(8, False) > 2.5 * needed(2, False)
    assert needed(8, True) < 1.3 * needed(2, True)


def test_predicted_memory_is_what_the_computation_takes():
    method, episode = _method("maml", "multiscale_cnn"), _episode(0, support=40, frames=30)
    predicted = memory_of_task(method, episode)
    with PeakMemory() as memory:
        method.loss(episode).backward()
    assert predicted == pytest.approx(memory.peak, rel=0.01)


@pytest.mark.parametrize("backbone", ["mlp", "recurrent", "multimodal_transformer"])
def test_memory_beyond_what_is_spare_is_told_from_sizes_alone(backbone, monkeypatch):
    method, episode = _method("maml", backbone, inner_steps=2), _episode(0)
    done = memory_of_task(method, episode)
    kinds = []
    loss = MAML.loss

    def watched(self, episode):
        kinds.append(episode.query.targets.device.type)
        return loss(self, episode)

    monkeypatch.setattr(MAML, "loss", watched)
    monkeypatch.setattr(meta_batch, "SPARE", done // 2)
    assert memory_of_task(method, episode) == pytest.approx(done, rel=0.05)
    assert kinds == ["cpu", "meta"]


def test_a_computation_beyond_the_limit_is_given_up():
    with PeakMemory(limit=8000) as memory:
        torch.zeros(1000, dtype=torch.float64)
        with pytest.raises(MemoryError, match="8008 bytes are needed, the limit is 8000"):
            torch.zeros(1001, dtype=torch.float64)
    assert memory.now == 0


def test_peak_memory_counts_what_is_alive_at_once():
    with PeakMemory() as memory:
        first = torch.zeros(1000, dtype=torch.float64)
        view = first[:10]
        del first
        assert memory.now == 8000  # the view keeps it
        del view
        assert memory.now == 0
        held = torch.zeros(500, dtype=torch.float64)
        held.add_(1)
    assert memory.peak == 8000 and memory.now == 4000


def test_a_task_beyond_the_memory_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(meta_batch, "available_memory", lambda device: 1000)
    method = _method()
    with pytest.raises(MemoryError, match="6 support and 8 query clips.*checkpoint_steps"):
        MetaBatch(method).backward(EPISODES)
    assert all(value.grad is None for value in method.parameters())


class Convolutional(nn.Module):
    """A backbone with a convolution in two dimensions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)
        self.dim = 2

    def forward(self, audio):
        return self.layer(audio.values.unsqueeze(1)).mean(dim=(2, 3))


class StockRecurrent(nn.Module):
    """A backbone whose layer has no rule for stacking."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(CHANNELS, 2, batch_first=True)
        self.dim = 2

    def forward(self, audio):
        return self.layer(audio.values)[0].mean(dim=1)


@pytest.mark.parametrize(
    "kind, words", [(Convolutional, "faster alone"), (StockRecurrent, "cannot be stacked")]
)
def test_the_choice_is_said_and_tasks_in_turn_stand_in(caplog, kind, words):
    method = MAML(Model(kind(), CLASSES), second_order=True).double()
    episodes = [_episode(0), _episode(2)]  # clips of equal length: these backbones see padding
    with caplog.at_level(logging.INFO, "metaser"):
        _assert_same(method, "auto", episodes)
    assert words in caplog.text
    if kind is Convolutional:
        _assert_same(method, "stacked", episodes)
    else:
        with pytest.raises(ValueError, match="'stacked' is impossible.*cannot be stacked"):
            MetaBatch(method, "stacked").backward(episodes)


def test_large_tasks_run_in_turn(caplog, monkeypatch):
    monkeypatch.setattr(meta_batch, "LARGE", 1)
    with caplog.at_level(logging.INFO, "metaser"):
        _assert_same(_method(), "auto", EPISODES)
    assert "operations as large as these are faster alone" in caplog.text


@pytest.fixture
def two_threads(monkeypatch):
    """PyTorch has two threads, and every task counts as large."""
    monkeypatch.setattr(meta_batch, "LARGE", 0)
    monkeypatch.setattr(meta_batch, "LARGE_CONVOLUTION", 0)
    with cpu_threads(2):
        yield


def _assert_side_by_side(method: nn.Module, caplog) -> None:
    """Two threads with a task each give what one thread gives in turn, and the same twice."""
    with caplog.at_level(logging.INFO, "metaser"):
        _assert_same(method, "auto")
    assert "2 tasks side by side (" in caplog.text
    (one, first), (two, second) = _copied(method), _copied(method)
    assert one == two
    assert all(torch.equal(first[key], second[key]) for key in first)


def _copied(method: nn.Module) -> tuple[list, dict]:
    losses, found = _gradients(method, "auto")
    return losses, {key: value.clone() for key, value in found.items()}


@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_side_by_side_is_the_loop(backbone, two_threads, caplog):
    _assert_side_by_side(_method("maml", backbone, inner_steps=1), caplog)


@pytest.mark.parametrize("name", STACKABLE)
def test_every_method_side_by_side_is_the_loop(name, two_threads, caplog):
    _assert_side_by_side(_method(name), caplog)


def test_what_draws_random_numbers_runs_in_turn(two_threads, caplog):
    model = Model(MLP(CHANNELS, (5,), dropout=0.5), CLASSES)
    with caplog.at_level(logging.INFO, "metaser"):
        MetaBatch(MAML(model).double()).backward(EPISODES)
    assert "tasks in turn (operations" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "metaser"):
        MetaBatch(MAML(model).double().eval()).backward(EPISODES)
    assert "2 tasks side by side" in caplog.text


def test_tasks_side_by_side_do_not_undo_each_others_choice_of_kernels(two_threads):
    seen = []

    class Attentive(MLP):
        def forward(self, audio: Padded) -> torch.Tensor:
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(audio)

    model = Model(Attentive(CHANNELS, (5,)), CLASSES)
    engine = MetaBatch(MAML(model, second_order=True).double())
    engine.plan(PAIR[0])
    seen.clear()
    engine.backward(PAIR)
    assert len(seen) == 2 * (engine.method.inner_steps + 1)
    assert not any(seen)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_what_fails_side_by_side_is_raised(two_threads):
    method = _method()
    engine = MetaBatch(method)
    engine.plan(PAIR[0])
    query = PAIR[1].query
    audio = query.modalities["audio"]
    narrow = replace(query, modalities={"audio": Padded(audio.values[..., :2], audio.mask)})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine.backward([PAIR[0], EpisodeBatch(PAIR[1].support, narrow)])
    assert torch.get_num_threads() == 2


def test_convolutions_over_time_find_the_layout_that_they_would_copy_to():
    seen = []

    class Listening(nn.Module):
        dim, channels = 4, {"audio": CHANNELS}

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(CHANNELS, self.dim, 3)

        def forward(self, audio: Padded) -> torch.Tensor:
            seen.append((audio.values.shape[-1], audio.values.transpose(1, 2).is_contiguous()))
            return self.layer(audio.values.transpose(1, 2)).mean(dim=-1)

    method = MAML(Model(Listening(), CLASSES), second_order=True).double()
    engine = MetaBatch(method, "loop")
    plain = method.loss(EPISODES[0]).item()
    engine.plan(EPISODES[0])
    assert (CHANNELS, False) in seen
    seen.clear()
    assert engine.backward(EPISODES[:1]) == pytest.approx([plain], rel=1e-12)
    assert set(seen) == {(CHANNELS, True)}


def test_stacking_is_said(caplog):
    with caplog.at_level(logging.INFO, "metaser"):
        MetaBatch(_method()).backward(EPISODES)
    assert (
        "support 6, query 8 clips of up to 8 frames: up to" in caplog.text
        and "tasks stacked" in caplog.text
    )


@pytest.mark.parametrize("engine", ["loop", "stacked", "auto"])
def test_an_episode_that_diverges_adds_no_gradient(engine, two_threads):
    bad = _episode(7)
    bad.query.modalities["audio"].values[0, 0, 0] = float("nan")
    method = _method()
    losses, found = _gradients(method, engine, [EPISODES[0], bad, EPISODES[2]])
    assert [loss == loss for loss in losses] == [True, False, True]
    method.zero_grad()
    ((method.loss(EPISODES[0]) + method.loss(EPISODES[2])) / 3).backward()
    for key, value in method.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(found[key], value.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"engine": "fast"}, "'fast'"),
        ({"engine": "loop", "compile": True}, "compile is for stacked"),
    ],
)
def test_strange_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MetaBatch(_method(), **arguments)


@pytest.mark.parametrize("name", ["maml_plus_plus", "metaser_adversarial"])
def test_a_loss_that_changes_while_it_trains_is_not_compiled(name):
    with pytest.raises(ValueError, match="compile is for a loss that stays the same during"):
        MetaBatch(_method(name), compile=True)


def test_a_torch_that_cannot_compile_gradients_is_named(monkeypatch):
    monkeypatch.setattr(meta_batch.torch._dynamo, "config", object())
    with pytest.raises(ImportError, match="from 2.11 on"):
        MetaBatch(_method(), compile=True)


@pytest.mark.slow
def test_what_is_compiled_stays_so_for_many_sizes():
    """PyTorch's own limit is eight, after which it goes on uncompiled."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    gradients = meta_batch._compiled(partial(meta_batch._gradients, mixed=False), backend)
    method = _method("fomaml", inner_steps=1)
    for support in [*range(2, 13), 12]:
        gradients(method, stack([_episode(0, support=support), _episode(1, support=support)]), 2)
    assert len(graphs) == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_the_compiled_engine_gives_the_same_gradient(name):
    method = _method(name, inner_steps=2)
    _, expected = _gradients(method, "loop", EPISODES[:3])
    method.zero_grad()
    MetaBatch(method, compile=True).backward(EPISODES[:3])
    for key, value in method.named_parameters():
        if key in expected:
            torch.testing.assert_close(value.grad, expected[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name, backbone, engine",
    [
        ("fomaml", "mlp", "stacked"),
        ("maml", "mlp", "loop"),
        ("fomaml", "recurrent", "loop"),
        ("maml", "recurrent", "stacked"),
        ("maml", "gru_attention", "loop"),
        ("fomaml", "multiscale_cnn", "loop"),
        ("maml", "multiscale_cnn", "stacked"),
    ],
)
def test_mixed_precision_is_near_and_leaves_the_rest_as_it_is(name, backbone, engine, monkeypatch):
    kinds, linear = set(), functional.linear

    def watched(*arguments):
        found = linear(*arguments)
        kinds.add(found.dtype)
        return found

    monkeypatch.setattr(functional, "linear", watched)
    method = _method(name, backbone, inner_steps=2).float()
    episodes = [_single(episode) for episode in PAIR]
    _, expected = _gradients(method, engine, episodes)
    assert kinds == {torch.float32}
    method.zero_grad()
    mixed = MetaBatch(method, engine, mixed_precision=True)
    mixed.plan(episodes[0])
    kinds.clear()
    mixed.backward(episodes)
    # Stacked layers add their biases after the product, in single precision.
    assert kinds == {torch.float32 if engine == "stacked" else torch.bfloat16}
    found = {key: value.grad for key, value in method.named_parameters()}
    assert {value.dtype for value in found.values()} == {torch.float32}
    one, other = (torch.cat([own[key].flatten() for key in expected]) for own in (expected, found))
    # bfloat16 has 8 significant bits: one rounding is up to 2^-9 off.
    assert 2**-14 < (one - other).norm() / one.norm() < 2**-4


def _single(episode: EpisodeBatch) -> EpisodeBatch:
    """The episode in single precision."""

    def change(batch: Batch) -> Batch:
        audio = batch.modalities["audio"]
        return replace(batch, modalities={"audio": Padded(audio.values.float(), audio.mask)})

    return episode.map(change)


ELSEWHERE = torch.device("meta")
"""PyTorch's device with sizes and without values stands in for a GPU: like one it refuses to meet
tensors of the processor."""


def _assert_stays(method: nn.Module) -> None:
    method.to(ELSEWHERE)
    assert device_of(method) == ELSEWHERE
    method.loss(EPISODES[0].to(ELSEWHERE)).backward()
    slopes = [value.grad for value in method.parameters() if value.grad is not None]
    assert slopes and {slope.device for slope in slopes} == {ELSEWHERE}


@pytest.mark.parametrize("name", STACKABLE)
def test_every_method_learns_where_it_is(name):
    _assert_stays(_method(name))


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_learns_where_it_is(backbone, second_order):
    _assert_stays(_method("maml", backbone, second_order=second_order))


@pytest.mark.parametrize("name", ["maml", "anil", "proto_maml", "protonet", "ridge", "multiser"])
def test_adapts_and_predicts_where_it_is(name, monkeypatch):
    module = type(_method(name)).__module__
    monkeypatch.setattr(f"{module}.check_support", lambda support: None)  # it looks at values
    method, episode = _method(name).to(ELSEWHERE), EPISODES[0].to(ELSEWHERE)
    assert method.adapt(episode.support)(episode.query.modalities).device == ELSEWHERE


def test_a_tensor_made_on_the_processor_is_found():
    class Astray(MAML):
        def loss(self, episode):
            return super().loss(episode) * torch.ones(2).mean(dim=0, keepdim=True)

    with pytest.raises(RuntimeError, match="device"):
        _assert_stays(Astray(_method().model))
