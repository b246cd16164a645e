"""Attention to the text against the written formula, clip by clip, without padding."""

import pytest
import torch
from builders import draw_clips
from torch.func import functional_call, vmap

from metaser.backbones import BACKBONES
from metaser.batch import Padded

CHANNELS = {"audio": 5, "text": 3}
LENGTHS = {"audio": (4, 1, 9), "text": (2, 6, 1)}
OPTIONS = {"kernels": (3, 5), "filters": 4, "text_kernels": (2, 3)}


def _padded(name, tasks=()) -> Padded:
    return draw_clips(LENGTHS[name], CHANNELS[name], seed=len(name), tasks=tasks)


def _clips(tasks=()) -> dict[str, Padded]:
    return {name: _padded(name, tasks) for name in CHANNELS}


def _net(channels=CHANNELS, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BACKBONES["multiscale_cnn"](channels, **{**OPTIONS, **options}).double()


def _maps(convolutions, x):
    """Maps (filters, frames) of each branch, frame by frame; zeros surround the (frames, …) x."""
    found = []
    for layer in convolutions:
        size = layer.weight.shape[2]
        columns = []
        for t in range(len(x)):
            total = layer.bias.clone()
            for j in range(size):
                at = t + j - (size - 1) // 2
                if 0 <= at < len(x):
                    total = total + layer.weight[:, :, j] @ x[at]
            columns.append(total.clamp(min=0))
        found.append(torch.stack(columns, dim=1))
    return found


def _statistics(maps):
    deviation = (maps.var(dim=1, correction=0) + 1e-5).sqrt()
    return [maps.amax(dim=1), maps.mean(dim=1), deviation]


def _by_hand(net, audio, text):
    heard = [_statistics(maps) for maps in _maps(net.branches, audio)]
    texts = _maps([branch[1] for branch in net.text_branches], text)
    read = [_statistics(maps) for maps in texts]
    columns = torch.cat(texts).T
    found = []
    for kind in range(3):
        asked = torch.cat([statistics[kind] for statistics in heard])
        weights = torch.stack([torch.exp(asked @ h) for h in columns])
        found.append(sum(w * h for w, h in zip(weights, columns)) / weights.sum())
    return torch.cat([*sum(heard, []), *sum(read, []), *found])


def test_every_clip_is_the_written_formula():
    net, clips = _net(), _clips()
    found = net(**clips)
    assert found.shape == (3, net.dim) and net.dim == 3 * 3 * 4 * 2
    for row in range(3):
        real = [padded.values[row][padded.mask[row]] for padded in clips.values()]
        torch.testing.assert_close(found[row], _by_hand(net, *real))


def test_audio_alone_is_what_comes_first_of_both():
    net, clips = _net(), _clips()
    alone = _net(channels=5)
    alone.load_state_dict({k: v for k, v in net.state_dict().items() if k.startswith("branches")})
    assert torch.equal(alone(clips["audio"]), net(**clips)[:, : alone.dim])


@pytest.mark.parametrize("name", CHANNELS)
def test_what_a_clip_lacks_is_finite_and_changes_nothing(name):
    net, clips = _net(), _clips()
    found = []
    for shift in (3, 8):
        own = clips[name]
        mask = own.mask & torch.tensor([[True], [False], [True]])
        values = (own.values + shift * ~mask.unsqueeze(-1)).requires_grad_()
        output = net(**{**clips, name: Padded(values, mask)})
        slopes = torch.autograd.grad(output.square().sum(), [values, *net.parameters()])
        assert all(slope.isfinite().all() for slope in slopes) and not slopes[0][1].any()
        found.append(output)
    assert torch.equal(*found) and torch.equal(found[0][::2], net(**clips)[::2])
    if name == "text":
        assert found[0][1, : net.dim // 3].any() and not found[0][1, net.dim // 3 :].any()


def test_without_any_text_it_is_as_if_every_clip_lacked_it():
    net, clips = _net(), _clips()
    nothing = Padded(clips["text"].values, torch.zeros_like(clips["text"].mask))
    assert torch.equal(net(clips["audio"]), net(clips["audio"], nothing))


def test_padding_changes_nothing():
    net, clips = _net(), _clips()
    longer = {name: padded.lengthened(20) for name, padded in clips.items()}
    torch.testing.assert_close(net(**clips), net(**longer), rtol=1e-12, atol=1e-12)


def test_stacked_tasks_are_tasks_in_turn():
    net, clips = _net(), _clips(tasks=(2,))
    parameters = {
        name: value.detach() + torch.linspace(0, 0.1, 2).double().view(2, *[1] * value.dim())
        for name, value in net.named_parameters()
    }

    def embed(own, values, masks):
        modalities = {name: Padded(values[name], masks[name]) for name in values}
        return functional_call(net, own, kwargs=modalities)

    values = {name: padded.values for name, padded in clips.items()}
    masks = {name: padded.mask for name, padded in clips.items()}
    stacked = vmap(embed)(parameters, values, masks)
    for task in range(2):
        own, x, m = ({k: v[task] for k, v in some.items()} for some in (parameters, values, masks))
        torch.testing.assert_close(stacked[task], embed(own, x, m), rtol=1e-12, atol=1e-12)


def test_both_derivatives_agree_with_finite_differences():
    net, clips = _net(filters=2), _clips()
    names = [name for name, _ in net.named_parameters()]

    def embed(*parameters):
        return functional_call(net, dict(zip(names, parameters)), kwargs=clips)

    assert torch.autograd.gradcheck(embed, tuple(net.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(embed, tuple(net.parameters()), fast_mode=True)


def test_the_paper_s_model_has_the_number_of_parameters_of_the_formula():
    with torch.device("meta"):
        net = BACKBONES["multiscale_cnn_paper"]({"audio": 96, "text": 300})
    audio = sum((size * 96 + 1) * 128 for size in (5, 7, 9, 11))
    text = sum((size * 300 + 1) * 128 for size in (2, 3, 4, 5))
    assert sum(value.numel() for value in net.parameters()) == audio + text
    assert net.dim == 3 * 1536


@pytest.mark.parametrize(
    "channels, options, message",
    [
        ({"text": 3}, {}, r"must name audio, and may name text, not \['text'\]"),
        ({"audio": 5, "smell": 3}, {}, "not .*'smell'"),
        (CHANNELS, {"text_kernels": (2,)}, "text_kernels must be as many as kernels, 2, not 1"),
    ],
)
def test_what_does_not_fit_is_refused(channels, options, message):
    with pytest.raises(ValueError, match=message):
        _net(channels, **options)


def test_text_for_audio_alone_is_refused():
    with pytest.raises(ValueError, match="made for audio alone, but text came"):
        _net(channels=5)(**_clips())
