import numpy as np
import pytest
import torch
from builders import draw_noise
from scipy.signal import get_window
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, vmap

from metaser import audio
from metaser import safe_librosa as librosa
from metaser.backbones.multiscale_cnn import MultiscaleCNN
from metaser.batch import Padded
from metaser.frontends.leaf import FLOOR, Leaf, pcen, smooth
from metaser.tasks import read_task

PARAMETERS = ["centres", "widths", "pooling", "smoothing", "exponents", "offsets", "roots"]


def _padded(clips: list[np.ndarray], leaf: Leaf, dtype=torch.float32) -> Padded:
    """Clips of samples through ``leaf.extracted``, padded to the longest."""
    frames = [torch.from_numpy(leaf.extracted(clip)).to(dtype) for clip in clips]
    lengths = torch.tensor([len(values) for values in frames])
    values = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return Padded(values, torch.arange(values.shape[1]) < lengths[:, None])


def _scene(seed: int = 0) -> np.ndarray:
    """Two seconds at 16 kHz: gliding harmonics that come and go, and bursts of noise."""
    rng, time = np.random.default_rng(seed), np.arange(32000) / 16000
    phase = 2 * np.pi * np.cumsum(150 + 60 * np.sin(5 * time)) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 30)) * (np.sin(9 * time) > -0.3)
    noise = np.diff(rng.standard_normal(32001)) * (np.sin(9 * time) < -0.5)
    hiss = 1e-4 * rng.standard_normal(32000)
    return (0.1 * voice + 0.05 * noise + hiss).astype(np.float32)


def _mel_edges(filters: int) -> np.ndarray:
    """Edges and centres in Hz, evenly spaced in 2595 log10(1 + f / 700) from 60 to 7800 Hz."""
    low, high = 2595 * np.log10(1 + np.array([60, 7800]) / 700)
    return 700 * (10 ** (np.linspace(low, high, filters + 2) / 2595) - 1)


def _tiny(**changes) -> Leaf:
    """A front end in float64 with windows of 49 samples and strides of 8, its parameters uneven."""
    leaf = Leaf(**{"filters": 3, "rate": 800, "window": 60, "step": 4} | changes).double()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in leaf.parameters():
            parameter *= torch.from_numpy(rng.uniform(0.8, 1.0, leaf.channels))
    return leaf


def test_filters_begin_as_the_written_formula():
    edges = _mel_edges(40)
    centre, base = edges[1:-1, None], (edges[2:] - edges[:-2])[:, None]
    # The root of a triangle is half as high as at its top over three quarters of its base.
    deviation = np.sqrt(8 * np.log(2)) / (2 * np.pi * 0.75 * base / 16000)
    time = np.arange(-200, 201)
    envelope = np.exp(-(time**2) / (2 * deviation**2)) / (np.sqrt(2 * np.pi) * deviation)
    expected = envelope * np.exp(2j * np.pi * centre / 16000 * time)
    real, imaginary = Leaf().gabor().detach().numpy()
    assert real.shape == (40, 401)
    np.testing.assert_allclose(real + 1j * imaginary, expected, atol=2e-6)


def test_filters_squared_are_as_wide_as_mel_filters_at_a_quarter_of_their_height():
    edges = _mel_edges(40)
    real, imaginary = Leaf().gabor().detach().numpy()
    response = np.abs(np.fft.fft(real + 1j * imaginary, 2**16)) ** 2
    width = (response > response.max(axis=1, keepdims=True) / 4).sum(axis=1) * 16000 / 2**16
    np.testing.assert_allclose(width, 0.75 * (edges[2:] - edges[:-2]), rtol=0.04)


def test_a_tone_is_loudest_in_its_own_channel():
    leaf, time = Leaf(), np.arange(16000) / 16000
    for channel, hertz in list(enumerate(_mel_edges(40)[1:-1]))[::3]:
        tone = (0.2 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        energy = leaf.energy(_padded([tone], leaf).values.flatten(1))[0, :, 50].detach()
        assert energy.argmax() == channel
        # The Gaussian of pooling, cut off at 2.5 deviations, keeps 0.988 of it.
        assert energy[channel] == pytest.approx(0.988 * 0.1**2, rel=0.05)


@pytest.mark.parametrize("stride", [10, 30])
def test_energy_equals_convolution_and_pooling_one_by_one(stride):
    leaf = Leaf(filters=5, stride=stride, step=1)
    clip = draw_noise(2400)
    hop, gabor = 16 * stride, leaf.gabor().detach().double().numpy()
    found = leaf.energy(torch.from_numpy(clip)[None])[0].detach()
    assert found.shape == (5, 2400 // hop)
    for channel in range(5):
        modulus = np.convolve(clip, gabor[0, channel] + 1j * gabor[1, channel])  # from -200 on
        power = np.pad(np.abs(modulus) ** 2, 1000)
        time = np.arange(-200, 201)
        window = np.exp(-0.5 * (time / 80) ** 2) / (np.sqrt(2 * np.pi) * 80)
        for frame in range(2400 // hop):
            middle = 1200 + frame * hop + hop // 2
            expected = (window * power[middle - 200 : middle + 201]).sum()
            assert found[channel, frame] == pytest.approx(expected, rel=1e-4)


def test_frames_of_30_ms_are_every_third_of_10_ms():
    clip = torch.from_numpy(draw_noise(16000))[None]
    every, third = Leaf().energy(clip), Leaf(stride=30).energy(clip)
    assert every.shape[2] == 100 and third.shape[2] == 34
    torch.testing.assert_close(third[:, :, :33], every[:, :, 1::3], rtol=1e-4, atol=0)


def test_a_larger_step_hardly_changes_the_output():
    leaf, fast = Leaf(step=1), Leaf()
    clip = _padded([_scene(), draw_noise(32000)], leaf)
    exact, approximate = leaf(clip).values.detach(), fast(clip).values.detach()
    change = (exact - approximate).abs() / exact.std()
    # Most where the window just touches the beginning of a loud sound.
    assert change.median() < 1e-4 and change.quantile(0.999) < 0.02 and change.max() < 0.4


def test_a_larger_step_is_off_by_no_more_than_stated_for_clicks():
    leaf, fast = Leaf(step=1), Leaf(step=8)
    for module in (leaf, fast):
        nn.init.constant_(module.widths, 4.0)
    clicks = torch.zeros(8, 1600)
    clicks[range(8), range(880, 888)] = 1  # at the middle of a frame, off the grid by 0 to 7
    exact, found = (module.energy(clicks)[:, :, 5].detach() for module in (leaf, fast))
    worst = (found / exact - 1).abs().max()
    assert 0.5 < worst / (2 * np.exp(-((np.pi * 4 / 8) ** 2))) < 1.01


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 150])
def test_pcen_equals_a_loop(frames):
    rng = np.random.default_rng(frames)
    energy = rng.uniform(0, 1, (2, 4, frames)) ** 8
    s, alpha = np.array([0, 0.04, 0.5, 1]), np.array([0, 0.5, 0.96, 1])
    delta, r = np.array([0.1, 1, 2, 5]), np.array([1, 2, 3, 4])
    level, expected = energy[:, :, 0], []
    for now in np.moveaxis(energy, 2, 0):
        level = (1 - s) * level + s * now
        expected.append((now / (FLOOR + level) ** alpha + delta) ** (1 / r) - delta ** (1 / r))
    found = pcen(*(torch.from_numpy(x).double() for x in (energy, s, alpha, delta, r)))
    np.testing.assert_allclose(found, np.stack(expected, axis=2), rtol=1e-10, atol=1e-12)


def test_a_frame_is_not_smoothed_by_later_ones():
    energy = torch.rand(1, 2, 100, generator=torch.Generator().manual_seed(0))
    later = energy.clone()
    later[:, :, 70:] *= 1e6
    s = torch.tensor([0.04, 0.3])
    assert torch.equal(smooth(energy, s)[:, :, :70], smooth(later, s)[:, :, :70])


def _mel(clip: np.ndarray) -> np.ndarray:
    """Librosa's mel spectrogram (40, frames), each frame centred as LEAF's are."""
    options = {"sr": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "center": False}
    padded = np.pad(clip, (256 - 80, 256 + 80))
    mel = librosa.feature.melspectrogram(
        y=padded, **options, window=get_window("hann", 400), n_mels=40, fmin=60, fmax=7800,
        htk=True, norm=None
    )  # fmt: skip
    return mel / (200**2)  # the sum of the window, squared: that of a tone is 1/4 of its square


def _agreement(clip: np.ndarray) -> tuple[float, float]:
    """Correlation with librosa's log-mel spectrogram and with librosa's PCEN of it."""
    leaf = Leaf()
    batch = _padded([clip], leaf)
    samples = batch.values.flatten(1)
    energy = leaf.energy(samples)[0].detach().numpy()
    values = leaf(batch).values[0].T.detach().numpy()
    mel = _mel(samples[0].numpy())[:, : values.shape[1]]
    level = np.log(mel + 1e-9), np.log(energy + 1e-9)
    options = {"gain": 0.96, "bias": 2, "power": 0.5, "b": 0.04, "eps": FLOOR}
    compressed = librosa.pcen(mel, **options, zi=0.96 * mel[:, :1])
    return tuple(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in (level, (compressed, values)))


def test_it_begins_like_a_mel_spectrogram_of_made_up_sound():
    for clip in (_scene(0), _scene(1)):
        log_mel, compressed = _agreement(clip)
        assert log_mel > 0.97 and compressed > 0.97


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["emodb", "tess", "urdu", "emovo", "nemo"])
def test_it_begins_like_a_mel_spectrogram_of_speech(corpora, name):
    paths = sorted((corpora / name).rglob("*.flac"))
    if not paths:
        pytest.skip(f"needs {name} below {corpora}")
    for path in paths[:: len(paths) // 4]:
        log_mel, compressed = _agreement(audio.read(path, 16000))
        assert log_mel > 0.97 and compressed > 0.96


def test_every_parameter_is_learnt():
    leaf = Leaf()
    leaf(_padded([_scene()], leaf)).values.square().sum().backward()
    assert [name for name, _ in leaf.named_parameters()] == PARAMETERS
    for name, parameter in leaf.named_parameters():
        assert parameter.shape == (40,) and parameter.grad.isfinite().all()
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("step", [1, 4])
def test_derivatives_match_finite_differences(name, step):
    # Three channels of two clips, and one with more frames than PCEN smooths at once: both at
    # once would take several times longer.
    for filters, lengths in ((3, (90, 40)), (1, (300,))):
        leaf = _tiny(filters=filters, step=step)
        clips = [draw_noise(length, seed) for seed, length in enumerate(lengths)]
        batch = _padded(clips, leaf, torch.float64)

        def output(value):
            return functional_call(leaf, {name: value}, (batch,)).values  # noqa: B023

        value = leaf.get_parameter(name).detach().clone().requires_grad_()
        assert output(value).abs().sum() > 0
        assert gradcheck(output, value)
        assert gradgradcheck(output, value, atol=1e-4)


def test_mixed_second_derivatives_match_finite_differences():
    leaf = _tiny(filters=1)
    batch = _padded([draw_noise(80)], leaf, torch.float64)
    values = [x.detach().clone().requires_grad_() for x in leaf.parameters()]

    def output(*values):
        return functional_call(leaf, dict(zip(PARAMETERS, values)), (batch,)).values

    assert gradgradcheck(output, values, atol=1e-4)


@pytest.mark.parametrize(
    "name, outside, edge",
    [
        ("centres", -0.2, 0.0),
        ("centres", 4.0, np.pi),
        ("widths", -3.0, 2 * np.sqrt(2 * np.log(2)) / np.pi),
        ("widths", 1000.0, 401 * np.sqrt(2 * np.log(2)) / np.pi),
        ("pooling", 0.0, 8 / 200),
        ("pooling", 3.0, 0.5),
        ("smoothing", -0.1, 0.0),
        ("smoothing", 1.5, 1.0),
        ("exponents", -0.5, 0.0),
        ("exponents", 1.5, 1.0),
        ("offsets", -1.0, 1e-3),
        ("roots", -1.0, 1.0),
    ],
)
def test_outside_its_range_a_parameter_counts_as_at_the_edge(name, outside, edge):
    leaf = Leaf(filters=3)
    batch = _padded([_scene()[:8000]], leaf)
    results = []
    for value in (outside, edge):
        own = torch.full((3,), value, requires_grad=True)
        output = functional_call(leaf, {name: own}, (batch,)).values
        output.square().sum().backward()
        results.append((output.detach(), own.grad))
    assert results[0][0].isfinite().all()
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


def test_a_parameter_comes_back_from_outside_its_range():
    leaf = Leaf(filters=3)
    batch = _padded([_scene()[:8000]], leaf)
    target = leaf(batch).values.detach()
    nn.init.constant_(leaf.exponents, 1.2)
    optimiser = torch.optim.Adam([leaf.exponents], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        (leaf(batch).values - target).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(leaf.exponents.detach(), torch.full((3,), 0.96), atol=0.02, rtol=0)


@pytest.mark.parametrize("stride", [10, 30])
def test_padding_changes_nothing(stride):
    leaf = Leaf(stride=stride).double()
    clips = [_scene()[:7000], draw_noise(3210), draw_noise(20, 1), draw_noise(16000, 2)]
    together = leaf(_padded(clips, leaf, torch.float64))
    frames = [-(-len(clip) // (16 * stride)) for clip in clips]
    assert together.mask.sum(dim=1).tolist() == frames
    for row, clip in enumerate(clips):
        alone = leaf(_padded([clip], leaf, torch.float64))
        assert alone.mask.all() and alone.mask.shape == (1, frames[row])
        torch.testing.assert_close(
            together.values[row, : frames[row]], alone.values[0], rtol=1e-11, atol=1e-13
        )
        assert (together.values[row, frames[row] :] == 0).all()


def test_the_last_frames_hear_the_end_of_the_clip_as_a_longer_clip_of_silence_does():
    leaf = Leaf().double()
    clip = draw_noise(3200)
    short, long = (_padded([np.pad(clip, (0, more))], leaf, torch.float64) for more in (0, 4800))
    short, long = leaf(short).values, leaf(long).values
    torch.testing.assert_close(short, long[:, :20], rtol=1e-11, atol=1e-13)
    assert (long[:, 20:22] > 0).all()  # the filters' tails


@pytest.mark.parametrize("stride", [10, 30])
def test_a_stack_of_tasks_equals_one_by_one(stride):
    leaf = Leaf(filters=4, stride=stride).double()
    rng = np.random.default_rng(5)
    inputs = [_padded([draw_noise(4000, 2 * i), draw_noise(2500, 7 * i)], leaf) for i in range(3)]
    values = torch.stack([one.values for one in inputs]).double()
    masks = torch.stack([one.mask for one in inputs])
    own = {
        name: value.detach() * torch.from_numpy(rng.uniform(0.7, 1, (3, 4)))
        for name, value in leaf.named_parameters()
    }

    def output(own, values, mask):
        padded = functional_call(leaf, own, (Padded(values, mask),))
        return padded.values, padded.mask

    def slope(own, values, mask):
        return torch.func.grad(lambda own: output(own, values, mask)[0].square().sum())(own)

    found, mask = vmap(output)(own, values, masks)
    slopes = vmap(slope)(own, values, masks)
    for i in range(3):
        single = {name: value[i] for name, value in own.items()}
        expected, expected_mask = output(single, values[i], masks[i])
        assert torch.equal(mask[i], expected_mask)
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-10)
        for name, value in slope(single, values[i], masks[i]).items():
            torch.testing.assert_close(slopes[name][i], value, rtol=1e-9, atol=1e-9)


def test_awkward_clips_have_finite_output_and_gradients():
    leaf = Leaf()
    square = np.sign(np.sin(np.arange(16000) * 0.05)).astype(np.float32)
    silence, one = np.zeros(8000, np.float32), np.full(1, 0.5, np.float32)
    for clip in (silence, one, square, draw_noise(8000, level=1e-7), np.zeros(0, np.float32)):
        output = leaf(_padded([clip], leaf))
        leaf.zero_grad()
        output.values.square().sum().backward()
        assert output.values.isfinite().all() and output.mask.all()
        assert output.values.shape == (1, max(-(-len(clip) // 160), 1), 40)
        assert all(parameter.grad.isfinite().all() for parameter in leaf.parameters())
    assert (leaf(_padded([silence], leaf)).values == 0).all()
    assert (leaf(_padded([one], leaf)).values > 0).all()


@pytest.mark.parametrize(
    "arguments, taps, hop",
    [
        ({}, 401, 160),
        ({"rate": 8000}, 201, 80),
        ({"rate": 22050, "step": 4}, 553, 220),
        ({"rate": 44100, "step": 7}, 1103, 441),
        ({"window": 10, "stride": 5}, 161, 80),
        ({"window": 25, "stride": 60}, 401, 960),
    ],
)
def test_windows_are_odd_at_any_rate(arguments, taps, hop):
    leaf = Leaf(filters=8, **arguments)
    rate = arguments.get("rate", 16000)
    assert leaf.gabor().shape == (2, 8, taps) and leaf.hop == hop
    assert leaf.extracted.rate == rate and leaf.extracted.hop == rate // 100
    assert leaf.centres.max() < np.pi and leaf.centres.min() > 0
    tone = 0.2 * np.sin(leaf.centres[5].item() * np.arange(rate))
    batch = _padded([tone.astype(np.float32)], leaf)
    assert leaf(batch).values.shape == (1, -(-batch.values.numel() // hop), 8)
    energy = leaf.energy(batch.values.flatten(1))[0, :, 5]
    assert energy.argmax() == 5 and energy[5].item() == pytest.approx(0.988e-2, rel=0.05)


def test_long_clips_are_cut():
    assert len(Leaf(seconds=0.5).extracted(draw_noise(16000))) == 50


def test_what_may_change():
    assert all(parameter.requires_grad for parameter in Leaf().parameters())
    assert not any(parameter.requires_grad for parameter in Leaf(frozen=True).parameters())
    assert not Leaf().adapts and Leaf(adapts=True).adapts
    assert set(Leaf().state_dict()) == set(PARAMETERS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"filters": 0}, "filters must be at least 1, not 0"),
        ({"rate": 100}, "rate must be above 120 Hz, not 100"),
        ({"window": 0.0}, "window must be .* long, not 0.0 ms at 16000 Hz"),
        ({"stride": 0.01}, "stride must be .* long, not 0.01 ms at 16000 Hz"),
        ({"seconds": 0}, "seconds must be above 0, not 0"),
        ({"step": 0}, "divisor of the stride, 160 samples.*not 0"),
        ({"step": 7}, "divisor of the stride, 160 samples.*not 7"),
        ({"step": 16, "window": 5}, "an eighth of the window, 81 samples, not 16: set it to 10"),
        ({"adapts": True, "frozen": True}, "must not both be true"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Leaf(**arguments)


@pytest.mark.slow
@pytest.mark.corpora
def test_it_learns_from_real_speech(corpora):
    task = read_task("de_emodb", corpora)
    if task.table is None:
        pytest.skip(f"needs de_emodb below {corpora}")
    rows = task.table[task.table["emotion"].isin(["angry", "happy", "neutral", "sad"])]
    rows = rows.groupby("emotion").sample(8, random_state=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        leaf = Leaf(seconds=2.0)
        backbone = MultiscaleCNN(leaf.channels, filters=8)
        head = nn.Linear(backbone.dim, 4)
    clips = _padded([audio.read(task.audio / name, 16000) for name in rows["file"]], leaf)
    targets = torch.tensor(rows["emotion"].factorize()[0])
    before = {name: value.detach().clone() for name, value in leaf.named_parameters()}
    parameters = [*leaf.parameters(), *backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(head(backbone(leaf(clips))), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 1 and np.mean(losses[-3:]) < 0.4 * losses[0]
    for name, value in leaf.named_parameters():
        assert ((value - before[name]).abs() > 1e-3).float().mean() > 0.9, name
