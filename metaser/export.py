"""Write a model as an ONNX file, which runs without PyTorch and MetaSER."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from metaser.backbones.replknet import merged
from metaser.batch import Padded
from metaser.files import whole
from metaser.model import HEARD, Model

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-4
"""Largest allowed difference between scores of the file and of the model; relative to the largest
score if that is above 1."""


def to_onnx(model: Model, path: Path, frames: int | None = None) -> float:
    """Write a model as an ONNX file, and check that the file gives the scores of the model.

    The file has two inputs for each modality: ``audio`` (clips, audio_frames, channels) float32 and
    ``audio_mask`` (clips, audio_frames) bool, True where a frame is real, and real frames come
    first; ``text`` and ``text_mask`` likewise. The output ``scores`` is (clips, classes). For a
    model with a learnable front end, ``audio`` is the input of that front end.

    Parameters
    ----------
    model : Model
        Not changed; the file has it in single precision and without dropout.
    path : Path
        The file, replaced if it exists; folders above it are made.
    frames : int, optional
        Frames of all sequences, at least 1; shorter clips are padded. Without it, any number.

    Returns
    -------
    float
        Largest difference between scores of the file and of the model, on made-up clips of several
        lengths.

    Raises
    ------
    ImportError
        If onnx or onnxruntime is not installed.
    ValueError
        If ``frames`` is below 1, the backbone has no attribute ``channels``, or the file does not
        run or gives other scores than the model: then no file is written.
    torch.onnx.errors.OnnxExporterError
        If ONNX has no such operation.
    """
    if frames is not None and frames < 1:
        raise ValueError(
            f"frames must be at least 1, or None for any number, not {frames}: give those of the "
            "longest clip"
        )
    try:
        import onnx  # noqa: F401, PyTorch needs it to write the file
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "the packages onnx and onnxruntime must be installed to write ONNX files. "
            "Run: pip install 'metaser[onnx]'"
        ) from error
    channels = _channels(model)
    network = _Flat(merged(model).cpu().float().eval(), list(channels))
    sizes = [(3, frames or 37), (1, frames or 50), (HEARD + 2, frames or 1)]
    examples = [_example(channels, *size, seed) for seed, size in enumerate(sizes)]
    with whole(path) as draft:
        _write(network, examples[0], list(channels), draft, dynamic=frames is None)
        session = onnxruntime.InferenceSession(draft, providers=["CPUExecutionProvider"])
        return max(_difference(session, network, example) for example in examples)


class _Flat(nn.Module):
    """A model that takes tensors one after the other: values and mask of each modality."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def modalities(self, tensors: tuple[Tensor, ...]) -> dict[str, Padded]:
        """Return the tensors as ``Model`` takes them."""
        return dict(zip(self.names, map(Padded, tensors[::2], tensors[1::2])))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return (clips, classes) logits."""
        modalities = self.modalities(tensors)
        if self.model.frontend is None:
            return cast(Tensor, self.model(modalities))
        # All clips at once: the file would fix in how many portions `Model.hear` takes them.
        audio = self.model.frontend(modalities["audio"])
        embeddings = self.model.backbone(**modalities | {"audio": audio})
        return cast(Tensor, self.model.head(embeddings))


def _body(model: nn.Module) -> Any:
    """Return what takes the frames: the backbone, or a model that has none itself."""
    return getattr(model, "backbone", model)


def _channels(model: Model) -> dict[str, int]:
    """Channels of each modality that the model takes."""
    body = _body(model)
    channels = getattr(body, "channels", None)
    if not isinstance(channels, dict):
        raise ValueError(
            "a backbone must have an attribute `channels` for its input, such as {'audio': 64}, "
            f"but that of {type(body).__name__} is {channels!r}: add it"
        )
    if model.frontend is not None:
        extracted: Any = model.frontend.extracted
        silence = extracted(np.zeros(extracted.rate, np.float32))
        channels = {**channels, "audio": silence.shape[1]}
    return channels


def _example(channels: dict[str, int], clips: int, frames: int, seed: int) -> tuple[Tensor, ...]:
    """Made-up clips: the first has all frames, the last lacks all modalities but the first."""
    generator = torch.Generator().manual_seed(seed)
    tensors: list[Tensor] = []
    for index, size in enumerate(channels.values()):
        lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
        lengths[0] = frames
        if index > 0 and clips > 1:
            lengths[-1] = 0
        mask = torch.arange(frames) < lengths[:, None]
        values = torch.randn(clips, frames, size, generator=generator)
        tensors += [values * mask[..., None], mask]
    return tuple(tensors)


def _write(
    network: _Flat, example: tuple[Tensor, ...], names: list[str], path: Path, dynamic: bool
) -> None:
    """Trace the network on an example; ``dynamic`` leaves the number of frames open."""
    inputs = _inputs(names)
    axes = {"scores": {0: "clips"}}
    for name in inputs:
        axes[name] = {0: "clips"}
        if dynamic:
            axes[name][1] = f"{name.removesuffix('_mask')}_frames"
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing warns a lot; `_difference` finds out whether anything went wrong.
        warnings.simplefilter("ignore")
        # PyTorch's newer exporter (dynamo=True) takes ten seconds where this one takes a third.
        torch.onnx.export(
            network,
            example,
            path,
            input_names=inputs,
            output_names=["scores"],
            dynamic_axes=axes,
            dynamo=False,
            # All modules are in evaluation mode already. TrainingMode.EVAL would make the exporter
            # join parameters of equal value, such as norms that begin at 1, and fail.
            training=torch.onnx.TrainingMode.PRESERVE,
        )


def _inputs(names: list[str]) -> list[str]:
    """Return the inputs of the file, in the order of those of ``_Flat``."""
    return [key for name in names for key in (name, f"{name}_mask")]


def _difference(session: "InferenceSession", network: _Flat, example: tuple[Tensor, ...]) -> float:
    """Largest difference between scores of the file and of the model.

    Raises
    ------
    ValueError
        If the file does not run, or the difference is above ``TOLERANCE``.
    """
    used = {one.name for one in session.get_inputs()}  # a model may not use its mask
    tensors = zip(_inputs(network.names), example)
    inputs = {name: tensor.numpy() for name, tensor in tensors if name in used}
    backbone = type(_body(network.model)).__name__
    with torch.no_grad():
        expected = network.model(network.modalities(example)).numpy()
    try:
        (scores,) = session.run(["scores"], inputs)
        if scores.shape != expected.shape:
            raise ValueError(f"scores are {scores.shape}, not {expected.shape}")
    except Exception as error:  # onnxruntime has a dozen kinds
        raise ValueError(
            "the file must take any number of clips, and of frames unless they are given, but the "
            f"backbone {backbone} has sizes that are fixed: {error}{_hint(network.model)}"
        ) from error
    largest = float(np.abs(scores - expected).max())
    if not largest <= TOLERANCE * max(1, float(np.abs(expected).max())):
        raise ValueError(
            f"scores of the file must be the model's, but differ by up to {largest:.2g}: a model "
            f"with the backbone {backbone} cannot be exported like this{_hint(network.model)}"
        )
    return largest


def _hint(model: Model) -> str:
    """Advice for a model whose front end counts frames itself; "" for others."""
    if model.frontend is None:
        return ""
    return (
        f". Its learnt front end {type(model.frontend).__name__} may ask for a fixed number of "
        "frames: --frames, that of the longest clip"
    )
