"""A model as an ONNX file, which runs without PyTorch and MetaSER."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metaser.backbones.replknet import merged
from metaser.batch import Padded
from metaser.model import HEARD, Model

TOLERANCE = 1e-4
"""Most that scores of the file may differ from the model's, as a share of the largest above 1."""


def to_onnx(model: Model, path: Path, frames: int | None = None) -> float:
    """Write a model as ONNX, and run it beside the model to see that both score alike.

    The file's inputs are two for each modality: ``audio`` (clips, audio_frames, channels) float32
    and ``audio_mask`` (clips, audio_frames) bool, True where a frame is real, which come first;
    ``text`` and ``text_mask`` likewise. The output ``scores`` is (clips, classes). A model whose
    front end is learnable takes as ``audio`` what that front end reads.

    Parameters
    ----------
    model : Model
        Left as it is; in single precision and without dropout in the file.
    path : Path
        The file, replaced if it is there.
    frames : int, optional
        Frames of all sequences, at least 1; shorter clips are padded. Without it, any number.

    Returns
    -------
    float
        Largest difference between scores of the file and of the model, over made-up clips of
        several lengths.

    Raises
    ------
    ImportError
        If onnx or onnxruntime is not installed.
    ValueError
        If ``frames`` is below 1, the backbone does not tell its channels, or the file would not
        run or score otherwise than the model: then there is no file.
    torch.onnx.errors.OnnxExporterError
        If ONNX has no such operation.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, or None for any number, not {frames}")
    try:
        import onnx  # noqa: F401, without which PyTorch cannot write the file
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX files need the packages onnx and onnxruntime. Run: pip install 'metaser[onnx]'"
        ) from error
    channels = _channels(model)
    network = _Flat(merged(model).cpu().float().eval(), list(channels))
    sizes = [(3, frames or 37), (1, frames or 50), (HEARD + 2, frames or 1)]
    examples = [_example(channels, *size, seed) for seed, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        _write(network, examples[0], list(channels), written, dynamic=frames is None)
        session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
        worst = max(_difference(session, network, example) for example in examples)
        os.replace(written, path)
    return worst


class _Flat(nn.Module):
    """A model that takes tensors one after the other, values and mask of each modality."""

    def __init__(self, model: Model, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def modalities(self, tensors: tuple[Tensor, ...]) -> dict[str, Padded]:
        return dict(zip(self.names, map(Padded, tensors[::2], tensors[1::2])))

    def forward(self, *tensors: Tensor) -> Tensor:
        modalities = self.modalities(tensors)
        if self.model.frontend is None:
            return self.model(modalities)
        # All clips at once: the file would hold fast in how many portions `Model.hear` takes them.
        audio = self.model.frontend(modalities["audio"])
        return self.model.head(self.model.backbone(**modalities | {"audio": audio}))


def _channels(model: Model) -> dict[str, int]:
    """Channels of each modality that the model takes."""
    channels = getattr(model.backbone, "channels", None)
    if not isinstance(channels, dict):
        raise ValueError(
            f"a backbone must tell its input by an attribute `channels`, such as {{'audio': 64}}, "
            f"but that of {type(model.backbone).__name__} is {channels!r}"
        )
    if model.frontend is not None:
        extracted = model.frontend.extracted
        silence = extracted(np.zeros(extracted.rate, np.float32))
        channels = {**channels, "audio": silence.shape[1]}
    return channels


def _example(channels: dict[str, int], clips: int, frames: int, seed: int) -> tuple[Tensor, ...]:
    """Made-up clips: the first has all frames, the last lacks all modalities but the first."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for index, size in enumerate(channels.values()):
        lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
        lengths[0] = frames
        if index > 0 and clips > 1:
            lengths[-1] = 0
        mask = torch.arange(frames) < lengths[:, None]
        values = torch.randn(clips, frames, size, generator=generator)
        tensors += [values * mask[..., None], mask]
    return tuple(tensors)


def _write(network: _Flat, example, names: list[str], path: Path, dynamic: bool) -> None:
    inputs = _inputs(names)
    axes = {"scores": {0: "clips"}}
    for name in inputs:
        axes[name] = {0: "clips"}
        if dynamic:
            axes[name][1] = f"{name.removesuffix('_mask')}_frames"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of traces: `_difference` sees whether one went wrong
        # PyTorch's newer exporter (dynamo=True) takes ten seconds where this one takes a third.
        torch.onnx.export(
            network,
            example,
            path,
            input_names=inputs,
            output_names=["scores"],
            dynamic_axes=axes,
            dynamo=False,
            # The network is evaluated, but its outermost module is not said to be: else the
            # exporter joins parameters of equal value, such as norms that begin at 1, and fails.
            training=torch.onnx.TrainingMode.PRESERVE,
        )


def _inputs(names: list[str]) -> list[str]:
    """Inputs of the file, in the order of those of ``_Flat``."""
    return [own for name in names for own in (name, f"{name}_mask")]


def _difference(session, network: _Flat, example: tuple[Tensor, ...]) -> float:
    taken = {given.name for given in session.get_inputs()}  # a model may heed no mask
    inputs = dict(zip(_inputs(network.names), example))
    inputs = {name: x.numpy() for name, x in inputs.items() if name in taken}
    backbone = type(network.model.backbone).__name__
    with torch.no_grad():
        expected = network.model(network.modalities(example)).numpy()
    try:
        (found,) = session.run(["scores"], inputs)
        if found.shape != expected.shape:
            raise ValueError(f"scores are {found.shape} where {expected.shape} are expected")
    except Exception as error:  # of whatever kind: onnxruntime has a dozen
        raise ValueError(
            "the file must take any number of clips, and of frames unless they are given, but the "
            f"backbone {backbone} has sizes that are fixed: {error}{_hint(network.model)}"
        ) from error
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE * max(1, float(np.abs(expected).max())):
        raise ValueError(
            f"scores of the file must be the model's, but differ by up to {worst:.2g}: a model "
            f"with the backbone {backbone} cannot be exported so{_hint(network.model)}"
        )
    return worst


def _hint(model: Model) -> str:
    """What to do where a front end counts frames by itself."""
    if model.frontend is None:
        return ""
    return (
        f". Its learnt front end {type(model.frontend).__name__} may ask for a fixed number of "
        "frames: --frames, of the longest clip"
    )
