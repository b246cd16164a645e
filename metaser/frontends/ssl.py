"""Self-supervised speech encoders: wav2vec 2.0, XLS-R, HuBERT, WavLM, data2vec, Whisper's encoder.

``SSL`` computes frames by any speech encoder that transformers' ``AutoModel`` knows, from the hub
or from a folder. The front end ``whisper`` is ``SSL`` with the mean of some of Whisper's layers.
``LayerWeights`` learns which of its layers to listen to, ``SSLEncoder`` adapts the encoder itself
through small matrices. All need ``pip install "metaser[ssl]"``.

emotion2vec is not supported: it is no architecture of transformers, but comes with FunASR and
ModelScope, which load and run it in their own way.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import layer_norm

from metaser.batch import Padded
from metaser.frontends import hub

POOLINGS = ("none", "mean", "statistics")
WINDOWS = ("clip", "full")

SILENCE = 1.0
"""Seconds of silence after a clip that Whisper reads at its own length."""

SHORTEST = 0.1
"""Seconds to which shorter clips are filled with zeros, so that every encoder finds a frame."""

BATCH_SECONDS = {"cpu": 10.0, "cuda": 160.0}
"""Audio encoded at once, padding included; a longer clip goes alone."""

ATTENTION = ("q_proj", "v_proj")
ADAPTED = {
    "wav2vec2": ATTENTION,
    "hubert": ATTENTION,
    "data2vec-audio": ATTENTION,
    "whisper": ATTENTION,
    # Its attention reads the weights of its projections past whatever is put around them.
    "wavlm": ("intermediate_dense", "output_dense"),
}
"""Which linear layers of an architecture ``SSLEncoder`` adapts."""


@dataclass(frozen=True)
class SSL:
    """Frames of a self-supervised speech encoder, whose weights stay as they are.

    Computed on a GPU if there is one. Clips are encoded together only where that gives the numbers
    that each gives alone: encoders that heed the padding, such as wav2vec 2.0 base with its
    normalisation over time, get clips of equal length.

    Parameters
    ----------
    model : str
        Name on the Hugging Face hub, e.g. "microsoft/wavlm-large", or a folder that
        ``save_pretrained`` of the model and of its feature extractor wrote to.
    layer : int, sequence of int or "all"
        0 is what the first transformer layer reads, k what layer k gives; negative numbers count
        from the end. Several stand side by side, in this order; "all" is all, 0 included.
    pooling : {"none", "mean", "statistics"}
        Frames as they are; or one frame a clip: their mean, or their mean and standard deviation.
    seconds : float
        Longest clip; what exceeds it is cut. Whisper takes at most 30.
    revision : str
        Version of the model. On the hub a commit, tag or branch, by default the newest; of a folder
        the digest of its files, unless ``weights`` says what it must be. Becomes the commit or
        digest found.
    half : bool
        Encode in half precision, which a GPU does faster and no CPU does.
    window : {"clip", "full"}
        What Whisper reads: the clip and at most a second of silence, with as many positions as
        that needs, or the half minute that it was trained with, which takes many times as long.
        Others read the clip.
    weights : str
        The digest that the encoder's tensors must have, see ``weights_digest``. Becomes the digest
        found.

    Attributes
    ----------
    name : str
        Name on the hub, or the folder's last part. It is ``weights`` and the other arguments that
        stand for the front end, wherever its files come from.
    rate : int
        Sampling rate in Hz that the waveform must have, as the model's feature extractor says.
    layers, width : int
        Layers chosen, and channels of each.

    Raises
    ------
    ModuleNotFoundError
        If transformers is missing.
    FileNotFoundError
        If there is no such model, or a file of it is missing.
    ValueError
        If an argument is out of its range.

    References
    ----------
    Baevski et al., NeurIPS 2020 (wav2vec 2.0); Babu et al., Interspeech 2022 (XLS-R); Hsu et al.,
    IEEE/ACM TASLP 2021 (HuBERT); Chen et al., IEEE JSTSP 2022 (WavLM); Baevski et al., ICML 2022
    (data2vec); Radford et al., ICML 2023 (Whisper).
    """

    LIBRARIES = ("transformers", "torch")
    TRAINED = True

    model: str = field(repr=False, compare=False)
    layer: int | str | Sequence[int] = -1
    pooling: str = "none"
    seconds: float = 10.0
    revision: str = field(default="", repr=False, compare=False)
    half: bool = False
    window: str = "clip"
    weights: str = ""
    name: str = field(init=False, repr=False, compare=False)
    rate: int = field(init=False)
    layers: int = field(init=False, repr=False)
    width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {self.pooling!r}")
        if self.half and not torch.cuda.is_available():
            raise ValueError("half = true needs a GPU, and there is none here: leave it out")
        model = hub.local(self.model)
        # A folder may stand in for a commit of the hub; then its weights tell what it is.
        known = bool(self.weights) and Path(model).is_dir()
        revision = hub.revision(model, "" if known else self.revision, _SAVE)
        weights = weights_digest(model, revision)
        if self.weights not in ("", weights):
            raise ValueError(
                f"{self.model} must have the weights {self.weights}, not {weights}: it is another "
                "encoder, perhaps of the same name, so fetch or name the one that was used before"
            )
        config, extractor = _describe(model, revision)
        self._check_window(extractor)
        total = config.num_hidden_layers + 1
        layer = _settle_layer(self.model, self.layer, total)
        count = len(layer) if isinstance(layer, tuple) else (total if layer == "all" else 1)
        settled = {
            "model": model,
            "layer": layer,
            "revision": revision,
            "weights": weights,
            "name": Path(model).resolve().name if Path(model).is_dir() else model,
            "rate": extractor.sampling_rate,
            "layers": count,
            "width": config.hidden_size * (2 if self.pooling == "statistics" else 1),
        }
        for key, value in settled.items():
            object.__setattr__(self, key, value)

    def _check_window(self, extractor: Any) -> None:
        """Refuse a window that the model does not have, and clips that are longer than it."""
        if self.window not in WINDOWS:
            raise ValueError(f"window must be one of {WINDOWS}, not {self.window!r}")
        longest = getattr(extractor, "chunk_length", math.inf)
        if math.isinf(longest) and self.window == "full":
            raise ValueError(
                f"window must be 'clip' for {self.model}, not 'full': Whisper alone has a window"
            )
        if not 0 < self.seconds <= longest:
            raise ValueError(f"seconds must be above 0, at most {longest}, not {self.seconds}")

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return (frames, ``layers * width``) float32 of a mono waveform (samples,) at ``rate``.

        Layer follows layer; of statistics, a layer's means come before its deviations.
        """
        return self.many([waveform])[0]

    def many(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What calling gives for each; similar lengths are encoded together."""
        network, extractor, heeds_padding = _load(self.model, self.revision)
        clips = [self._cut(waveform) for waveform in waveforms]
        whole = self.window == "full"
        # Here Whisper works on half a minute, however short the clip is.
        least = getattr(extractor, "n_samples", 0) if whole else 0
        room = BATCH_SECONDS[network.device.type] * self.rate
        frames: dict[int, np.ndarray] = {}
        for rows in _batches([len(clip) for clip in clips], room, heeds_padding, least):
            chosen = [clips[row] for row in rows]
            states = _encode(network, extractor, chosen, self.layer, self.half, whole=whole)
            frames |= {row: _pool(own, self.pooling) for row, own in zip(rows, states)}
        return [frames[row] for row in range(len(clips))]

    def _cut(self, waveform: np.ndarray) -> np.ndarray:
        waveform = waveform[: round(self.seconds * self.rate)]
        return np.pad(waveform, (0, max(0, round(SHORTEST * self.rate) - len(waveform))))


class LayerWeights(nn.Module):
    """Learn how much each layer of a frozen encoder counts: a weighted sum, weights by softmax.

    Parameters
    ----------
    model, seconds, revision, weights
        See ``SSL``.
    pooling : {"none", "mean", "statistics"}
        See ``SSL``. The default keeps one frame a clip, for all frames of all layers are
        megabytes a second of audio; unless ``normalise``, the mean of the sum is the same.
    normalise : bool
        Give each frame of each layer mean 0 and deviation 1 first, as layers differ in size.
    adapts : bool
        Whether inner loops and fine-tuning on a few clips change the weights.

    References
    ----------
    Yang et al., "SUPERB: Speech Processing Universal PERformance Benchmark", Interspeech 2021.
    """

    def __init__(
        self,
        model: str,
        pooling: str = "mean",
        seconds: float = 10.0,
        normalise: bool = False,
        revision: str = "",
        adapts: bool = True,
        *,
        weights: str = "",
    ) -> None:
        super().__init__()
        self.extracted = SSL(model, "all", pooling, seconds, revision, weights=weights)
        self.channels = self.extracted.width
        self.normalise = normalise
        self.adapts = adapts
        self.weights = nn.Parameter(torch.zeros(self.extracted.layers))

    def extra_repr(self) -> str:
        """Return what tells two of them apart."""
        return f"{self.extracted}, normalise={self.normalise}, adapts={self.adapts}"

    def forward(self, audio: Padded) -> Padded:
        """Return (clips, frames, channels) of the frames of all layers side by side."""
        layers = audio.values.unflatten(-1, (-1, self.channels))
        if self.normalise:
            layers = layer_norm(layers, layers.shape[-1:])
        return Padded(self.weights.softmax(dim=0) @ layers, audio.mask)


class SSLEncoder(nn.Module):
    """The transformer layers of an encoder, adapted by low-rank matrices (LoRA).

    All that learns are two thin matrices for each adapted layer, see ``ADAPTED``; the encoder
    itself is frozen and always as in evaluation, without dropout. What comes before its first
    transformer layer is no part of the model but a fixed front end, ``SSL`` with ``layer=0``:
    nothing there is adapted, and so it is computed once.

    Before the matrices have learnt anything, frames are those of ``SSL``. Only Whisper's differ:
    here its layers see the clip alone, not the silence after it.

    Parameters
    ----------
    model, seconds, revision, weights
        See ``SSL``; wav2vec 2.0, XLS-R, HuBERT, WavLM, data2vec or Whisper.
    pooling : {"none", "mean"}
        Frames, or one a clip.
    rank : int
        Rank of each change of a weight matrix, at least 1.
    alpha : float
        The change counts ``alpha / rank`` times.
    adapts : bool
        Whether inner loops and fine-tuning on a few clips change the matrices.

    Raises
    ------
    ModuleNotFoundError
        If transformers or peft is missing.
    ValueError
        If an argument is out of its range, or if the architecture is another.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """

    AS_IS = True

    def __init__(
        self,
        model: str,
        pooling: str = "none",
        *,
        seconds: float = 10.0,
        rank: int = 8,
        alpha: float = 16.0,
        revision: str = "",
        adapts: bool = True,
        weights: str = "",
    ) -> None:
        super().__init__()
        peft = hub.need("peft")
        if pooling not in ("none", "mean"):
            raise ValueError(f"pooling must be one of ('none', 'mean'), not {pooling!r}")
        self.extracted = SSL(model, layer=0, seconds=seconds, revision=revision, weights=weights)
        # Fused attention has no second derivative.
        network = _network(
            self.extracted.model, self.extracted.revision, attn_implementation="eager"
        )
        self.kind = network.config.model_type
        if self.kind not in ADAPTED:
            raise ValueError(
                f"{model} is of the architecture {self.kind!r}; those whose layers can be adapted "
                f"are {sorted(ADAPTED)}: use SSL or LayerWeights"
            )
        encoder = network if self.kind == "whisper" else network.encoder
        last = getattr(network.config, "do_stable_layer_norm", self.kind == "whisper")
        self.encoder = nn.ModuleList(encoder.layers)
        self.norm = encoder.layer_norm if last else nn.Identity()
        self.requires_grad_(False)
        matrices = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=[*ADAPTED[self.kind]])
        peft.inject_adapter_in_model(matrices, self.encoder)
        self.channels = self.extracted.width
        self.pooling = pooling
        self.adapts = adapts
        self.train()

    def extra_repr(self) -> str:
        """Return what tells two of them apart."""
        return f"{self.extracted}, pooling={self.pooling!r}, adapts={self.adapts}"

    def train(self, mode: bool = True) -> "SSLEncoder":
        """Set the mode; the encoder stays in evaluation: no dropout, no layer left out."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, audio: Padded) -> Padded:
        """Return frames (clips, frames, channels), or their mean as one frame a clip."""
        run = self._gated if self.kind == "wavlm" else self._plain
        real = audio.mask.unsqueeze(-1)
        frames = Padded(self.norm(run(audio.values, audio.mask)) * real, audio.mask)
        if self.pooling == "none":
            return frames
        return Padded(frames.mean().unsqueeze(-2), audio.mask[..., :1])

    def _plain(self, values: Tensor, mask: Tensor) -> Tensor:
        nothing = torch.finfo(values.dtype).min
        seen = torch.zeros_like(mask, dtype=values.dtype).masked_fill(~mask, nothing)
        for layer in self.encoder:
            values = layer(values, attention_mask=seen[:, None, None])
        return values

    def _gated(self, values: Tensor, mask: Tensor) -> Tensor:
        """WavLM: the first layer makes a bias from positions, which all layers gate and add."""
        bias = None
        for layer in self.encoder:
            values, bias = layer(values, attention_mask=mask, position_bias=bias)
        return values


_SAVE = (
    "write it by AutoModel.from_pretrained(NAME).save_pretrained(FOLDER) and "
    "AutoFeatureExtractor.from_pretrained(NAME).save_pretrained(FOLDER)"
)


def _settle_layer(
    model: str, layer: int | str | Sequence[int], total: int
) -> int | str | tuple[int, ...]:
    """Return layers counted from the start.

    Raises
    ------
    ValueError
        If there is no such layer, or one is named twice.
    """
    if layer == "all":
        return "all"
    wanted = [layer] if isinstance(layer, int | str) else list(layer)
    if not wanted or any(one not in range(-total, total) for one in wanted):
        raise ValueError(
            f"{model} has layers 0 to {total - 1}: layer must be one of them, one of -1 "
            f"to {-total}, several of these, or 'all', not {layer!r}"
        )
    settled = tuple(int(one) % total for one in wanted)
    if len(set(settled)) < len(settled):
        raise ValueError(
            f"layer must name each layer once, not {layer!r}: leave out the repetition"
        )
    return settled[0] if isinstance(layer, int) else settled


@cache
def weights_digest(model: str, revision: str) -> str:
    """Return the SHA-256 of an encoder's tensors, in float32, by name and bytes.

    It is the same for a download and a folder, and for files in half and in single precision if
    they hold the same numbers.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_network(model, revision).state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _describe(model: str, revision: str) -> tuple:
    """Configuration and feature extractor."""
    try:
        config = hub.pretrained("AutoConfig", model, revision)
        extractor = hub.pretrained("AutoFeatureExtractor", model, revision)
    except hub.OwnCodeError:
        raise
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model} lacks a config.json that transformers knows, or a preprocessor_config.json "
            f"({str(error).strip().splitlines()[0]}): {_SAVE}"
        ) from error
    return config, extractor


def _network(model: str, revision: str, **options: str) -> Any:
    """The speech encoder in float32 on the CPU, in evaluation.

    Raises
    ------
    FileNotFoundError
        If weights are missing, which would be random otherwise.
    """
    config, _ = _describe(model, revision)
    config.add_adapter = False  # it would shorten the last layer's frames
    network, report = hub.pretrained(
        "AutoModel",
        model,
        revision,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    # Pre-training alone uses this one, and many models come without it.
    missing = {name for name in report["missing_keys"] if not name.endswith("masked_spec_embed")}
    if missing:
        raise FileNotFoundError(
            f"{model} has no weights {', '.join(sorted(missing)[:3])} (missing: {len(missing)}): "
            "the files are incomplete, or not those of a speech encoder"
        )
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    if not hasattr(encoder, "_get_feat_extract_output_lengths"):
        raise ValueError(
            f"{model} is a {type(network).__name__}, which does not tell how many frames a clip "
            "has: expected a speech encoder such as wav2vec 2.0, HuBERT, WavLM or Whisper"
        )
    return encoder.eval()


@lru_cache(maxsize=1)
def _load(model: str, revision: str) -> tuple:
    """Encoder, its feature extractor, and whether its frames heed padding; one a process."""
    network, (_, extractor) = _network(model, revision), _describe(model, revision)
    whisper = hasattr(extractor, "chunk_length")
    heeds = whisper or _heeds_padding(network, extractor)
    return network.to("cuda" if torch.cuda.is_available() else "cpu"), extractor, heeds


def _heeds_padding(network: Any, extractor: Any) -> bool:
    """Try whether a clip's frames change with a longer one beside it.

    They do where a layer that takes no mask mixes frames: normalisation over time, or convolutions
    after convolutions.
    """
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(extractor.sampling_rate // n, np.float32) for n in (2, 1)]
    alone, beside = (_encode(network, extractor, some, "all")[0] for some in (clips[:1], clips))
    return bool(np.abs(alone - beside).max() > 1e-5 * np.abs(alone).max())


def _encode(
    network: Any,
    extractor: Any,
    clips: list[np.ndarray],
    layer: int | str | Sequence[int],
    half: bool = False,
    *,
    whole: bool = False,
) -> list[np.ndarray]:
    """Layers of clips that are encoded together, each (layers, frames, channels) float32."""
    kind = network.device.type
    with torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=half):
        if hasattr(extractor, "chunk_length") and not whole:
            states, counts = _whisper_states(network, extractor, clips)
        else:
            states, counts = _states(network, extractor, clips)
    frames = sorted({state.shape[1] for state in states})
    if len(frames) > 1:
        raise ValueError(
            f"{type(network).__name__} has layers of different frame rates ({frames} frames of one "
            "clip), which is not supported: choose an encoder without squeezed layers"
        )
    if isinstance(layer, int):
        states = [states[layer]]
    elif not isinstance(layer, str):
        states = [states[one] for one in layer]
    chosen = torch.stack(list(states), dim=1).float().cpu().numpy()
    return [own[:, :count] for own, count in zip(chosen, counts)]


def _states(
    network: Any, extractor: Any, clips: list[np.ndarray]
) -> tuple[Sequence[Tensor], list[int]]:
    """What each layer gives, (clips, frames, channels), and how many frames each clip has."""
    whole = hasattr(extractor, "chunk_length")  # Whisper takes nothing shorter
    inputs = extractor(
        clips,
        sampling_rate=extractor.sampling_rate,
        padding="max_length" if whole else True,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(network.device)
    mask = inputs["attention_mask"]
    output = network(
        inputs[network.main_input_name],
        attention_mask=None if mask.all() else mask,
        output_hidden_states=True,
    )
    counts = network._get_feat_extract_output_lengths(mask.sum(dim=-1)).tolist()
    # The last as the encoder gives it: versions of transformers differ in normalising it before.
    return (*output.hidden_states[:-1], output.last_hidden_state), counts


def _whisper_states(
    network: Any, extractor: Any, clips: list[np.ndarray]
) -> tuple[Sequence[Tensor], list[int]]:
    """The same of Whisper on clips of equal length, with positions for them and some silence."""
    rate = extractor.sampling_rate
    silence = min(round(SILENCE * rate), extractor.n_samples - len(clips[0]))
    inputs = extractor(
        [np.pad(clip, (0, silence)) for clip in clips],
        sampling_rate=rate,
        padding="do_not_pad",
        return_tensors="pt",
    ).to(network.device)
    frames = functional.gelu(network.conv1(inputs["input_features"]))
    frames = functional.gelu(network.conv2(frames)).transpose(1, 2)
    frames = frames + network.embed_positions.weight[: frames.shape[1]]
    states = [frames]
    for transformer in network.layers:
        frames = transformer(frames, None)
        frames = frames[0] if isinstance(frames, tuple) else frames
        states.append(frames)
    states[-1] = network.layer_norm(frames)
    stride = 2 * extractor.hop_length
    return states, [math.ceil(len(clip) / stride) for clip in clips]


def _pool(states: np.ndarray, pooling: str) -> np.ndarray:
    """Frames (frames, layers * channels) or one frame of (layers, frames, channels)."""
    if pooling == "none":
        return states.swapaxes(0, 1).reshape(states.shape[1], -1)
    moments = [states.mean(axis=1), states.std(axis=1)][: 1 if pooling == "mean" else 2]
    return np.concatenate(moments, axis=1).reshape(1, -1)


def _batches(lengths: Sequence[int], room: float, equal: bool, least: int) -> Iterator[list[int]]:
    """Rows of similar length (or ``equal`` ones) whose padded samples fit into ``room``."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = (len(batch) + 1) * max(lengths[row], least) > room
        if batch and (full or (equal and lengths[row] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
