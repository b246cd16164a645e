"""LEAF: filters, pooling and compression that are learnt, beginning like a mel spectrogram."""

from math import ceil, log, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from metaser import safe_librosa as librosa
from metaser.batch import Padded
from metaser.frontends.waveform import Waveform

LOWEST, HIGHEST = 60.0, 7800.0
"""Edges in Hz of the mel filters that the Gabor filters begin as."""

FLOOR = 1e-8
"""Energy below which PCEN does not amplify; a sine of amplitude a has a² / 4 at its filter."""

BLOCK = 32
"""Frames that are smoothed at once."""

BELL = 2 * sqrt(2 * log(2))
"""Full width at half maximum of a Gaussian of deviation 1."""


class Leaf(nn.Module):
    """Learnable front end: Gabor filters, squared modulus, Gaussian pooling, PCEN.

    A parameter that an optimiser moves out of its range counts as at the edge of it, with the
    gradient that it has there, so that it can come back.

    Parameters
    ----------
    filters : int
        Filters, which are the channels of the output.
    rate : int
        Sampling rate in Hz that the waveform must have.
    window : float
        Length in ms of the filters and of the pooling, rounded to an odd number of samples.
    stride : float
        Step of the output's frames in ms; 10 in the paper, 30 in Dutta and Ganapathy's.
    seconds : float
        Longest clip; what exceeds it is cut.
    step : int
        Samples from one point where the filters are evaluated to the next: a divisor of the stride,
        at most an eighth of the window. The paper has 1; 8 takes a tenth of the time, a quarter of
        the memory, and changes the pooled energy of speech by 1e-4 of itself (median; most where a
        loud sound just touches the window). The energy of a click is off by a share of up to
        2 exp(-(pi width / step)²), ``width`` being the filter's: 3e-5 for the widest of 40 filters
        as they begin.
    adapts : bool
        Whether inner loops, and fine-tuning on a few clips, change the parameters.
    frozen : bool
        Whether all training leaves the parameters as they are.

    Attributes
    ----------
    extracted : Waveform
        Makes the frames that ``forward`` reads, of 10 ms whatever the stride.
    channels : int
        Channels of the output.
    centres : Parameter
        (filters,) centre frequencies in radians per sample, from 0 to pi.
    widths : Parameter
        (filters,) deviations of the filters' envelopes in samples, which are inverse bandwidths:
        the full width at half maximum of a filter's response is between one over the window and
        half the sampling rate.
    pooling : Parameter
        (filters,) deviations of the pooling, in halves of the window, from ``step`` samples to 0.5.
    smoothing, exponents, offsets, roots : Parameter
        (filters,) PCEN's s, from 0 to 1; alpha, from 0 to 1; delta, at least 0.001; and r, at
        least 1, which means a power of 1 / r.

    References
    ----------
    Zeghidour, Teboul, de Chaumont Quitry, Tagliasacchi, "LEAF: A Learnable Frontend for Audio
    Classification", ICLR 2021, arXiv:2101.08596.
    """

    AS_IS = True

    times: Tensor
    """(window,) samples from the middle of a filter."""
    points: Tensor
    """(points,) those of them at which the pooling windows are evaluated."""
    weights: Tensor
    """(points,) samples that each point stands for."""

    def __init__(
        self,
        filters: int = 40,
        *,
        rate: int = 16000,
        window: float = 25.0,
        stride: float = 10.0,
        seconds: float = 10.0,
        step: int = 8,
        adapts: bool = False,
        frozen: bool = False,
    ) -> None:
        half, hop = round(window * rate / 2000), round(stride * rate / 1000)
        _check(
            filters,
            rate=rate,
            window=window,
            stride=stride,
            seconds=seconds,
            half=half,
            hop=hop,
        )
        if step < 1 or hop % step or 4 * step > half:
            largest = max(n for n in range(1, max(half // 4, 1) + 1) if hop % n == 0)
            raise ValueError(
                f"step must be a divisor of the stride, {hop} samples, and at most an eighth of "
                f"the window, {2 * half + 1} samples, not {step}: set it to {largest}"
            )
        if adapts and frozen:
            raise ValueError("adapts and frozen must not both be true: set one of them to false")
        super().__init__()
        self.extracted = Waveform(rate=rate, hop=rate // 100, seconds=seconds)
        self.channels, self.adapts = filters, adapts
        self._half_window, self.hop, self.step = half, hop, step
        mel = librosa.mel_frequencies(
            filters + 2, fmin=LOWEST, fmax=min(HIGHEST, rate / 2), htk=True
        )
        radians = torch.tensor(mel * 2 * pi / rate, dtype=torch.float32)
        self.centres = nn.Parameter(radians[1:-1].clone())
        # A modulus that is squared compares with a filter's root, which is half its maximum where
        # the triangle is a quarter of its own: over three quarters of its base.
        self.widths = nn.Parameter(BELL / (0.75 * (radians[2:] - radians[:-2])))

        def constant(value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((filters,), value))

        self.pooling, self.smoothing, self.exponents = constant(0.4), constant(0.04), constant(0.96)
        self.offsets, self.roots = constant(2.0), constant(2.0)
        self.requires_grad_(not frozen)
        points = torch.arange(-(half // step), half // step + 1.0) * step
        # Those at the ends stand for half a step on one side, and for themselves on the other.
        weights = torch.full_like(points, step)
        weights[[0, -1]] = (step + 1) / 2
        self.register_buffer("times", torch.arange(-half, half + 1.0), persistent=False)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def extra_repr(self) -> str:
        """Return the settings; PyTorch asks for them to describe a module."""
        sizes = f"{self.channels}, half={self._half_window}, hop={self.hop}, step={self.step}"
        return f"{sizes}, adapts={self.adapts}, {self.extracted}"

    def forward(self, audio: Padded) -> Padded:
        """Return (clips, frames, filters) of frames of samples (clips, frames, any number).

        A frame is centred on the ``stride`` it stands for. Outside the clip there is silence.
        """
        energy = self.energy(audio.values.flatten(1))
        values = pcen(
            energy,
            _within(self.smoothing, 0, 1),
            _within(self.exponents, 0, 1),
            _within(self.offsets, 1e-3, None),
            _within(self.roots, 1, None),
        )
        starts = torch.arange(energy.shape[2], device=energy.device) * self.hop
        mask = audio.mask[:, starts // audio.values.shape[2]]
        return Padded(values.transpose(1, 2) * mask.unsqueeze(-1), mask)

    def energy(self, samples: Tensor) -> Tensor:
        """Return the pooled energy (clips, filters, frames) of samples (clips, samples)."""
        frames = ceil(samples.shape[1] / self.hop)
        half = self._half_window
        reach = half // self.step * self.step
        before = half + reach - self.hop // 2
        total = (frames - 1) * self.hop + 2 * (half + reach) + 1
        samples = pad(samples, (before, total - before - samples.shape[1]))
        parts = conv1d(
            samples.unsqueeze(1), self.gabor().flatten(0, 1).unsqueeze(1), None, self.step
        )
        power = parts.unflatten(1, (2, -1)).square().sum(dim=1)
        windows = self.windows().unsqueeze(1)
        return conv1d(power, windows, None, self.hop // self.step, groups=self.channels)

    def gabor(self) -> Tensor:
        """Return the real and imaginary parts of the filters, (2, filters, window)."""
        narrowest, widest = BELL / pi, BELL * len(self.times) / (2 * pi)
        widths = _within(self.widths, narrowest, widest).unsqueeze(1)
        phases = _within(self.centres, 0, pi).unsqueeze(1) * self.times
        return _bell(self.times, widths) * torch.stack([phases.cos(), phases.sin()])

    def windows(self) -> Tensor:
        """Return the pooling windows at every ``step``-th sample, (filters, points).

        Each sums to about 1.
        """
        shares = _within(self.pooling, self.step / self._half_window, 0.5)
        return _bell(self.points, shares.unsqueeze(1) * self._half_window) * self.weights


def pcen(
    energy: Tensor, smoothing: Tensor, exponents: Tensor, offsets: Tensor, roots: Tensor
) -> Tensor:
    """Return the energy after per-channel energy normalisation (PCEN).

    Parameters
    ----------
    energy : Tensor
        (clips, channels, frames), not negative.
    smoothing, exponents, offsets, roots : Tensor
        (channels,) s, alpha, delta and r of (E / (``FLOOR`` + M)^alpha + delta)^(1/r)
        - delta^(1/r), where M is the smoothed energy.

    References
    ----------
    Wang, Getreuer, Hughes, Lyon, Saurous, "Trainable Frontend for Robust and Far-Field Keyword
    Spotting", ICASSP 2017, arXiv:1607.05666.
    """
    exponents, offsets, powers = (x.unsqueeze(1) for x in (exponents, offsets, 1 / roots))
    levelled = energy * (smooth(energy, smoothing) + FLOOR) ** -exponents
    return (levelled + offsets) ** powers - offsets**powers


def smooth(energy: Tensor, smoothing: Tensor) -> Tensor:
    """Return M[t] = (1 - s) M[t-1] + s E[t] with M[0] = E[0], a block of frames at a time.

    Parameters
    ----------
    energy : Tensor
        (clips, channels, frames).
    smoothing : Tensor
        (channels,) s, from 0 to 1.
    """
    count = torch.arange(BLOCK, device=energy.device)
    lag = count - count.unsqueeze(1)
    left = (1 - smoothing).unsqueeze(1)
    shares = smoothing[:, None, None] * left.unsqueeze(2) ** lag.clamp(min=0) * (lag >= 0)
    past = left ** (count + 1)
    state, parts = energy[..., :1], []
    for part in energy.split(BLOCK, dim=2):
        size = part.shape[2]
        new = torch.einsum("bcu,cut->bct", part, shares[:, :size, :size])
        parts.append(new + state * past[:, :size])
        state = parts[-1][..., -1:]
    return torch.cat(parts, dim=2)


def _bell(times: Tensor, deviations: Tensor) -> Tensor:
    """Return the normal density at some times."""
    return torch.exp(-0.5 * (times / deviations) ** 2) / (sqrt(2 * pi) * deviations)


def _within(values: Tensor, low: float, high: float | None) -> Tensor:
    """Return values brought into a range, with the slope 1 everywhere."""
    return values + (values.clamp(low, high) - values).detach()


def _check(
    filters: int,
    *,
    rate: int,
    window: float,
    stride: float,
    seconds: float,
    half: int,
    hop: int,
) -> None:
    """Refuse settings out of range; ``half`` and ``hop`` are window / 2 and stride in samples."""
    if filters < 1:
        raise ValueError(f"filters must be at least 1, not {filters}: raise it")
    if rate <= 2 * LOWEST:
        raise ValueError(f"rate must be above {2 * LOWEST:.0f} Hz, not {rate}: raise it")
    for name, value, samples in ("window", window, half), ("stride", stride, hop):
        if samples < 1:
            raise ValueError(
                f"{name} must be some samples long, not {value} ms at {rate} Hz: raise it"
            )
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, not {seconds}: raise it")
