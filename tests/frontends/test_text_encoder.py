"""Pretrained text encoders, tiny ones with random weights made on the spot."""

import shutil
import sys

import numpy as np
import pytest
import torch

from metaser.frontends import make_frontend
from metaser.frontends.text import TextEncoder

transformers = pytest.importorskip("transformers", reason="pip install 'metaser[ssl]'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "good", "news", "to", "##day"]
TEXTS = ["good news today", "no", "", "no news good news"]
ARCHITECTURES = {"bert": "Bert", "xlm-roberta": "XLMRoberta"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    """A model and its tokenizer, as ``save_pretrained`` writes them."""
    path = tmp_path_factory.mktemp("model") / request.param
    path.mkdir()
    (path / "words.txt").write_text("\n".join(WORDS))
    kind = ARCHITECTURES[request.param]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
    transformers.BertTokenizerFast(str(path / "words.txt")).save_pretrained(path)
    return str(path)


def _by_hand(folder: str, text: str, layer: int) -> np.ndarray:
    """The tokens of one text between the marks, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return states.hidden_states[layer][0, 1:-1].numpy()


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_frames_are_the_tokens_of_the_layer(folder, layer):
    frontend = make_frontend({"name": "text_encoder", "model": folder, "layer": layer}, "text")
    found = frontend.many(TEXTS)
    assert [len(frames) for frames in found] == [4, 1, 0, 4]
    for text, frames in zip(TEXTS, found):
        assert frames.dtype == np.float32 and frames.shape[1] == frontend.width == 16
        if text:
            np.testing.assert_allclose(frames, _by_hand(folder, text, layer), atol=1e-5)
        np.testing.assert_allclose(frontend(text), frames, atol=1e-5)


def test_the_mean_is_over_the_tokens_and_long_texts_are_cut(folder):
    mean = TextEncoder(folder, pooling="mean").many(TEXTS)
    assert [len(frames) for frames in mean] == [1, 1, 0, 1]
    np.testing.assert_allclose(mean[0][0], TextEncoder(folder)(TEXTS[0]).mean(axis=0), atol=1e-5)
    assert len(TextEncoder(folder, tokens=5)("no " * 20)) == 3


def test_a_copy_elsewhere_is_the_same_front_end(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.split("/")[-1])
    assert TextEncoder(str(copy)) == TextEncoder(folder)
    other = tmp_path / "tokenizer.json"
    assert TextEncoder(str(copy)).revision == TextEncoder(folder).revision
    (copy / "vocab.txt").write_text("changed")
    assert TextEncoder(str(copy)).revision != TextEncoder(folder).revision
    assert not other.exists()


def test_errors_tell_what_to_do(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'none', 'mean'.*not 'max'"):
        TextEncoder(folder, pooling="max")
    with pytest.raises(ValueError, match="layers 0 to 2.*not 3"):
        TextEncoder(folder, layer=3)
    with pytest.raises(ValueError, match="at least 3, not 2"):
        TextEncoder(folder, tokens=2)
    with pytest.raises(ValueError, match="digest .*, not other"):
        TextEncoder(folder, revision="other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json.*AutoTokenizer"):
        TextEncoder(str(tmp_path / "empty"))
    bare = shutil.copytree(folder, tmp_path / "bare")
    from safetensors.torch import load_file, save_file

    weights = load_file(bare / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, bare / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileNotFoundError, match="no weights encoder.layer.1.output"):
        TextEncoder(str(bare))("no")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'metaser\[ssl\]'"):
        TextEncoder(folder)
