"""Cutting at pauses against a plain loop over frames, and the network against one over clips."""

from itertools import groupby

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn import functional

from metaser.backbones import BACKBONES
from metaser.backbones.mlp import MLP
from metaser.backbones.recurrent import Recurrent
from metaser.backbones.segment_sequence import SOUNDS, SegmentSequence
from metaser.batch import Padded
from metaser.frontends.spectral import LogMel

TINY = {"hidden": 2, "segments": 3, "pause": 3, "shortest": 2, "pool": 1}


def _net(backbone=Recurrent, inner=None, channels=2, **options) -> SegmentSequence:
    inner = {"hidden": 2, "layers": 1} if inner is None else inner
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SegmentSequence(channels, backbone, inner, **{**TINY, **options}).double()


def _padded(clips: list[torch.Tensor], frames=0) -> Padded:
    frames = max(frames, *(len(clip) for clip in clips))
    values = torch.stack([functional.pad(clip, (0, 0, 0, frames - len(clip))) for clip in clips])
    return Padded(values, torch.arange(frames) < torch.tensor([[len(clip)] for clip in clips]))


def _levels(*texts: str) -> Padded:
    """Clips of one channel: "#" is loud, "." is quiet."""
    return _padded([torch.tensor([[float(c == "#")] for c in text]) for text in texts])


def _speech(*lengths: int, channels=2, seed=0) -> list[torch.Tensor]:
    """Clips that are now loud, now quiet."""
    rng = np.random.default_rng(seed)
    clips = []
    for length in lengths:
        loud = np.repeat(rng.random(length) < 0.5, rng.integers(1, 6, length))[:length]
        values = rng.standard_normal((length, channels)) + 9 * loud[:, None]
        clips.append(torch.from_numpy(values))
    return clips


def _by_hand(level: list[float], threshold, pause, shortest, segments) -> list[int]:
    """Segment of each frame of one clip, run by run."""

    def runs(flags):
        return [(key, len(list(group))) for key, group in groupby(flags)]

    edge = min(level) + threshold * (max(level) - min(level))
    quiet = [key and n >= pause for key, n in runs(x < edge for x in level) for _ in range(n)]
    loud = [not key and n >= shortest for key, n in runs(quiet) for _ in range(n)]
    index = [place for place, (_, n) in enumerate(runs(loud)) for _ in range(n)]
    return [min(place, segments - 1) for place in index]


@pytest.mark.parametrize(
    "clip, segments",
    [
        ("#####...#####", "0000011122222"),
        ("#####..#####.", "0000000000000"),  # too short for pauses
        ("...####", "0001111"),
        ("...#...###", "0000000111"),  # a click is no segment
        ("###...###...###...", "000111222222222222"),  # the third and last has the rest
        ("#", "0"),
        (".", "0"),
        ("....", "0000"),
    ],
)
def test_pauses_of_three_frames_cut(clip, segments):
    found = _net(channels=1).places(_levels(clip, "#" * 20))
    assert found[0].tolist() == [int(c) for c in segments] + [-1] * (20 - len(clip))
    assert found[1].tolist() == [0] * 20


@pytest.mark.parametrize("segments, pause, shortest", [(3, 3, 2), (2, 1, 1), (6, 5, 5), (1, 4, 1)])
def test_segments_are_those_of_a_loop_over_frames(segments, pause, shortest):
    options = {"threshold": 0.3, "pause": pause, "shortest": shortest, "segments": segments}
    net, clips = _net(**options), _speech(40, 1, 7, 2, 60, 33)
    found = net.places(_padded(clips))
    assert found.amax() == segments - 1
    for row, clip in zip(found, clips):
        assert row[: len(clip)].tolist() == _by_hand(clip.mean(dim=1).tolist(), **options)
        assert (row[len(clip) :] == -1).all()
        parts = row[: len(clip)].bincount()
        assert len(parts) == 1 or (parts >= shortest).all()


def test_one_channel_may_tell_the_level():
    loud, quiet = torch.ones(4), torch.zeros(4)
    clip = torch.stack([torch.cat([loud, quiet]), torch.cat([loud, 2 * loud])], dim=1)
    for level, expected in ((0, [0] * 4 + [1] * 4), (1, [0] * 4 + [1] * 4), (None, [0] * 8)):
        assert _net(level=level).places(_padded([clip]))[0].tolist() == expected


def test_gain_and_scale_of_the_channels_change_no_segment():
    net, clips = _net(), _speech(40, 60)
    scaled = [3 * clip - 50 for clip in clips]
    assert torch.equal(net.places(_padded(clips)), net.places(_padded(scaled)))


def test_a_tone_a_pause_and_a_tone_are_three_segments():
    rng = np.random.default_rng(0)
    rate, seconds = 16000, np.arange(16000 * 13 // 10) / 16000
    tone = (200 * seconds % 1 - 0.5) * ((seconds < 0.5) | (seconds >= 0.8))  # in all bands
    noise = 1e-3 * rng.standard_normal(len(tone))
    frames = torch.from_numpy(LogMel(rate=rate)((tone + noise).astype(np.float32)))
    net = BACKBONES["segment_sequence"](64)
    (found,) = net.places(_padded([frames])).tolist()
    assert sorted(set(found)) == [0, 1, 2] and found == sorted(found)
    assert abs(found.index(1) - 50) <= 2 and abs(found.index(2) - 80) <= 2  # windows reach over


def test_speech_has_pauses(corpora):
    import soundfile

    files = sorted((corpora / "emovo").rglob("*.flac"))[::40]
    waves = [soundfile.read(file, dtype="float32")[0] for file in files]
    clips = [torch.from_numpy(clip) for clip in LogMel(engine="torch").many(waves)]
    counts = BACKBONES["segment_sequence"](64).places(_padded(clips)).amax(dim=1) + 1
    assert 1.5 < counts.float().mean() < 4


@pytest.mark.parametrize(
    "backbone, inner", [(Recurrent, {"hidden": 2, "layers": 1}), (MLP, {"hidden": (3,)})]
)
def test_every_clip_is_a_loop_over_its_segments(backbone, inner):
    net, clips = _net(backbone, inner, segments=4), _speech(40, 1, 7, 33)
    found, scores = net(_padded(clips)), net.sound_scores(_padded(clips))
    counts = []
    for row, clip in enumerate(clips):
        vectors = []
        counts.append(int(net.places(_padded([clip])).amax()) + 1)
        for segment in range(counts[-1]):
            part = _padded([clip[net.places(_padded([clip]))[0] == segment]])
            emotion, sound = net.emotion(audio=part)[0], net.sound(audio=part)[0]
            torch.testing.assert_close(scores[row, segment], net.sounds(sound))
            vectors.append(torch.cat([emotion, sound, net.sounds(sound)]))
        states, (final, _) = net.lstm(torch.stack(vectors))
        keys = [torch.cat([final[0], final[1], state]) for state in states]
        hidden, score = net.attention.hidden, net.attention.score.weight[0]
        weights = [torch.exp(score @ torch.tanh(hidden.weight @ x + hidden.bias)) for x in keys]
        expected = sum(w * state for w, state in zip(weights, states)) / sum(weights)
        torch.testing.assert_close(found[row], expected)
    assert max(counts) == 4 and min(counts) == 1


@pytest.mark.parametrize("pool", [1, 2])
def test_padding_and_neighbours_change_nothing(pool):
    net, clips = _net(pool=pool), _speech(40, 1, 7, 33)
    together = net(_padded(clips))
    torch.testing.assert_close(together, net(_padded(clips, 77)), rtol=1e-12, atol=1e-12)
    alone = torch.cat([net(_padded([clip])) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_a_clip_without_frames_counts_for_nothing():
    net, audio = _net(), _padded(_speech(20, 20))
    values = (audio.values + 3).requires_grad_()
    audio = Padded(values, audio.mask & torch.tensor([[True], [False]]))
    found = net(audio)
    assert (net.places(audio)[1] == -1).all() and not found[1].any()
    slopes = torch.autograd.grad(found.square().sum(), [values, *net.emotion.parameters()])
    assert all(slope.isfinite().all() for slope in slopes) and not slopes[0][1].any()


def test_sound_loss_is_the_cross_entropy_of_segments_whose_sound_is_known():
    net, audio = _net(segments=4), _padded(_speech(40, 1, 33))
    present = [int(places.amax()) + 1 for places in net.places(audio)]
    assert present[1] == 1
    labels = torch.tensor([[0, 4, -1, 2], [1, 3, 3, 3], [2, -100, 0, 4]])
    scores, losses = net.sound_scores(audio), []
    assert scores.shape == (3, 4, len(SOUNDS))
    for row, count in enumerate(present):
        for segment in range(count):
            label = int(labels[row, segment])
            if label >= 0:
                own = scores[row, segment]
                losses.append(own.exp().sum().log() - own[label])
    assert 3 < len(losses) < 10
    torch.testing.assert_close(net.sound_loss(audio, labels), sum(losses) / len(losses))
    assert net.sound_loss(audio, torch.full((3, 4), -1)) == 0


def test_sounds_can_be_learnt_and_change_the_embedding():
    net, audio = _net(segments=4), _padded(_speech(40, 20, 33))
    labels = (net.places(audio).amax(dim=1, keepdim=True) + torch.arange(4)) % 5
    before = net(audio), net.sound_loss(audio, labels)
    trained = [*net.sound.parameters(), *net.sounds.parameters()]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        net.sound_loss(audio, labels).backward()
        optimizer.step()
    assert all(value.grad is None for value in net.emotion.parameters())
    assert net.sound_loss(audio, labels) < 0.8 * before[1]
    assert (net(audio) - before[0]).abs().max() > 1e-3


def test_stacked_tasks_are_tasks_in_turn():
    net = _net()
    tasks = [_padded(_speech(40, 1, 33, seed=seed)) for seed in range(2)]
    values, masks = (
        torch.stack([getattr(task, part) for task in tasks]) for part in ("values", "mask")
    )
    parameters = {
        name: value.detach() + torch.linspace(0, 0.1, 2).double().view(2, *[1] * value.dim())
        for name, value in net.named_parameters()
    }

    def embed(own, values, mask):
        return functional_call(net, own, (Padded(values, mask),))

    with torch.backends.cudnn.flags(enabled=False):
        stacked = vmap(embed)(parameters, values, masks)
    for task in range(2):
        own = {name: value[task] for name, value in parameters.items()}
        expected = embed(own, values[task], masks[task])
        torch.testing.assert_close(stacked[task], expected, rtol=1e-12, atol=1e-12)


def test_the_large_model_has_the_number_of_parameters_of_the_formula():
    with torch.device("meta"):
        net = BACKBONES["segment_sequence_paper"](64)
    convolutions = 2 * sum((size * 64 + 1) * 128 for size in (5, 7, 9, 11))
    width = 2 * 1536 + 5
    sounds = (1536 + 1) * 5
    lstm = 2 * 4 * 512 * (width + 512 + 2)
    attention = (2048 + 1) * 512 + 512
    expected = convolutions + sounds + lstm + attention
    assert sum(value.numel() for value in net.parameters()) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"segments": 0}, "segments must be at least 1, not 0"),
        ({"shortest": 0}, "shortest must be at least 1, not 0"),
        ({"pause": 3, "shortest": 4}, "pause must be at least 4, not 3"),
        ({"pool": 0}, "pool must be at least 1, not 0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, not 1.0"),
        ({"level": 2}, "level must be one of the 2 channels, not 2"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _net(**options)
