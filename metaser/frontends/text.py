"""Front ends of text: a transcript becomes frames, one per word or token, or one per clip."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from metaser.frontends import hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PER = ("word", "clip")
POOLINGS = ("none", "mean")

BATCH = 64
"""Texts encoded at once."""


@dataclass(frozen=True)
class HashedNgrams:
    """Counts of hashed character n-grams within words, with no vocabulary and no training.

    Words are what blanks separate; letters are small, and compatible forms are one (Unicode NFKC).
    An n-gram may begin or end with the blank beside its word. Every word (or clip) has length 1.

    Parameters
    ----------
    channels : int
        Places that n-grams are hashed to, at least 1.
    shortest, longest : int
        Letters of an n-gram, 1 <= shortest <= longest.
    per : {"word", "clip"}
        One frame per word, or one per clip. A text without words has no frame.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
    """

    LIBRARIES = ("scikit-learn",)
    modality = "text"

    channels: int = 256
    shortest: int = 1
    longest: int = 3
    per: str = "word"

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ValueError(f"per must be one of {PER}, not {self.per!r}: choose one of them")
        if self.channels < 1 or not 1 <= self.shortest <= self.longest:
            raise ValueError(
                "channels must be at least 1, and 1 <= shortest <= longest, not "
                f"{self.channels}, {self.shortest} and {self.longest}: change what is out of range"
            )

    def __call__(self, text: str) -> np.ndarray:
        """Return (frames, ``channels``) float32 of a text; no frames if it has no words."""
        from sklearn.feature_extraction.text import HashingVectorizer

        words = unicodedata.normalize("NFKC", text).split()
        if not words:
            return np.zeros((0, self.channels), np.float32)
        vectorizer = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(self.shortest, self.longest),
            n_features=self.channels,
            dtype=np.float32,
        )
        parts = words if self.per == "word" else [" ".join(words)]
        return vectorizer.transform(parts).toarray()


@dataclass(frozen=True)
class TextEncoder:
    """A layer of a pretrained text encoder (BERT, XLM-R, …), whose weights stay as they are.

    Computed in float32, on a GPU if there is one. Needs ``pip install "metaser[ssl]"``.

    Parameters
    ----------
    model : str
        Name on the Hugging Face hub, e.g. "xlm-roberta-base", or a folder that ``save_pretrained``
        of the model and of its tokenizer wrote to.
    layer : int
        0 is what the first transformer layer reads, k what layer k gives; negative numbers count
        from the end.
    pooling : {"none", "mean"}
        Tokens as frames, or one frame per clip: their mean. Marks of begin and end, which every
        tokenizer adds in its own way, are left out.
    tokens : int
        Longest text, marks included; what exceeds it is cut.
    revision : str
        Version of the model, see ``SSL``.

    Attributes
    ----------
    name : str
        Name on the hub, or the folder's last part.
    width : int
        Channels.

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
    Devlin et al., NAACL 2019 (BERT); Conneau et al., ACL 2020 (XLM-R).
    """

    LIBRARIES = ("transformers", "torch")
    modality = "text"

    model: str = field(repr=False, compare=False)
    layer: int = -1
    pooling: str = "none"
    tokens: int = 128
    revision: str = ""
    name: str = field(init=False)
    width: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling must be one of {POOLINGS}, not {self.pooling!r}: choose one of them"
            )
        revision = hub.revision(self.model, self.revision, _SAVE)
        config = _config(self.model, revision)
        if self.tokens < 3:
            raise ValueError(f"tokens must be at least 3, not {self.tokens}: raise it")
        total = config.num_hidden_layers + 1
        if self.layer not in range(-total, total):
            raise ValueError(
                f"layer must be one of the layers 0 to {total - 1} of {self.model}, or of -1 to "
                f"{-total}, not {self.layer}: choose one of them"
            )
        folder = Path(self.model)
        for key, value in {
            "layer": self.layer % total,
            "revision": revision,
            "name": folder.resolve().name if folder.is_dir() else self.model,
            "width": config.hidden_size,
        }.items():
            object.__setattr__(self, key, value)

    def __call__(self, text: str) -> np.ndarray:
        """Return (frames, ``width``) float32 of a text; no frames if it has no words."""
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return what calling gives for each; texts of similar length are encoded together."""
        frames = [np.zeros((0, self.width), np.float32)] * len(texts)
        rows = sorted(
            (row for row, text in enumerate(texts) if text.strip()), key=lambda r: len(texts[r])
        )
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            for row, own in zip(some, self._encode([texts[row] for row in some])):
                frames[row] = own.mean(axis=0, keepdims=True) if self.pooling == "mean" else own
        return frames

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Return the tokens of each text, (tokens, ``width``)."""
        network, tokenizer = _load(self.model, self.revision)
        inputs = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        words = (inputs.pop("special_tokens_mask") == 0) & (inputs["attention_mask"] == 1)
        with torch.inference_mode():
            output = network(**inputs.to(network.device), output_hidden_states=True)
        states = output.hidden_states[self.layer].float().cpu()
        return [state[real].numpy() for state, real in zip(states, words)]


_SAVE = (
    "write it by AutoModel.from_pretrained(NAME).save_pretrained(FOLDER) and "
    "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)"
)


def _config(model: str, revision: str) -> "PretrainedConfig":
    """Return the configuration of a text encoder; refuse another kind of model."""
    try:
        config = hub.pretrained("AutoConfig", model, revision)
    except hub.OwnCodeError:
        raise
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model} lacks a config.json that transformers knows "
            f"({str(error).strip().splitlines()[0]}): {_SAVE}"
        ) from error
    if config.is_encoder_decoder or not hasattr(config, "vocab_size"):
        raise ValueError(
            f"model must be a text encoder, not {model}, whose architecture is "
            f"{config.model_type!r}: name one such as BERT or XLM-R"
        )
    return config


@lru_cache(maxsize=1)
def _load(model: str, revision: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the encoder in evaluation mode and its tokenizer; loaded once per process.

    Raises
    ------
    FileNotFoundError
        If the tokenizer is missing, or weights, which would be random otherwise.
    """
    try:
        tokenizer = hub.pretrained("AutoTokenizer", model, revision)
    except hub.OwnCodeError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{model} lacks the files of its tokenizer ({str(error).strip().splitlines()[0]}): "
            f"{_SAVE}"
        ) from error
    network, report = hub.pretrained(
        "AutoModel", model, revision, dtype=torch.float32, output_loading_info=True
    )
    # The pooler is for sentence pairs; models that were trained without one come without.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise FileNotFoundError(
            f"{model} has no weights {', '.join(missing[:3])} (missing: {len(missing)}): the files "
            "are incomplete, or not those of a text encoder; fetch them again or name another"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.eval().to(device), tokenizer
