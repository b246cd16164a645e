"""The key-sparse transformer against its formula in NumPy, clip by clip, without padding."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from builders import draw_clips
from torch import nn
from torch.func import functional_call, vmap

from metaser.backbones import BACKBONES
from metaser.backbones.key_sparse_transformer import KeySparseAttention, kept_keys
from metaser.backbones.layers import with_positions
from metaser.batch import Padded

CHANNELS = {"audio": 5, "text": 3}
LENGTHS = {"audio": (4, 1, 9, 6), "text": (2, 5, 1, 3)}
UNLIKE = {"width": {"audio": 8, "text": 4}, "heads": 2, "dense": (24, 16), "pool": 1}


def _clips(*names, frames=None) -> dict[str, Padded]:
    return {name: draw_clips(LENGTHS[name], CHANNELS[name], frames=frames) for name in names}


def _random(module: nn.Module) -> nn.Module:
    """In double precision, with all parameters random, also those of the norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for value in module.double().eval().parameters():
            nn.init.normal_(value, 0, 0.7)
    return module


def _net(*names, **options) -> nn.Module:
    channels = {name: CHANNELS[name] for name in names}
    return _random(BACKBONES["key_sparse_transformer"](channels, **{**UNLIKE, **options}))


def _numpy(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in module.named_parameters()}


def _positions(frames: int, width: int) -> np.ndarray:
    found = np.empty((frames, width))
    for t in range(frames):
        for j in range(width):
            angle = t / 10_000 ** (2 * (j // 2) / width)
            found[t, j] = math.cos(angle) if j % 2 else math.sin(angle)
    return found


def _attention(p, heads, rate, query, key, value):
    """One clip, frame by frame and head by head; also the keys that each head keeps."""
    q = query @ p["query.weight"].T + p["query.bias"]
    k = key @ p["key.weight"].T
    v = value @ p["value.weight"].T + p["value.bias"]
    size = q.shape[1] // heads
    joined, chosen = np.zeros_like(q), []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        attention = np.empty((len(q), len(k)))
        for i in range(len(q)):
            scores = [math.exp(q[i, part] @ k[j, part] / math.sqrt(size)) for j in range(len(k))]
            attention[i] = np.array(scores) / sum(scores)
        importance = [sum(attention[i, j] for i in range(len(q))) for j in range(len(k))]
        count = max(1, math.floor(Fraction(str(rate)) * len(k)))
        kept = sorted(range(len(k)), key=lambda j: -importance[j])[:count]
        for i in range(len(q)):
            joined[i, part] = sum(attention[i, j] * v[j, part] for j in kept)
        chosen.append(set(kept))
    return joined @ p["output.weight"].T + p["output.bias"], chosen


def _norm(x, p, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]


def _layer(layer, own, other=None):
    other = own if other is None else other
    p, attention = _numpy(layer), layer.attention
    query, key = (x + _positions(*x.shape) for x in (own, other))
    found, _ = _attention(
        _numpy(attention), attention.heads, attention.keep_rate, query, key, other
    )
    own = _norm(own + found, p, "norm_attention")
    hidden = np.maximum(own @ p["dense.0.weight"].T + p["dense.0.bias"], 0)
    return _norm(own + hidden @ p["dense.3.weight"].T + p["dense.3.bias"], p, "norm_dense")


def _by_hand(net, clip: dict[str, np.ndarray]) -> np.ndarray:
    """Embedding of one clip, whose modalities are (real frames, channels); none may be missing."""
    streams = {}
    for name, x in clip.items():
        stream, p = net.streams[name], _numpy(net.streams[name])
        x = _norm(x @ p["input.weight"].T + p["input.bias"], p, "norm")
        for layer in stream.vanilla:
            x = _layer(layer, x)
        streams[name] = x
    met = {}
    for name, x in streams.items():
        met[name] = x
        if len(net.streams) == 2:
            found, others = x, [streams[other] for other in streams if other != name]
            for other in others:
                for index, layer in enumerate(net.streams[name].cross):
                    found = _layer(layer, found) if index % 2 else _layer(layer, found, other)
            whole = x + (x + found if others else 0)
            met[name] = _norm(whole, _numpy(net.streams[name]), "norm_cross")
    means = []
    for name, stream in net.streams.items():
        x = met.get(name)
        for layer in stream.sparse if x is not None else ():
            x = _layer(layer, x)
        means.append(np.zeros(len(stream.norm.bias)) if x is None else x.mean(axis=0))
    x = np.concatenate(means)
    for layer in net.dense:
        x = np.maximum(x @ layer[0].weight.detach().numpy().T + layer[0].bias.detach().numpy(), 0)
    return x


def _check(net, clips: dict[str, Padded]) -> torch.Tensor:
    found = net(**clips)
    for row in range(len(found)):
        clip = {name: x.values[row][x.mask[row]].numpy() for name, x in clips.items()}
        expected = _by_hand(net, {name: x for name, x in clip.items() if len(x)})
        np.testing.assert_allclose(found[row].detach(), expected, rtol=1e-9, atol=1e-9)
    assert found.detach().std(dim=0).max() > 1e-2
    return found


@pytest.mark.parametrize("keep_rate", [0.5, 0.7, 1])
def test_a_single_stream_is_the_formula(keep_rate):
    _check(_net("audio", keep_rate=keep_rate, vanilla_layers=2), _clips("audio"))


@pytest.mark.parametrize("cross_blocks", [0, 1, 2])
def test_two_streams_are_the_formula(cross_blocks):
    _check(_net("audio", "text", cross_blocks=cross_blocks), _clips("audio", "text"))


def test_pooled_frames_are_means_of_neighbours():
    net, clips = _net("audio", pool=3), _clips("audio")
    audio = clips["audio"]
    found = net(audio=audio)
    for row, length in enumerate(LENGTHS["audio"]):
        real = audio.values[row, :length].numpy()
        means = np.stack([real[start : start + 3].mean(axis=0) for start in range(0, length, 3)])
        np.testing.assert_allclose(found[row].detach(), _by_hand(net, {"audio": means}), rtol=1e-9)


@pytest.mark.parametrize("missing", ["text", "audio"])
def test_a_clip_without_one_modality_is_embedded_by_the_other(missing):
    net, clips = _net("audio", "text"), _clips("audio", "text")
    lengths = [n * (row != 2) for row, n in enumerate(LENGTHS[missing])]
    empty = torch.arange(max(LENGTHS[missing])) < torch.tensor(lengths)[:, None]
    whole = net(**clips)
    values = clips[missing].values.clone()
    clips[missing] = Padded(values, empty)
    found = _check(net, clips)
    torch.testing.assert_close(found[[0, 1, 3]], whole[[0, 1, 3]])
    values[2] = float("nan")
    assert torch.equal(net(**clips), found)


def test_without_any_text_clips_are_embedded_by_their_audio():
    net, clips = _net("audio", "text"), _clips("audio", "text")
    nothing = Padded(clips["text"].values, torch.zeros_like(clips["text"].mask))
    found = net(audio=clips["audio"])
    torch.testing.assert_close(found, net(audio=clips["audio"], text=nothing))
    _check(net, {"audio": clips["audio"]})


def test_a_missing_modality_has_finite_first_and_second_derivatives_and_no_slope():
    net, clips = _net("audio", "text"), _clips("audio", "text")
    for name, row in (("text", 2), ("audio", 0)):
        clips[name].mask[row] = False
        clips[name].values.requires_grad_()
    inputs = [clips["audio"].values, clips["text"].values, *net.parameters()]
    slopes = torch.autograd.grad(net(**clips).square().sum(), inputs, create_graph=True)
    curves = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs)
    assert all(value.isfinite().all() for value in (*slopes, *curves))
    assert not slopes[0][0].any() and not slopes[1][2].any()
    assert slopes[0][2].any() and slopes[1][0].any()


@pytest.mark.parametrize("frames", [10, 12, 31])
@pytest.mark.parametrize("pool", [1, 4])
def test_padding_never_changes_an_output(frames, pool):
    net = _net("audio", "text", pool=pool)
    found = net(**_clips("audio", "text", frames=frames))
    torch.testing.assert_close(found, net(**_clips("audio", "text")), rtol=1e-12, atol=1e-12)


def test_two_streams_mapped_over_tasks_are_tasks_in_turn():
    net, clips = _net("audio", "text"), _clips("audio", "text")
    stacked = {k: torch.stack([v, 0.9 * v]).detach() for k, v in net.named_parameters()}

    def embed(parameters):
        return functional_call(net, parameters, kwargs=clips)

    together = vmap(embed)(stacked)
    for task in range(2):
        alone = embed({key: value[task] for key, value in stacked.items()})
        torch.testing.assert_close(together[task], alone)
    assert (together[0] - together[1]).abs().max() > 1e-3


def _stock(attention: KeySparseAttention, key_width: int) -> nn.MultiheadAttention:
    """PyTorch's attention with the same weights."""
    width = attention.query.out_features
    # Told the widths apart, it keeps three matrices instead of one.
    stock = nn.MultiheadAttention(
        width, attention.heads, kdim=key_width, vdim=key_width, batch_first=True
    ).double()
    projections = [attention.query.weight, attention.key.weight, attention.value.weight]
    with torch.no_grad():
        if stock.in_proj_weight is None:
            stock.q_proj_weight.copy_(projections[0])
            stock.k_proj_weight.copy_(projections[1])
            stock.v_proj_weight.copy_(projections[2])
        else:
            stock.in_proj_weight.copy_(torch.cat(projections))
        no_bias = torch.zeros_like(attention.query.bias)
        stock.in_proj_bias.copy_(torch.cat([attention.query.bias, no_bias, attention.value.bias]))
    stock.out_proj.load_state_dict(attention.output.state_dict())
    return stock


@pytest.mark.parametrize("key_width", [6, 4])
def test_with_all_keys_it_is_ordinary_attention(key_width):
    attention = _random(KeySparseAttention(6, 3, 1, key_width))
    query, key = draw_clips((4, 2, 7), 6), draw_clips((5, 8, 1), key_width, seed=1)
    values = draw_clips((5, 8, 1), key_width, seed=2).values
    found = attention(query, key, values)
    expected, _ = _stock(attention, key_width)(
        query.values, key.values, values, key_padding_mask=~key.mask
    )
    torch.testing.assert_close(found[query.mask], expected[query.mask])
    sparse = _random(KeySparseAttention(6, 3, 0.9, key_width))(query, key, values)
    assert (sparse - found)[0].abs().max() > 1e-3


@pytest.mark.parametrize("keep_rate", [0.01, 0.21, 0.29, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("frames", [300, 317])
def test_every_head_keeps_that_share_of_the_real_keys(keep_rate, frames):
    lengths = [1, 2, 3, 7, 10, 99, 100, 300, 0]
    keys = torch.arange(frames) < torch.tensor(lengths)[:, None]
    queries = torch.arange(6) < torch.tensor([1, 6, 5, 2, 6, 3, 6, 4, 6])[:, None]
    scores = torch.randn(9, 4, 6, frames, generator=torch.Generator().manual_seed(0))
    # Most weight lies on the padding, had it any
    weights = torch.where(keys[:, None, None], scores, 9.0).softmax(dim=-1)
    kept = kept_keys(weights, queries, keys, keep_rate).expand(-1, 4, -1)
    assert not kept[~keys.unsqueeze(1).expand_as(kept)].any()
    for row, real in enumerate(lengths):
        count = min(real, max(1, math.floor(Fraction(str(keep_rate)) * real)))
        assert (kept[row].sum(dim=-1) == count).all()
        for head in range(4):
            importance = weights[row, head][queries[row]].sum(dim=0)[:real]
            best = set(importance.argsort(descending=True)[:count].tolist())
            assert set(kept[row, head].nonzero().flatten().tolist()) == best


def test_of_equal_keys_the_earlier_are_kept():
    keys, queries = torch.tensor([[True] * 5 + [False]]), torch.ones(1, 2, dtype=torch.bool)
    kept = kept_keys(torch.full((1, 1, 2, 6), 1 / 6), queries, keys, 0.5)
    assert kept.tolist() == [[[True, True, False, False, False, False]]]


def test_gradients_flow_through_the_values_of_kept_keys_only():
    attention = _random(KeySparseAttention(6, 1, 0.5))
    frames, values = draw_clips((8,), 6), draw_clips((8,), 6, seed=1).values.requires_grad_()
    slope = torch.autograd.grad(attention(frames, frames, values).square().sum(), values)[0]
    x = frames.values[0].numpy()
    _, (kept,) = _attention(_numpy(attention), 1, 0.5, x, x, values[0].detach().numpy())
    assert len(kept) == 4
    assert {int(j) for j in slope[0].any(dim=1).nonzero()} == kept


def test_positions_are_sines_and_cosines():
    found = with_positions(torch.zeros(2, 7, 6, dtype=torch.float64))
    np.testing.assert_allclose(found, np.stack([_positions(7, 6)] * 2), rtol=1e-12)


def _count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_the_paper_s_network_has_its_layers():
    with torch.device("meta"):
        net = BACKBONES["key_sparse_transformer_paper"](CHANNELS)

    def layer(width, other):
        attention = 2 * (width**2 + width) + other * width + other * width + width
        hidden = width // 2
        return attention + 2 * width * hidden + hidden + width + 2 * 2 * width

    def stream(channels, width, other):
        own = 5 + 3 + 2
        norms = 2 * 2 * width
        ends = channels * width + width + norms
        return ends + own * layer(width, width) + 3 * layer(width, other)

    dense = 1536 * 768 + 768 + 768 * 384 + 384
    assert _count(net) == stream(5, 512, 1024) + stream(3, 1024, 512) + dense
    assert net.dim == 384
    layers = [module for module in net.modules() if isinstance(module, KeySparseAttention)]
    assert {attention.heads for attention in layers} == {8}
    assert [attention.keep_rate for attention in layers].count(1) == 2 * 5
    assert {attention.keep_rate for attention in layers} == {0.5, 1}
    hidden = {(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)}
    assert {(512, 256), (1024, 512)} <= hidden


def test_the_default_is_small():
    assert _count(BACKBONES["key_sparse_transformer"](64)) < 200_000
    assert _count(BACKBONES["key_sparse_transformer"]({"audio": 64, "text": 64})) < 250_000


def test_dropout_works_in_training_only():
    net = BACKBONES["key_sparse_transformer"](5, dropout=0.3, dense_dropout=0.3).double()
    clips = _clips("audio")
    assert not torch.equal(net(**clips), net(**clips))
    net.eval()
    assert torch.equal(net(**clips), net(**clips))


def test_text_for_a_network_of_audio_is_refused():
    with pytest.raises(
        ValueError, match="audio alone, but text came: give it the channels of both"
    ):
        _net("audio")(**_clips("audio", "text"))


@pytest.mark.parametrize(
    "channels, options, message",
    [
        ({"text": 3}, {}, r"must name audio.*not \['text'\]"),
        ({"audio": 3, "video": 2}, {}, r"may name text.*'video'"),
        ({"audio": 3, "text": 2}, {"width": {"audio": 8}}, "width must name all of"),
        (3, {"width": 6, "heads": 4}, "even and divisible by its 4 heads, not 6"),
        (3, {"width": 5, "heads": 5}, "even and divisible by its 5 heads, not 5"),
        (3, {"keep_rate": 0}, r"keep_rate must be in \(0, 1\], not 0"),
        (3, {"keep_rate": 1.5}, r"keep_rate must be in \(0, 1\], not 1.5"),
        (3, {"pool": 0}, "pool must be at least 1, not 0"),
        (3, {"cross_blocks": -1}, "cross_blocks must be at least 0, not -1"),
        (3, {"dense": ()}, "dense"),
    ],
)
def test_what_does_not_fit_is_refused(channels, options, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES["key_sparse_transformer"](channels, **options)
