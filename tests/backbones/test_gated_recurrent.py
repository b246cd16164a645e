"""The GRU with attention pooling against PyTorch's GRU and the written formula."""

import pytest
import torch
from builders import draw_clips
from torch import Tensor
from torch.func import functional_call, vmap

from metaser.backbones import BACKBONES
from metaser.backbones.layers import AttentionPooling, attend, last_state, shortened
from metaser.batch import Padded

LENGTHS = (4, 1, 7)


def _clips(*lengths: int, channels=3, tasks=()) -> Padded:
    return draw_clips(lengths, channels, tasks=tasks)


def _net(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BACKBONES["gru_attention"](3, **{"hidden": 2, "pool": 1, **options}).double()


def _pooled(pooling: AttentionPooling, states: Tensor) -> Tensor:
    """Attention over the states of one clip, term by term."""
    hidden, score = pooling.hidden, pooling.score.weight[0]
    weights = [torch.exp(score @ torch.tanh(hidden.weight @ h + hidden.bias)) for h in states]
    return sum(w * h for w, h in zip(weights, states)) / sum(weights)


@pytest.mark.parametrize("layers", [1, 2])
def test_each_clip_is_pytorch_s_gru_and_the_formula_of_attention(layers):
    net, clips = _net(layers=layers), _clips(*LENGTHS)
    found = net(clips)
    for row, length in enumerate(LENGTHS):
        states = net.gru(clips.values[[row], :length])[0][0]
        torch.testing.assert_close(found[row], _pooled(net.attention, states))


def test_steps_are_means_of_neighbouring_frames():
    clips = _clips(4, 1, 7)
    found = shortened(clips, 3)
    assert found.mask.tolist() == [[True, True, False], [True, False, False], [True] * 3]
    for row, length in enumerate(LENGTHS):
        for step, part in enumerate(clips.values[row, :length].split(3)):
            torch.testing.assert_close(found.values[row, step], part.mean(dim=0))
    assert shortened(clips, 1) is clips
    torch.testing.assert_close(_net(pool=3)(clips), _net()(found))


def test_a_clip_without_frames_counts_for_nothing():
    net, clips = _net(), _clips(4, 1)
    values = (clips.values + 5).requires_grad_()
    mask = clips.mask & torch.tensor([[True], [False]])
    found = net(Padded(values, mask))
    assert not found[1].any()
    torch.testing.assert_close(found[0], net(Padded(values[:1], mask[:1]))[0])
    slopes = torch.autograd.grad(found.square().sum(), [values, *net.parameters()])
    assert all(slope.isfinite().all() for slope in slopes) and not slopes[0][1].any()


def test_the_last_state_is_that_of_the_last_real_frame():
    clips = _clips(4, 1, 7)
    found = last_state(clips.values, clips.mask & torch.tensor([[True], [False], [True]]))
    assert torch.equal(found[0], clips.values[0, 3]) and torch.equal(found[2], clips.values[2, 6])
    assert not found[1].any()


def test_attention_to_large_scores_neither_overflows_nor_sees_padding():
    scores = torch.tensor([[1e30, 0.0, 5e30]], dtype=torch.float64)
    values = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    assert attend(scores, values, mask).item() == 1.0
    assert attend(-scores, values, mask).item() == 2.0


def test_stacked_tasks_are_tasks_in_turn_also_in_their_second_derivatives():
    net, clips = _net(pool=2), _clips(*LENGTHS, tasks=(2,))
    generator = torch.Generator().manual_seed(1)
    parameters = {
        name: (
            value.detach() + 0.3 * torch.randn(2, *value.shape, generator=generator).double()
        ).requires_grad_()
        for name, value in net.named_parameters()
    }

    def embed(own, values, mask):
        return functional_call(net, own, (Padded(values, mask),))

    with torch.backends.cudnn.flags(enabled=False):
        stacked = vmap(embed)(parameters, clips.values, clips.mask)
        tasks = [{name: value[task] for name, value in parameters.items()} for task in range(2)]
        turns = [embed(own, clips.values[t], clips.mask[t]) for t, own in enumerate(tasks)]
    results = []
    for outputs in (stacked, torch.stack(turns)):
        slopes = torch.autograd.grad(
            outputs.pow(3).sum(), list(parameters.values()), create_graph=True
        )
        norm = sum(slope.square().sum() for slope in slopes)
        results.append([outputs, *slopes, *torch.autograd.grad(norm, list(parameters.values()))])
    for one, other in zip(*results):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_step_has_at_least_one_frame():
    with pytest.raises(ValueError, match="pool must be at least 1, not 0"):
        _net(pool=0)
