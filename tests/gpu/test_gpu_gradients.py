"""Backbones and methods learn and adapt on a GPU as on the processor."""

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaser.backbones import BACKBONES, MLP, GatedRecurrent, Recurrent
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.frontends.leaf import Leaf
from metaser.machine import available_memory
from metaser.methods import METHODS
from metaser.methods.maml import MAML
from metaser.model import Model
from metaser.training.meta_batch import MetaBatch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

CHANNELS, CLASSES, FRAMES = 4, 4, 12
DOMAINS = {"speaker": 5, "corpus": 2}
SMALL = {
    "mlp": {"hidden": (8,)},
    "multiscale_cnn": {"kernels": (3, 5), "filters": 4},
    "recurrent": {"hidden": 8},
    "gru_attention": {"hidden": 4},
    "daae": {"width": 4, "tokens": 2, "heads": 2},
    "modality_hopping": {"hidden": 4, "streams": (2, 2)},
    "multimodal_transformer": {"width": 4, "heads": 2, "feedforward": 8, "layers": 1, "context": 2},
    "resnet18": {"widths": (4, 8)},
    "segment_sequence": {"hidden": 4, "pause": 1, "shortest": 1},
    "key_sparse_transformer": {"width": 4, "heads": 2, "vanilla_layers": 1, "sparse_layers": 1},
    "replknet": {"widths": (4,), "kernels": ((5, 3),), "small": 3, "stride": 2},
}
"""A small configuration of every architecture."""
FEW = {"gan_augmentation": {"steps": 20}, "transser_released": {"steps": 20}}
"""Fewer steps than methods take by themselves, where those would be seconds."""


def _batch(clips: int, generator: torch.Generator, frames: int, dtype) -> Batch:
    lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
    lengths[0] = frames
    mask = torch.arange(frames) < lengths[:, None]
    values = torch.randn(clips, frames, CHANNELS, generator=generator, dtype=torch.float64)
    audio = Padded((values * mask[..., None]).to(dtype), mask)
    domains = {
        name: torch.randint(count, (clips,), generator=generator) for name, count in DOMAINS.items()
    }
    targets = torch.arange(clips) % CLASSES
    return Batch({"audio": audio}, targets, torch.ones(CLASSES, dtype=torch.bool), domains)


def _episodes(count: int = 3, frames: int = FRAMES, dtype=torch.float64) -> list[EpisodeBatch]:
    draw = torch.Generator().manual_seed(0)
    return [
        EpisodeBatch(*(_batch(clips, draw, frames, dtype) for clips in (8, 12, 8)))
        for _ in range(count)
    ]


def _method(name: str, backbone: str = "mlp", frontend=None, **arguments) -> nn.Module:
    kind, arguments = METHODS[name], FEW.get(name, {}) | arguments
    channels = CHANNELS if frontend is None else frontend.channels
    body = BACKBONES[backbone](channels, **SMALL[backbone])
    if "domains" in inspect.signature(kind).parameters:
        arguments = {"domains": DOMAINS} | arguments
    return kind(Model(body, CLASSES, frontend=frontend), **arguments).double().eval()


WITH_MODEL = [
    name for name, kind in METHODS.items() if "model" in inspect.signature(kind).parameters
]
"""The others run on the processor, whatever the device."""


def _gradient(method: nn.Module, device: str, mode: str = "auto", **engine) -> Tensor:
    """Losses and gradients of a meta-batch, in one vector on the processor."""
    method = copy.deepcopy(method).to(device)
    episodes = _episodes(dtype=next(method.parameters()).dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = MetaBatch(method, mode, **engine).backward([e.to(device) for e in episodes])
    slopes = [value.grad for value in method.parameters() if value.grad is not None]
    assert {slope.device.type for slope in slopes} == {device}
    return torch.cat([torch.tensor(losses), *(slope.flatten().cpu() for slope in slopes)])


def _scores(method: nn.Module, device: str, episode: EpisodeBatch) -> Tensor:
    """Scores after adapting, on the processor."""
    method = copy.deepcopy(method).to(device)
    if getattr(method, "use_sources", False):
        method.fit([batch.to(device) for batch in (episode.support, episode.query)])
    episode = episode.to(device)
    return method.adapt(episode.support)(episode.query.modalities).cpu()


def _off(found: Tensor, expected: Tensor) -> float:
    """Distance as a share of the expected norm."""
    assert expected.norm() > 1e-3
    return float((found - expected).norm() / expected.norm())


def test_every_architecture_has_a_small_configuration():
    kinds = {name: getattr(entry, "func", entry) for name, entry in BACKBONES.items()}
    assert {kinds[name] for name in SMALL} == set(kinds.values())


@pytest.mark.parametrize("mode", ["stacked", "loop"])
@pytest.mark.parametrize("name", ["fomaml", "maml"])
@pytest.mark.parametrize("backbone", SMALL)
def test_the_meta_gradient_of_every_backbone_is_the_processor_s(backbone, name, mode):
    method = _method(name, backbone, inner_steps=2)
    assert _off(_gradient(method, "cuda", mode), _gradient(method, "cpu", mode)) < 1e-9


@pytest.mark.parametrize("mode", ["stacked", "loop"])
@pytest.mark.parametrize("name", ["fomaml", "maml"])
@pytest.mark.parametrize("backbone", ["mlp", "multiscale_cnn", "resnet18", "recurrent"])
def test_in_single_precision_it_is_near(backbone, name, mode):
    """PyTorch lets convolutions and recurrent layers round to TF32, of 11 significant bits."""
    method = _method(name, backbone, inner_steps=2)
    expected = _gradient(method, "cpu", mode)
    assert _off(_gradient(method.float(), "cuda", mode), expected) < 1e-2


@pytest.mark.parametrize("backbone", ["mlp", "multiscale_cnn", "recurrent", "gru_attention"])
@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_in_mixed_precision_it_is_near(name, backbone):
    method = _method(name, backbone, inner_steps=2).float()
    found = _gradient(method, "cuda", mixed_precision=True)
    # bfloat16 has 8 significant bits: one rounding is up to 2^-9 off.
    assert 2**-14 < _off(found, _gradient(method, "cuda")) < 2**-4


@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_adapts_as_on_the_processor(backbone):
    method, (episode,) = _method("metaser", backbone), _episodes(1)
    assert _off(*(_scores(method, device, episode) for device in ("cuda", "cpu"))) < 1e-9


@pytest.mark.parametrize("name", WITH_MODEL)
def test_every_method_learns_and_adapts_as_on_the_processor(name):
    method, (episode,) = _method(name), _episodes(1)
    if hasattr(method, "loss"):
        assert _off(*(_gradient(method, device) for device in ("cuda", "cpu"))) < 1e-9
    assert _off(*(_scores(method, device, episode) for device in ("cuda", "cpu"))) < 1e-9


@pytest.mark.parametrize("name", WITH_MODEL)
def test_adapting_leaves_the_gpu_s_generator_as_it_was(name):
    method, (episode,) = _method(name), _episodes(1)
    _scores(method, "cuda", episode)
    state = torch.cuda.get_rng_state()
    _scores(method, "cuda", episode)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("backbone", ["mlp", "multiscale_cnn", "resnet18"])
def test_all_tasks_of_a_step_are_stacked(backbone):
    """A GPU has the memory, and waits for the processor between operations that are small."""
    plan = MetaBatch(_method("maml", backbone).to("cuda")).plan(_episodes(1)[0].to("cuda"))
    assert plan.stacked and plan.tasks > 1000
    assert plan.memory <= available_memory(torch.device("cuda")) // 2


@pytest.mark.parametrize("kind, options", [(Recurrent, {}), (GatedRecurrent, {"pool": 1})])
def test_long_clips_in_second_order_are_the_processor_s(kind, options):
    """cuDNN's recurrent layers have no second derivative, so MetaSER's own run."""
    model = Model(kind(CHANNELS, 16, **options), CLASSES)
    method = MAML(model, inner_steps=2, second_order=True).double()
    (episode,) = _episodes(1, frames=150)
    slopes = []
    for device in ("cuda", "cpu"):
        own = copy.deepcopy(method).to(device)
        own.loss(episode.to(device)).backward()
        slopes.append(torch.cat([value.grad.flatten().cpu() for value in own.parameters()]))
    assert _off(*slopes) < 1e-9


@pytest.mark.parametrize("adapts", [False, True])
def test_a_learnt_front_end_is_the_processor_s(adapts):
    frontend = Leaf(filters=3, rate=800, window=60, step=4, adapts=adapts)
    method = _method("maml", frontend=frontend, inner_steps=2)
    assert _off(_gradient(method, "cuda"), _gradient(method, "cpu")) < 1e-9


def test_checkpointed_steps_draw_the_same_dropout():
    found = []
    for checkpoint in (False, True):
        method = MAML(
            Model(MLP(CHANNELS, (20,), dropout=0.5), CLASSES),
            second_order=True,
            checkpoint_steps=checkpoint,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for value in method.parameters():
                nn.init.uniform_(value, -1, 1)
        found.append(_gradient(method.double().train(), "cuda", "loop"))
    assert _off(*found) < 1e-12


def test_an_episode_that_diverges_adds_no_gradient():
    method, episodes = _method("maml").to("cuda"), _episodes()
    audio = episodes[1].query.modalities["audio"]
    bad = Padded(torch.full_like(audio.values, torch.nan), audio.mask)
    query = replace(episodes[1].query, modalities={"audio": bad})
    episodes[1] = replace(episodes[1], query=query)
    for mode in ("stacked", "loop"):
        method.zero_grad()
        losses = MetaBatch(method, mode).backward([e.to("cuda") for e in episodes])
        assert [loss == loss for loss in losses] == [True, False, True]
        assert all(value.grad.isfinite().all() for value in method.parameters())
