"""The multimodal transformer against PyTorch's own layers, clip by clip, without padding."""

import pytest
import torch
from builders import draw_clips
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from metaser.backbones import BACKBONES
from metaser.backbones.layers import with_positions
from metaser.backbones.multimodal_transformer import Context, EncoderLayer
from metaser.batch import Padded
from metaser.model import Model

CHANNELS = {"audio": 5, "text": 3}
CLIPS = {"audio": (4, 1, 9), "text": (2, 6, 1)}
DIALOGUES = {"audio": (4, 1, 3), "text": (4, 1, 3)}
OPTIONS = {"width": 8, "heads": 2, "feedforward": 6, "layers": 2, "pool": 1}


def _clips(lengths=CLIPS, tasks=()) -> dict[str, Padded]:
    return {
        name: draw_clips(own, CHANNELS[name], seed=len(name), tasks=tasks)
        for name, own in lengths.items()
    }


def _net(channels=CHANNELS, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = BACKBONES["multimodal_transformer"](channels, **{**OPTIONS, **options})
        for value in net.double().eval().parameters():
            nn.init.normal_(value, 0, 0.5)
        return net


def _by_pytorch(layer: EncoderLayer) -> nn.TransformerEncoderLayer:
    width = layer.output.in_features
    other = nn.TransformerEncoderLayer(
        width, layer.heads, layer.dense[0].out_features, 0, "gelu", batch_first=True
    )
    own = layer.state_dict()
    names = {
        "self_attn.in_proj_": "attention.",
        "self_attn.out_proj.": "output.",
        "linear1.": "dense.0.",
        "linear2.": "dense.2.",
        "norm1.": "norm_attention.",
        "norm2.": "norm_dense.",
    }
    state = {
        f"{new}{kind}": own[f"{old}{kind}"]
        for new, old in names.items()
        for kind in ("weight", "bias")
    }
    other.load_state_dict(state)
    return other.double()


def _context(layer: Context, x):
    """Of one sequence, by PyTorch's GRU and the formula of the paper."""
    states = layer.gru(x.unsqueeze(0))[0][0]
    found = []
    for own, project in zip(states.chunk(2, dim=-1), (layer.ahead, layer.back)):
        projected = own @ project.weight.T
        rows = []
        for asked in projected:
            weights = torch.stack([torch.exp(asked @ key) for key in projected])
            rows.append(sum(w * h for w, h in zip(weights, own)) / weights.sum())
        found.append(torch.stack(rows))
    return torch.cat(found, dim=-1)


def _parts(net, clip):
    """What the frames of one clip became, by modality."""
    begun = []
    for name, x in clip.items():
        x = _context(net.context[name], x) if net.context else x
        x = x @ net.inputs[name].weight.T + net.inputs[name].bias
        begun.append(x if net.context else with_positions(x))
    x = torch.cat(begun).unsqueeze(0)
    for layer in net.layers:
        x = _by_pytorch(layer)(x)
    return x[0].split([len(own) for own in begun])


def _real(clips, row):
    return {name: padded.values[row][padded.mask[row]] for name, padded in clips.items()}


@pytest.mark.parametrize("channels", [5, CHANNELS])
@pytest.mark.parametrize("options", [{}, {"context": 3}, {"layers": 0}])
def test_a_clip_is_the_means_of_its_frames_after_pytorch_s_layers(channels, options):
    net, clips = _net(channels, **options), _clips()
    clips = {name: clips[name] for name in net.channels}
    found = net(**clips)
    assert found.shape == (3, net.dim)
    for row in range(3):
        means = [part.mean(dim=0) for part in _parts(net, _real(clips, row))]
        torch.testing.assert_close(found[row], torch.cat(means))


@pytest.mark.parametrize("options", [{}, {"context": 3}])
def test_an_utterance_of_a_dialogue_is_its_audio_beside_its_text(options):
    net, clips = _net(dialogue=True, **options), _clips(DIALOGUES)
    found = net(**clips)
    assert found.shape == (3, 4, net.dim)
    for row, count in enumerate(DIALOGUES["audio"]):
        audio, text = _parts(net, _real(clips, row))
        torch.testing.assert_close(found[row, :count], torch.cat([audio, text], dim=-1))
        assert not found[row, count:].any()


def test_only_real_utterances_count_in_the_loss():
    net, clips = _net(dialogue=True, context=2), _clips(DIALOGUES)
    model = Model(net, classes=4).double()
    mask = clips["audio"].mask
    targets = torch.arange(12).view(3, 4) % 4
    scores = model(clips)
    assert scores.shape == (3, 4, 4)
    loss = functional.cross_entropy(scores.flatten(0, 1), targets.where(mask, -100).flatten())
    each = [-scores[place].log_softmax(dim=-1)[targets[place]] for place in zip(*mask.nonzero().T)]
    assert len(each) == 8
    torch.testing.assert_close(loss, sum(each) / 8)
    slopes = torch.autograd.grad(scores[0, 3, 0], model.parameters(), allow_unused=True)
    assert slopes[0].isfinite().all()


def test_a_dialogue_reads_what_was_said_before():
    net, clips = _net(dialogue=True), _clips(DIALOGUES)
    values = clips["audio"].values.clone().requires_grad_()
    output = net(audio=Padded(values, clips["audio"].mask), text=clips["text"])
    slopes = torch.autograd.grad(output[0, 3].square().sum(), values)[0]
    assert slopes[0, 0].any() and not slopes[1:].any()


@pytest.mark.parametrize("options", [{}, {"context": 2}])
@pytest.mark.parametrize("lacking", [("audio",), ("text",), ("audio", "text")])
def test_what_a_clip_lacks_is_finite_and_changes_nothing(lacking, options):
    net, clips = _net(**options), _clips()
    found = []
    for shift in (3, 8):
        given = dict(clips)
        for name in lacking:
            mask = clips[name].mask & torch.tensor([[True], [False], [True]])
            values = clips[name].values + shift * ~mask.unsqueeze(-1)
            given[name] = Padded(values.requires_grad_(), mask)
        found.append(net(**given))
        inputs = [given[name].values for name in lacking]
        slopes = torch.autograd.grad(found[-1].square().sum(), [*inputs, *net.parameters()])
        assert all(slope.isfinite().all() for slope in slopes)
        assert not any(slope[1].any() for slope in slopes[: len(lacking)])
    assert torch.equal(*found)
    torch.testing.assert_close(found[0][::2], net(**clips)[::2])
    lost = [found[0][1, :8], found[0][1, 8:]]
    assert [not part.any() for part in lost] == [name in lacking for name in CHANNELS]


def test_without_any_text_it_is_as_if_every_clip_lacked_it():
    net, clips = _net(), _clips()
    nothing = Padded(clips["text"].values, torch.zeros_like(clips["text"].mask))
    found, expected = net(clips["audio"]), net(clips["audio"], nothing)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"context": 2}, {"pool": 3}])
def test_padding_changes_nothing(options):
    net, clips = _net(**options), _clips()
    longer = {name: padded.lengthened(20) for name, padded in clips.items()}
    torch.testing.assert_close(net(**clips), net(**longer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"context": 2, "dialogue": True}])
def test_stacked_tasks_are_tasks_in_turn(options):
    net = _net(**options)
    clips = _clips(DIALOGUES, tasks=(2,))
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
    net = _net(width=4, layers=1, feedforward=2)
    clips = _clips({"audio": (2, 1), "text": (1, 3)})
    names = [name for name, _ in net.named_parameters()]

    def embed(*parameters):
        return functional_call(net, dict(zip(names, parameters)), kwargs=clips)

    assert torch.autograd.gradcheck(embed, tuple(net.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(embed, tuple(net.parameters()), fast_mode=True)


def test_the_paper_s_model_has_the_number_of_parameters_of_the_formula():
    with torch.device("meta"):
        net = BACKBONES["multimodal_transformer_paper"]({"audio": 100, "text": 100})
    grus = 2 * 3 * 100 * (100 + 100 + 2) + 2 * 3 * 100 * (200 + 100 + 2)
    modality = grus + 2 * 100 * 100 + (200 + 1) * 120
    attention = 4 * (120 + 1) * 120
    layer = attention + (120 + 1) * 3072 + (3072 + 1) * 120 + 2 * 2 * 120
    assert sum(value.numel() for value in net.parameters()) == 2 * modality + 3 * layer
    assert net.dim == 240


@pytest.mark.parametrize(
    "channels, options, message",
    [
        ({"text": 3}, {}, r"must name audio, and may name text, not \['text'\]"),
        (5, {"width": 9}, "width must be even and divisible by 2 heads, not 9"),
        (5, {"width": 8, "heads": 3}, "divisible by 3 heads, not 8"),
        (5, {"dialogue": True, "pool": 4}, "pool must be 1 for dialogues.*not 4"),
        (5, {"pool": 0}, "pool must be at least 1, not 0"),
        (5, {"context": -1}, "context must be at least 0, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(channels, options, message):
    with pytest.raises(ValueError, match=message):
        _net(channels, **options)


def test_text_for_audio_alone_is_refused():
    with pytest.raises(ValueError, match="made for audio alone, but text came"):
        _net(channels=5)(**_clips())
