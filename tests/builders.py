"""Made-up sound, clips and models that several test files build."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from metaser.backbones import MLP
from metaser.batch import Batch, Padded
from metaser.model import Model


def draw_noise(samples: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """White noise, (samples,) float32, of this standard deviation."""
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write_noise(path: Path, rng: np.random.Generator, samples=8000, rate=16000, **options) -> None:
    """Write an audio file of white noise, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * rng.standard_normal(samples), rate, **options)


def draw_clips(lengths, channels, *, seed=0, tasks=(), frames=None, kind=torch.float64) -> Padded:
    """Clips of normal frames, 0 where they end; (*tasks, clips, frames, channels)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*tasks, len(lengths), max(lengths), channels)
    values = torch.randn(shape, generator=generator, dtype=kind)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    clips = Padded(values * mask[..., None], mask.expand(shape[:-1]))
    return clips if frames is None else clips.lengthened(frames)


def draw_batch(seed: int, *, clips=12, frames=1, channels=3, present=(0, 1, 2, 3)) -> Batch:
    """Clips of equal length in double precision; the present ones of four classes take turns."""
    targets = torch.tensor(present)[torch.arange(clips) % len(present)]
    classes = torch.isin(torch.arange(4), torch.tensor(present))
    return Batch({"audio": draw_clips([frames] * clips, channels, seed=seed)}, targets, classes)


def small_model(backbone=None) -> Model:
    """Four classes on vectors of three channels, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Model(backbone or MLP(3, (5,)), 4).double()


def tiny_whisper(folder: Path, seed: int = 0) -> Path:
    """Write a random Whisper of two layers that hears four seconds to a folder, and return it."""
    import transformers

    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        max_source_positions=200,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.WhisperModel(config)
    network.half().float().save_pretrained(folder)  # numbers that half precision holds, too
    transformers.WhisperFeatureExtractor(chunk_length=4).save_pretrained(folder)
    return folder
