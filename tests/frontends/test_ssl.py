import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from torch.func import functional_call, vmap

from metaser.backbones import MLP
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.frontends import hub, make_frontend, ssl
from metaser.frontends.ssl import SSL, LayerWeights, SSLEncoder
from metaser.methods import MAML
from metaser.model import Model
from metaser.protocol import Protocol, build

transformers = pytest.importorskip("transformers", reason="pip install 'metaser[ssl]'")
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")

RATE = 16000
CONVOLUTIONS = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    **CONVOLUTIONS,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "max_source_positions": 100,
}
DATA2VEC = {**TINY, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
BERT = {name: TINY[name] for name in list(TINY)[:4]}

KINDS = {
    "wav2vec2": ("Wav2Vec2", "Wav2Vec2", TINY, {}),
    "xls-r": ("Wav2Vec2", "Wav2Vec2", TINY | LARGE, {}),
    "hubert": ("Hubert", "Wav2Vec2", TINY, {}),
    "hubert-large": ("Hubert", "Wav2Vec2", TINY | LARGE, {}),
    "wavlm": ("WavLM", "Wav2Vec2", TINY, {"do_normalize": False}),
    "wavlm-large": ("WavLM", "Wav2Vec2", TINY | LARGE, {}),
    "data2vec": ("Data2VecAudio", "Wav2Vec2", DATA2VEC, {}),
    "whisper": ("Whisper", "Whisper", WHISPER, {"chunk_length": 2}),
    "w2v-bert": ("Wav2Vec2Bert", "SeamlessM4T", BERT, {}),
}
"""Architecture, feature extractor, and the arguments of both."""

MIXES = {"xls-r", "hubert-large", "wavlm-large", "whisper", "w2v-bert"}
"""Those that look at real samples only, whatever the padding."""

ADAPTED = [kind for kind in KINDS if kind != "w2v-bert"]


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Nothing is asked of the network; without this the hub would be tried five times."""
    # Not above: importing it takes seconds, in processes that run other files, too.
    pytest.importorskip("peft", reason="pip install 'metaser[ssl]'")
    import huggingface_hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        transformers.utils.logging.disable_progress_bar()
        yield


@pytest.fixture(autouse=True)
def single_precision(monkeypatch):
    """Encoders run on a GPU where there is one, whose convolutions would round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Write a tiny model with random weights to a folder, as ``save_pretrained`` does."""

    @cache
    def save(kind: str) -> str:
        name, extractor, arguments, options = KINDS[kind]
        folder = tmp_path_factory.mktemp("models") / kind
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**arguments)
            network = getattr(transformers, f"{name}Model")(config)
            for weight in network.parameters():
                if weight.dim() > 1:  # weights of 0.02 would leave every layer as the one before
                    weight.data *= 4
        network.save_pretrained(folder)
        getattr(transformers, f"{extractor}FeatureExtractor")(**options).save_pretrained(folder)
        return str(folder)

    return save


def _clips(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(0.1 * rng.standard_normal(length)).astype(np.float32) for length in lengths]


LENGTHS = (16000, 5000, 5000, 12345, 9001, 30000)


def _direct(folder: str, clip: np.ndarray) -> list[np.ndarray]:
    """All hidden states, and the output, of one clip alone by transformers itself."""
    network = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    encoder = network.get_encoder() if network.config.is_encoder_decoder else network
    with torch.no_grad():
        output = encoder(inputs[encoder.main_input_name], output_hidden_states=True)
    return [state[0].numpy() for state in (*output.hidden_states, output.last_hidden_state)]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_transformers(kind, saved):
    (clip,) = _clips(9000)
    window = "full" if kind == "whisper" else "clip"
    *states, output = _direct(saved(kind), clip)
    for layer, expected in ((0, states[0]), (1, states[1]), (2, output), (-1, output)):
        frames = SSL(saved(kind), layer, seconds=2, window=window)(clip)
        np.testing.assert_allclose(frames, expected[: len(frames)], atol=1e-5)
        assert kind == "whisper" or len(frames) == len(expected)
    everything = np.concatenate([states[0], states[1], output], axis=1)
    frames = SSL(saved(kind), "all", seconds=2, window=window)(clip)
    np.testing.assert_allclose(frames, everything[: len(frames)], atol=1e-5)
    assert frames.dtype == np.float32 and frames.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_many_clips_give_what_each_gives_alone(kind, saved):
    frontend, clips = SSL(saved(kind), "all", seconds=2), _clips(*LENGTHS)
    for order in (slice(None), slice(None, None, -1), slice(3, 4)):
        together = frontend.many(clips[order])
        for clip, values in zip(clips[order], together):
            alone = frontend(clip)
            assert values.shape == alone.shape
            np.testing.assert_allclose(values, alone, atol=1e-4)
    assert frontend.many([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_those_that_heed_no_padding_are_batched_with_it(kind, saved, monkeypatch):
    frontend, sizes = SSL(saved(kind), seconds=2), []
    monkeypatch.setitem(ssl.BATCH_SECONDS, "cpu", 20)
    encode = ssl._encode
    monkeypatch.setattr(
        ssl,
        "_encode",
        lambda *given, **named: sizes.append(len(given[2])) or encode(*given, **named),
    )
    ssl._load.cache_clear()
    frontend.many(_clips(*LENGTHS))
    tried = 0 if kind == "whisper" else 2  # its own length is what Whisper heeds
    assert sizes[tried:] == ([6] if kind in MIXES - {"whisper"} else [2, 1, 1, 1, 1])


def test_batch_normalisation_of_positions_is_found_to_heed_padding(saved, tmp_path):
    folder, kind = tmp_path / "hubert", transformers.HubertModel
    config = transformers.HubertConfig(**TINY | LARGE, conv_pos_batch_norm=True)
    network = kind(config)
    nn.init.ones_(network.encoder.pos_conv_embed.batch_norm.bias)
    network.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    frontend, (short, long) = SSL(str(folder)), _clips(5000, 12000)
    assert ssl._load(str(folder), frontend.revision)[2]
    np.testing.assert_allclose(frontend.many([short, long])[0], frontend(short), atol=1e-5)


def test_batches_hold_similar_lengths_and_no_more_than_there_is_room_for():
    lengths = np.random.default_rng(0).integers(1, 100, 50).tolist() + [1000]
    for equal, least in ((False, 0), (True, 0), (False, 60)):
        batches = list(ssl._batches(lengths, 300, equal, least))
        assert sorted(row for rows in batches for row in rows) == list(range(51))
        own = [[lengths[row] for row in rows] for rows in batches]
        assert all(len(some) * max(*some, least) <= 300 or len(some) == 1 for some in own if some)
        assert not equal or all(len(set(some)) == 1 for some in own)
        assert sum(own, []) == sorted(lengths)
        assert max(map(len, own)) > 1


@pytest.mark.parametrize("samples", [3200, 3201, 9999, 31999, 32000])
def test_whisper_keeps_the_frames_of_the_clip(samples, saved):
    frames = SSL(saved("whisper"), seconds=2)(*_clips(samples))
    assert frames.shape == (-(-samples // 320), 16)


def _own_length(folder: str, clip: np.ndarray, samples: int) -> np.ndarray:
    """Frames of all layers by a Whisper whose window is so many samples long."""
    network = transformers.AutoModel.from_pretrained(folder).get_encoder().eval()
    network.config.max_source_positions = samples // 320
    positions = network.embed_positions
    positions.weight = torch.nn.Parameter(positions.weight[: samples // 320])
    positions.num_embeddings = samples // 320
    extractor = transformers.WhisperFeatureExtractor(chunk_length=samples // RATE)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        output = network(inputs, output_hidden_states=True)
    states = (*output.hidden_states[:-1], output.last_hidden_state)
    return torch.cat(states, dim=2)[0].numpy()


@pytest.mark.parametrize("samples", [RATE // 2, RATE, 2 * RATE])
def test_whisper_reads_the_clip_and_a_second_of_silence(samples, saved):
    (clip,) = _clips(samples)
    frames = SSL(saved("whisper"), "all", seconds=2)(clip)
    room = min(samples + RATE, 2 * RATE)
    if room % RATE == 0:  # transformers knows whole seconds alone
        expected = _own_length(saved("whisper"), clip, room)[: len(frames)]
        np.testing.assert_allclose(frames, expected, atol=1e-5)
    full = SSL(saved("whisper"), "all", seconds=2, window="full")(clip)
    assert frames.shape == full.shape
    same = room == 2 * RATE  # the whole window
    assert (np.abs(frames - full).max() < 1e-5) == same


def test_several_layers_stand_side_by_side_in_their_order(saved):
    (clip,) = _clips(9000)
    one, two = (SSL(saved("hubert"), layer)(clip) for layer in (1, 2))
    both = SSL(saved("hubert"), [2, 1])
    np.testing.assert_array_equal(both(clip), np.concatenate([two, one], axis=1))
    assert both.layers == 2 and both == SSL(saved("hubert"), (-1, 1))
    with pytest.raises(ValueError, match="name each layer once"):
        SSL(saved("hubert"), (1, -2))
    with pytest.raises(ValueError, match="layers 0 to 2: .* not \\(1, 5\\)"):
        SSL(saved("hubert"), (1, 5))


def test_a_folder_stands_for_a_model_of_the_hub(saved, tmp_path, monkeypatch):
    shutil.copytree(saved("whisper"), tmp_path / "whisper-tiny.en")
    monkeypatch.setenv("METASER_ENCODERS", str(tmp_path))
    found = make_frontend({"name": "whisper", "seconds": 2.0, "layer": [1, 2]})
    named = SSL(saved("whisper"), (1, 2), pooling="mean", seconds=2.0)
    assert found == named and found.width * found.layers == 32
    np.testing.assert_array_equal(found(*_clips(9000)), named(*_clips(9000)))


def test_the_real_encoder_is_the_one_that_is_known(encoders, corpora):
    folder = encoders / "whisper-tiny.en"
    frontend = make_frontend({"name": "whisper", "model": str(folder), "layer": [2]})
    assert frontend.weights == (folder / "encoder.sha256").read_text().split()[0]
    wave, _ = soundfile.read(next((corpora / "emovo").rglob("*.flac")), dtype="float32")
    full = make_frontend({"name": "whisper", "model": str(folder), "layer": [2], "window": "full"})
    frames = len(wave) // 320
    expected = _direct(str(folder), wave)[2][: frames + 1].mean(axis=0)
    np.testing.assert_allclose(full(wave)[0], expected, atol=2e-2)
    assert np.corrcoef(frontend(wave)[0], full(wave)[0])[0, 1] > 0.9


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_pooling_is_numpy_s(kind, saved):
    clips = _clips(*LENGTHS)
    layers = [SSL(saved(kind), layer, seconds=2) for layer in range(3)]
    mean, both = (SSL(saved(kind), "all", how, seconds=2) for how in ("mean", "statistics"))
    for clip, means, moments in zip(clips, mean.many(clips), both.many(clips)):
        frames = [layer(clip).astype(float) for layer in layers]
        expected = [moment for own in frames for moment in (own.mean(axis=0), own.std(axis=0))]
        np.testing.assert_allclose(moments, [np.concatenate(expected)], atol=1e-5)
        np.testing.assert_allclose(means, [np.concatenate(expected[::2])], atol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm-large", "whisper", "w2v-bert"])
@pytest.mark.parametrize("pooling", ssl.POOLINGS)
def test_awkward_clips_keep_the_contract(kind, pooling, saved):
    frontend = SSL(saved(kind), pooling=pooling, seconds=1)
    sine = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    clips = [np.zeros(RATE, np.float32), np.full(1, 0.5, np.float32), *_clips(100, 40000), sine]
    before = [clip.copy() for clip in clips]
    for values in frontend.many(clips):
        assert values.dtype == np.float32 and np.isfinite(values).all() and len(values) >= 1
        assert values.shape[1] == frontend.layers * frontend.width
        assert pooling == "none" or len(values) == 1
    for clip, old in zip(clips, before):
        np.testing.assert_array_equal(clip, old)
    np.testing.assert_array_equal(frontend(clips[3]), frontend(clips[3][:RATE]))


def test_the_rate_is_the_feature_extractor_s(saved, tmp_path):
    folder = shutil.copytree(saved("xls-r"), tmp_path / "telephone")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    assert SSL(saved("xls-r")).rate == 16000
    slow = SSL(str(folder), seconds=1)
    assert slow.rate == 8000
    (clip,) = _clips(9000)
    np.testing.assert_array_equal(slow(clip), slow(clip[:8000]))


def test_its_text_tells_its_numbers_and_not_where_the_folder_lies(saved, tmp_path):
    here = SSL(saved("hubert"))
    there = SSL(str(shutil.copytree(saved("hubert"), tmp_path / "hubert")), layer=2)
    assert repr(here) == repr(there) and here == there and hash(here) == hash(there)
    assert str(tmp_path) not in repr(there) and here.weights in repr(there)
    others = [SSL(saved("hubert"), **changed) for changed in ({"layer": 1}, {"pooling": "mean"})]
    network = transformers.AutoModel.from_pretrained(there.model)
    network.encoder.layers[0].attention.q_proj.bias.data[0] += 1
    network.save_pretrained(there.model)
    others.append(SSL(there.model))
    assert len({repr(here), *map(repr, others)}) == 4
    assert np.abs(others[-1](*_clips(8000)) - here(*_clips(8000))).max() > 1e-3  # loaded anew
    assert SSL(here.model, revision=here.revision) == here
    with pytest.raises(ValueError, match=f"digest {others[-1].revision}, not {here.revision}"):
        SSL(there.model, revision=here.revision)
    assert SSL(here.model, weights=here.weights) == here
    told = f"weights {here.weights}, not {others[-1].weights}: .* another encoder, perhaps"
    with pytest.raises(ValueError, match=told):
        SSL(there.model, weights=here.weights)


def test_what_is_pickled_is_small_and_works(saved):
    frontend, (clip,) = SSL(saved("wavlm"), "all"), _clips(6000)
    before = frontend(clip)
    text = pickle.dumps(frontend)
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text)(clip), before)


def test_a_model_of_the_hub_is_taken_from_its_cache_and_named_by_its_commit(
    saved, tmp_path, monkeypatch
):
    import huggingface_hub

    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "models--lab--hubert"
    shutil.copytree(saved("hubert"), folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    frontend, local = SSL("lab/hubert"), SSL(saved("hubert"))
    assert frontend.revision == commit and frontend.name == "lab/hubert"
    assert repr(frontend) == repr(local) and frontend == local  # the same tensors
    (clip,) = _clips(6000)
    np.testing.assert_array_equal(frontend(clip), local(clip))
    assert SSL("lab/hubert", revision="main") == frontend


def test_errors_tell_what_to_do(saved, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="layers 0 to 2: .* not 3"):
        SSL(saved("hubert"), layer=3)
    with pytest.raises(ValueError, match="not -4"):
        SSL(saved("hubert"), layer=-4)
    with pytest.raises(ValueError, match="not 'last'"):
        SSL(saved("hubert"), layer="last")
    with pytest.raises(ValueError, match="'mean', 'statistics'.*not 'max'"):
        SSL(saved("hubert"), pooling="max")
    with pytest.raises(ValueError, match="at most 2, not 10.0"):
        SSL(saved("whisper"))
    with pytest.raises(ValueError, match="above 0"):
        SSL(saved("hubert"), seconds=0)
    for name in ("lab/not-there", str(tmp_path / "no" / "folder")):
        with pytest.raises(FileNotFoundError, match=rf"no model '{name}'.*save_pretrained\(FOLDER"):
            SSL(name)
    bare = shutil.copytree(saved("hubert"), tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessor_config.json.*FeatureExtractor"):
        SSL(str(bare))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json"):
        SSL(str(tmp_path / "empty"))
    for package, make in (("transformers", SSL), ("peft", SSLEncoder)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ModuleNotFoundError, match=rf"need {package}: pip.*metaser\[ssl\]"):
                make(saved("hubert"))


def test_missing_weights_are_not_replaced_by_random_ones(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(saved("hubert"), tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.feed_forward.output_dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileNotFoundError, match="no weights encoder.layers.1.feed_forward"):
        SSL(str(folder))(*_clips(8000))


def test_an_adapter_that_shortens_the_output_is_left_out(tmp_path):
    config = transformers.Wav2Vec2Config(**TINY | LARGE, add_adapter=True)
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    (clip,) = _clips(9000)
    config.add_adapter = False
    plain = transformers.Wav2Vec2Model.from_pretrained(tmp_path, config=config).eval()
    normal = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    with torch.no_grad():
        expected = plain(torch.from_numpy(normal)[None]).last_hidden_state[0]
    np.testing.assert_allclose(SSL(str(tmp_path))(clip), expected, atol=1e-5)


def test_encoders_without_frames_of_one_rate_are_refused(tmp_path):
    squeezed = transformers.SEWModel(transformers.SEWConfig(**TINY))
    squeezed.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SEWModel has layers of different frame rates"):
        SSL(str(tmp_path))(*_clips(8000))


def _padded(frontend, lengths, frames: int = 0) -> Padded:
    clips = frontend.many(_clips(*lengths))
    counts = np.array([len(clip) for clip in clips])
    values = np.zeros((len(clips), max(frames, *counts), clips[0].shape[1]), np.float32)
    for row, clip in enumerate(clips):
        values[row, : len(clip)] = clip
    mask = np.arange(values.shape[1]) < counts[:, None]
    return Padded(torch.from_numpy(values), torch.from_numpy(mask))


@pytest.mark.parametrize("pooling", ssl.POOLINGS)
@pytest.mark.parametrize("normalise", [False, True])
def test_layer_weights_weigh_layers(pooling, normalise, saved):
    weigh = LayerWeights(saved("xls-r"), pooling, normalise=normalise)
    audio = _padded(weigh.extracted, (9000, 5000), 40)
    with torch.no_grad():
        weigh.weights[:] = torch.tensor([0.5, -1.0, 2.0])
    share = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    layers = np.split(audio.values.numpy().astype(float), 3, axis=-1)
    if normalise:
        layers = [
            (own - own.mean(axis=-1, keepdims=True)) / np.sqrt(own.var(axis=-1) + 1e-5)[..., None]
            for own in layers
        ]
    found = weigh(audio)
    np.testing.assert_allclose(
        found.values.detach(), sum(a * b for a, b in zip(share, layers)), atol=1e-5
    )
    assert found.values.shape[-1] == weigh.channels == 16 * (2 if pooling == "statistics" else 1)
    assert weigh.adapts and not LayerWeights(saved("xls-r"), adapts=False).adapts
    torch.testing.assert_close(found.mask, audio.mask)


def test_layer_weights_of_the_start_are_equal_and_differ_from_task_to_task(saved):
    weigh = LayerWeights(saved("xls-r"))
    audio = _padded(weigh.extracted, (9000, 5000))
    torch.testing.assert_close(
        weigh(audio).values, audio.values.unflatten(-1, (3, -1)).mean(dim=-2)
    )

    def run(own, values):
        return functional_call(weigh, {"weights": own}, (Padded(values, audio.mask),)).values

    stacked = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    values = audio.values.double().expand(2, -1, -1, -1)
    both = vmap(run)(stacked, values)
    torch.testing.assert_close(both, torch.stack([run(a, b) for a, b in zip(stacked, values)]))
    assert torch.autograd.gradgradcheck(lambda own: run(own, values[0]), stacked[0])


def _spread(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values for the learnt parameters; B is zero at the start, which would hide A."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in module.named_parameters()
        if value.requires_grad
    }


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_encoder_that_has_learnt_nothing_gives_the_output_of_transformers(kind, saved):
    encoder = SSLEncoder(saved(kind), seconds=2)
    (clip,) = _clips(32000)  # all that the tiny Whisper hears
    frames = torch.from_numpy(encoder.extracted(clip))[None]
    found = encoder(Padded(frames, torch.ones(frames.shape[:2], dtype=torch.bool)))
    np.testing.assert_allclose(found.values[0].detach(), _direct(saved(kind), clip)[-1], atol=1e-5)
    assert found.values.shape[-1] == encoder.channels == 16


@pytest.mark.parametrize("kind", ADAPTED)
@pytest.mark.parametrize("pooling", ["none", "mean"])
def test_padding_does_not_change_an_encoder_s_output(kind, pooling, saved):
    encoder = SSLEncoder(saved(kind), pooling, seconds=2).train()
    encoder.load_state_dict(_spread(encoder), strict=False)
    short, long = (_padded(encoder.extracted, (9000, 5000), frames) for frames in (0, 90))
    found, padded = encoder(short), encoder(long)
    length = found.mask.shape[1]
    torch.testing.assert_close(padded.values[:, :length], found.values)
    assert not padded.values[:, length:].any() and not padded.mask[:, length:].any()
    torch.testing.assert_close(encoder(short).values, found.values)  # nothing is drawn at random
    if pooling == "mean":
        encoder.pooling = "none"
        frames = encoder(short)
        expected = [own[real].mean(dim=0) for own, real in zip(frames.values, frames.mask)]
        torch.testing.assert_close(found.values[:, 0], torch.stack(expected))


@pytest.mark.parametrize("kind", ADAPTED)
def test_every_learnt_matrix_changes_the_output_and_nothing_else_learns(kind, saved):
    encoder = SSLEncoder(saved(kind), rank=2, seconds=2)
    audio, own = _padded(encoder.extracted, (9000, 5000)), _spread(encoder)
    others = _spread(encoder, 1)
    assert len(own) == 8 and all("lora_" in name for name in own)
    before = functional_call(encoder, own, (audio,)).values
    for name in own:
        changed = functional_call(encoder, own | {name: others[name]}, (audio,)).values
        assert (changed - before).abs().max() > 1e-4, name


@pytest.mark.parametrize("kind", ["xls-r", "wavlm", "data2vec", "whisper"])
def test_an_encoder_is_stacked_and_differentiated_twice(kind, saved):
    encoder = SSLEncoder(saved(kind), "mean", rank=1, seconds=2).double()
    audio = _padded(encoder.extracted, (3000, 2500))
    values, own = audio.values.double(), _spread(encoder)

    def run(own, values):
        return functional_call(encoder, own, (Padded(values, audio.mask),)).values

    tasks = [own, _spread(encoder, 1)]
    clips = torch.stack([values, values.flip(0)])
    stacked = {name: torch.stack([task[name] for task in tasks]) for name in own}
    expected = torch.stack([run(task, some) for task, some in zip(tasks, clips)])
    torch.testing.assert_close(vmap(run)(stacked, clips), expected)

    def slope(point):
        """Length of the gradient, whose own slope needs second derivatives."""
        shifted = {name: value + point for name, value in own.items()}
        loss = (run(shifted, values) ** 3).sum()
        return torch.autograd.grad(loss, point, create_graph=True)[0]

    point = torch.zeros((), dtype=torch.float64, requires_grad=True)
    second = torch.autograd.grad(slope(point), point)[0]
    step = 1e-5
    moved = [slope((point + sign * step).detach().requires_grad_()) for sign in (1, -1)]
    torch.testing.assert_close(second, (moved[0] - moved[1]) / (2 * step), rtol=1e-4, atol=1e-5)


class _Listener(nn.Module):
    """A front end as a backbone: the mean of its frames."""

    def __init__(self, frontend: nn.Module):
        super().__init__()
        self.frontend, self.dim = frontend, frontend.channels

    def forward(self, audio: Padded) -> torch.Tensor:
        return self.frontend(audio).mean()


@pytest.mark.parametrize("kind", ["wav2vec2", "xls-r", "wavlm-large", "whisper"])
def test_meta_learning_changes_the_matrices_alone(kind, saved):
    encoder = SSLEncoder(saved(kind), seconds=2)
    model = Model(_Listener(encoder), classes=2)
    method = MAML(model, inner_steps=2, adapt_steps=2)
    audio = _padded(encoder.extracted, (9000, 5000, 7000, 6000))
    labelled = Batch({"audio": audio}, torch.tensor([0, 1, 0, 1]), torch.ones(2, dtype=torch.bool))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5, weight_decay=0.1)
    losses = []
    for _ in range(4):
        loss = method.loss(EpisodeBatch(labelled[:2], labelled[2:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in model.state_dict().items():
        learnt = "lora_" in name or name.startswith("head.")
        assert torch.equal(value, before[name]) != learnt, name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = method.adapt(labelled)(labelled.modalities)
    assert scores.shape == (4, 2) and torch.isfinite(scores).all()
    assert (scores - model(labelled.modalities)).abs().max() > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_encoder_refuses_what_it_cannot_adapt(saved):
    with pytest.raises(ValueError, match="architecture 'wav2vec2-bert'.*LayerWeights"):
        SSLEncoder(saved("w2v-bert"))
    with pytest.raises(ValueError, match="'none', 'mean'.*not 'statistics'"):
        SSLEncoder(saved("xls-r"), pooling="statistics")


@pytest.mark.corpora
def test_real_speech_is_encoded(corpora, saved):
    from metaser import audio

    files = sorted(path for path in corpora.rglob("*.flac"))[:6]
    for kind in ("wav2vec2", "xls-r", "whisper"):
        frontend = SSL(saved(kind), seconds=2)
        clips = [audio.read(path, frontend.rate) for path in files]
        for clip, values in zip(clips, frontend.many(clips)):
            np.testing.assert_allclose(values, frontend(clip), atol=1e-4)


def test_the_extra_is_imported_by_use_alone():
    script = "import sys, metaser.frontends.ssl; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.split()
    assert not {"transformers", "peft", "huggingface_hub"} & set(loaded)


def _protocol(model: str) -> Protocol:
    setup = {
        "frontend": {"name": "ssl", "model": model, "pooling": "mean"},
        "normalise": "corpus",
        "backbone": {"name": "mlp"},
        "methods": {"metaser": {}},
    }
    facts = {
        "title": "",
        "description": "",
        "classes": ["angry", "sad"],
        "sources": ["de_emodb"],
        "targets": ["it_emovo"],
        "seeds": [0],
        "episodes": {"shots": [1], "queries": 1, "count": 1},
    }
    return Protocol(name="trial", setups={"ssl": setup}, **facts)


def test_half_precision_without_a_gpu_is_refused(saved):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ValueError, match="half = true needs a GPU"):
        SSL(str(saved("wavlm")), half=True)


def test_rows_and_checkpoints_are_bound_to_the_weights_and_not_to_where_they_lie(saved, tmp_path):
    def digests(folder) -> tuple[str, str]:
        protocol = _protocol(str(folder))
        setup = build.settle(protocol)["ssl"].setup
        return build.settings(protocol, setup, "metaser"), build.training_key("metaser", setup)

    moved = tmp_path / Path(saved("wavlm")).name
    shutil.copytree(saved("wavlm"), moved)
    assert digests(moved) == digests(saved("wavlm"))
    network = transformers.AutoModel.from_pretrained(moved)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    network.save_pretrained(moved)
    for one, other in zip(digests(moved), digests(saved("wavlm"))):
        assert one != other


HALF = 2e-2
"""Half precision has 11 significant bits; after a few layers frames are this share off."""


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ADAPTED)
def test_half_precision_on_a_gpu_is_near_single_precision_on_the_processor(gpu, kind, saved):
    clips = _clips(*LENGTHS)
    rough, fine = (SSL(saved(kind), seconds=2, half=half).many(clips) for half in (True, False))
    for clip, *both in zip(clips, rough, fine):
        expected = _direct(saved(kind), clip)[-1][: len(both[0])]
        for found, most in zip(both, (HALF, HALF / 10)):
            assert found.dtype == np.float32 and found.shape == expected.shape
            assert np.linalg.norm(found - expected) < most * np.linalg.norm(expected)
        assert not np.array_equal(*both)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ADAPTED)
def test_an_encoder_is_adapted_on_a_gpu_as_on_the_processor(gpu, kind, saved):
    slopes = []
    for device in ("cpu", gpu):
        torch.manual_seed(0)
        encoder = SSLEncoder(saved(kind), seconds=2, rank=2)
        method = MAML(Model(MLP(encoder.channels, (4,)), 4, frontend=encoder), second_order=True)
        with torch.no_grad():
            for value in method.parameters():
                if value.requires_grad:  # one of two matrices begins at zero
                    value.copy_(0.3 * torch.randn(value.shape))
        method.double().to(device)
        mask = torch.arange(9) < torch.tensor([9, 4, 7, 9, 2, 9, 9, 5])[:, None]
        draw = torch.Generator().manual_seed(1)
        size = (*mask.shape, encoder.channels)
        values = torch.randn(size, generator=draw, dtype=torch.float64)
        audio = Padded(values * mask.unsqueeze(-1), mask)
        batch = Batch({"audio": audio}, torch.arange(8) % 4, torch.ones(4, dtype=torch.bool))
        method.loss(EpisodeBatch(batch, batch).to(device)).backward()
        learnt = [value.grad for value in method.parameters() if value.grad is not None]
        slopes.append(torch.cat([slope.flatten().cpu() for slope in learnt]))
    assert slopes[0].norm() > 1e-3
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-8, atol=1e-10)


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for kind in ("AutoConfig", "AutoModel"):
        with pytest.raises(ValueError, match="code of its own, which MetaSER never runs"):
            hub.pretrained(kind, str(tmp_path), "main")
    assert not (tmp_path / "ran").exists()
