"""Modality hopping against a plain loop over clips and hops."""

import pytest
import torch
from builders import draw_clips
from torch.func import functional_call, vmap

from metaser.backbones import BACKBONES
from metaser.batch import Padded

CHANNELS = {"audio": 5, "text": 2, "video": 4}
LENGTHS = {"audio": (4, 1, 7), "text": (2, 3, 1), "video": (1, 5, 2)}


def _padded(lengths, channels, tasks=()) -> Padded:
    return draw_clips(lengths, channels, seed=channels, tasks=tasks)


def _clips(*names, lengths=LENGTHS, tasks=()) -> dict[str, Padded]:
    return {name: _padded(lengths[name], CHANNELS[name], tasks) for name in names}


def _net(*names, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels = {name: CHANNELS[name] for name in names}
        options = {"hidden": {"audio": 3, "text": 2, "video": 4}, "pool": 1, **options}
        return BACKBONES["modality_hopping"](channels, **options).double()


def _by_hand(net, views: list[torch.Tensor], order: list[int]) -> torch.Tensor:
    """Embedding of one clip, whose views are (real frames, channels)."""
    states = [
        gru(x.unsqueeze(0))[0][0] if len(x) else x.new_zeros(0, gru.hidden_size)
        for gru, x in zip(net.grus, views)
    ]
    summaries = [h[-1] if len(h) else h.new_zeros(h.shape[1]) for h in states]
    assert len(net.questions) == len(order)
    for view, affine in zip(order, net.questions):
        others = [s for index, s in enumerate(summaries) if index != view or len(views) == 1]
        query = affine.weight @ torch.cat(others) + affine.bias
        if len(views[view]):
            weights = torch.exp(torch.stack([query @ h for h in states[view]]))
            summaries[view] = sum(w * h for w, h in zip(weights, states[view])) / weights.sum()
    return torch.cat(summaries)


def _check(net, clips, order, streams=None):
    found = net(**clips)
    assert found.shape[1] == net.dim
    for row in range(len(found)):
        views = []
        for name, padded in clips.items():
            real = padded.values[row][padded.mask[row]]
            views += real.split(streams, dim=-1) if name == "audio" and streams else [real]
        torch.testing.assert_close(found[row], _by_hand(net, views, order))


@pytest.mark.parametrize(
    "names, order",
    [
        (("audio", "text", "video"), [2, 0, 1, 2, 0, 1, 2]),
        (("audio", "text"), [1, 0, 1, 0]),
        (("text", "video"), [1, 0, 1]),
        (("audio",), [0, 0]),
        (("audio", "video"), []),
    ],
)
def test_every_clip_is_the_written_formula(names, order):
    _check(_net(*names, hops=len(order)), _clips(*names), order)


@pytest.mark.parametrize("others", [(), ("text",)])
def test_streams_of_the_audio_hop_like_modalities(others):
    order = [2, 0, 1, 2] if others else [1, 0, 1, 0]
    _check(_net("audio", *others, hops=4, streams=[2, 3]), _clips("audio", *others), order, [2, 3])


def test_an_int_is_for_audio_alone():
    net = BACKBONES["modality_hopping"](5, hidden=3, hops=2, pool=1).double()
    _check(net, _clips("audio"), [0, 0])


def test_the_order_of_the_channels_does_not_matter():
    names = ("video", "audio", "text")
    clips = _clips(*names)
    assert torch.equal(_net(*names)(**clips), _net(*reversed(names))(**clips))


@pytest.mark.parametrize("lacking", [("audio",), ("text", "video"), ("audio", "text", "video")])
def test_a_modality_that_a_clip_lacks_is_skipped(lacking):
    net, clips = _net("audio", "text", "video", hops=5), _clips("audio", "text", "video")
    for name in lacking:
        own = clips[name]
        mask = own.mask & torch.tensor([[True], [False], [True]])
        clips[name] = Padded((own.values + 7).requires_grad_(), mask)
    _check(net, clips, [2, 0, 1, 2, 0])
    inputs = [clips[name].values for name in lacking]
    slopes = torch.autograd.grad(
        net(**clips).square().sum(), [*inputs, *net.parameters()], create_graph=True
    )
    curved = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), net.parameters())
    assert all(value.isfinite().all() for value in (*slopes, *curved))
    assert not any(slope[1].any() for slope in slopes[: len(lacking)])


@pytest.mark.parametrize("pool", [1, 3])
def test_padding_changes_nothing(pool):
    net, clips = _net("audio", "text", hops=3, pool=pool), _clips("audio", "text")
    longer = {name: padded.lengthened(20) for name, padded in clips.items()}
    torch.testing.assert_close(net(**clips), net(**longer), rtol=1e-12, atol=1e-12)


def test_only_audio_is_shortened():
    clips = _clips("audio", "text")
    audio = clips["audio"]
    means = [
        [p.mean(dim=0) for p in audio.values[row, :n].split(3)]
        for row, n in enumerate(LENGTHS["audio"])
    ]
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    values = torch.zeros(3, 3, 5, dtype=torch.float64)
    values[mask] = torch.stack([mean for row in means for mean in row])
    expected = _net("audio", "text")(audio=Padded(values, mask), text=clips["text"])
    torch.testing.assert_close(_net("audio", "text", pool=3)(**clips), expected)


def test_stacked_tasks_are_tasks_in_turn():
    names = ("audio", "text", "video")
    net, clips = _net(*names, hops=4, streams=[1, 4]), _clips(*names, tasks=(2,))
    parameters = {
        name: value.detach() + torch.linspace(0, 0.1, 2).double().view(2, *[1] * value.dim())
        for name, value in net.named_parameters()
    }

    def embed(own, values, masks):
        modalities = {name: Padded(values[name], masks[name]) for name in values}
        return functional_call(net, own, kwargs=modalities)

    values = {name: padded.values for name, padded in clips.items()}
    masks = {name: padded.mask for name, padded in clips.items()}
    with torch.backends.cudnn.flags(enabled=False):
        stacked = vmap(embed)(parameters, values, masks)
    for task in range(2):
        own, x, m = ({k: v[task] for k, v in some.items()} for some in (parameters, values, masks))
        torch.testing.assert_close(stacked[task], embed(own, x, m), rtol=1e-12, atol=1e-12)


def test_both_derivatives_agree_with_finite_differences():
    net, clips = _net("audio", "text", hops=3), _clips("audio", "text")
    names = [name for name, _ in net.named_parameters()]

    def embed(*parameters):
        with torch.backends.cudnn.flags(enabled=False):
            return functional_call(net, dict(zip(names, parameters)), kwargs=clips)

    assert torch.autograd.gradcheck(embed, tuple(net.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(embed, tuple(net.parameters()), fast_mode=True)


def test_the_paper_s_model_has_the_number_of_parameters_of_the_formula():
    def gru(channels, hidden):
        return 3 * hidden * (channels + hidden + 2)

    with torch.device("meta"):
        net = BACKBONES["modality_hopping_paper"]({"audio": 120, "text": 300, "video": 2048})
    to_video, to_audio, to_text = (400 + 1) * 128, (328 + 1) * 200, (328 + 1) * 200
    hops = 3 * to_video + 2 * to_audio + 2 * to_text
    expected = gru(120, 200) + gru(300, 200) + gru(2048, 128) + hops
    assert sum(value.numel() for value in net.parameters()) == expected == 1_747_936
    assert net.dim == 528


@pytest.mark.parametrize("hops", [-1, 13])
def test_too_few_or_too_many_hops_are_refused(hops):
    with pytest.raises(ValueError, match=rf"hops must be in \[0, 12\], not {hops}"):
        _net("audio", hops=hops)


@pytest.mark.parametrize(
    "channels, options, message",
    [
        ({"audio": 3, "smell": 2}, {}, "channels must name some of .*'smell'"),
        ({}, {}, r"channels must name some of .*not \[\]"),
        ({"audio": 3, "text": 2}, {"hidden": {"audio": 3}}, "hidden must name all of .*'text'"),
        (5, {"streams": [2, 2]}, "add up to the 5 channels of the audio, not to 4"),
        ({"text": 5}, {"streams": [5]}, "add up to the 0 channels of the audio, not to 5"),
        (5, {"pool": 0}, "pool must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused(channels, options, message):
    with pytest.raises(ValueError, match=message):
        BACKBONES["modality_hopping"](channels, **options)


def test_modalities_that_a_task_lacks_or_has_too_many_of_are_named():
    net, clips = _net("audio", "video"), _clips("audio", "text", "video")
    with pytest.raises(ValueError, match="must get audio and video, .* not audio:"):
        net(audio=clips["audio"])
    with pytest.raises(ValueError, match="must get audio and video, .* not nothing"):
        net()
    with pytest.raises(ValueError, match="must get audio and video, .* audio and text and video"):
        net(**clips)
