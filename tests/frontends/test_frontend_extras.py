"""Front ends that need an extra: openSMILE's features and speaker embeddings."""

import importlib.util
import pickle
import sys

import numpy as np
import pandas as pd
import pytest

from metaser import audio
from metaser.frontends import egemaps, speaker
from metaser.frontends.egemaps import OpenSmile
from metaser.frontends.speaker import SpeakerEmbedding

RATE = 16000


@pytest.fixture(scope="module")
def opensmile():
    if importlib.util.find_spec("opensmile") is None:
        pytest.skip('needs opensmile: pip install "metaser[opensmile]"')
    import opensmile

    return opensmile


@pytest.fixture(scope="module")
def embed() -> SpeakerEmbedding:
    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip('needs resemblyzer: pip install "metaser[speaker]"')
    return SpeakerEmbedding()


def _babble(seconds: float, pitch: float = 150, seed: int = 0) -> np.ndarray:
    """A buzzing voice with syllables, over a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(4 * time))) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.sin(8 * time) ** 2
    return (0.1 * voice + 1e-3 * rng.standard_normal(len(time))).astype(np.float32)


CLIPS = {
    "silence": np.zeros(RATE, np.float32),
    "one sample": np.full(1, 0.5, np.float32),
    "a hundred samples": _babble(1)[8000:8100],
    "100 ms": _babble(1)[8000:9600],
    "almost silence": np.float32(1e-7) * _babble(1),
    "click": np.eye(1, RATE, RATE // 2, dtype=np.float32)[0],
    "offset": np.full(RATE, 0.7, np.float32),
    "babble": _babble(2),
}

SETS = [
    ("eGeMAPSv02", "functionals", 88),
    ("eGeMAPSv02", "lld", 25),
    ("ComParE_2016", "functionals", 6373),
    ("ComParE_2016", "lld", 65),
    ("ComParE_2016", "lld_deltas", 65),
    ("IS10", "functionals", 1582),
    ("IS11", "lld", 59),
]


@pytest.mark.parametrize("features, level, channels", SETS)
def test_opensmile_gives_opensmile_s_numbers(opensmile, features, level, channels):
    clip = _babble(2)
    values = OpenSmile(features, level)(clip)
    names = {"functionals": "Functionals", "lld": "LowLevelDescriptors"}
    smile = opensmile.Smile(features, names.get(level, "LowLevelDescriptors_Deltas"))
    expected = smile.process_signal(clip, RATE)
    assert values.dtype == np.float32 and values.shape[1] == channels
    assert (len(values) == 1) == (level == "functionals")
    np.testing.assert_array_equal(values, expected.to_numpy())


@pytest.mark.parametrize("features, level, channels", SETS)
def test_opensmile_keeps_the_contract(opensmile, features, level, channels):
    frontend = OpenSmile(features, level)
    again = pickle.loads(pickle.dumps(frontend))
    assert again == frontend
    for kind, clip in CLIPS.items():
        before = clip.copy()
        values = frontend(clip)
        np.testing.assert_array_equal(clip, before)
        assert len(values) >= 1 and values.shape[1] == channels, kind
        assert np.isfinite(values).all(), kind
        np.testing.assert_array_equal(values, again(clip), err_msg=kind)


@pytest.mark.filterwarnings("ignore:Feature set:UserWarning")
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_set_fills_a_frame_with_one_sample(opensmile, rate):
    clip = np.full(1, 0.5, np.float32)
    for features in opensmile.FeatureSet.__members__:
        for level in ("functionals", "lld"):
            values = OpenSmile(features, level, rate)(clip)
            assert np.isfinite(values).all() and values.any(), (features, level)


def test_what_opensmile_leaves_undefined_is_zero(opensmile):
    clip = np.pad(np.full(1, 0.5, np.float32), (0, 4409))
    expected = opensmile.Smile("IS13", "Functionals")(clip, 44100)[0].T
    undefined = np.isnan(expected)
    assert 0 < undefined.sum() < 10
    values = OpenSmile("IS13", rate=44100)(clip[:1])
    assert (values[undefined] == 0).all()
    np.testing.assert_array_equal(values[~undefined], expected[~undefined])


def test_descriptors_of_long_clips_are_cut_and_functionals_are_not(opensmile):
    clip = _babble(3)
    first = clip[:RATE]
    np.testing.assert_array_equal(
        OpenSmile(level="lld", seconds=1)(clip), OpenSmile(level="lld")(first)
    )
    whole = OpenSmile(seconds=1)(clip)
    np.testing.assert_array_equal(whole, OpenSmile()(clip))
    assert (whole != OpenSmile()(first)).any()


def test_loud_samples_are_clipped_and_do_not_wrap_round(opensmile):
    clip = 30 * _babble(1)
    assert clip.max() > 1 and clip.min() < -1
    clipped = np.clip(clip, -1, 32767 / 32768)
    np.testing.assert_array_equal(OpenSmile()(clip), OpenSmile()(clipped))
    smile = opensmile.Smile("eGeMAPSv02", "Functionals")
    wrapped = smile(clip, RATE)[0].T
    assert np.abs(wrapped - OpenSmile()(clip)).max() > 1  # what the clipping is there for


def test_unknown_sets_and_levels_are_refused(opensmile):
    with pytest.raises(ValueError, match="'eGeMAPSv02'.*not 'eGeMAPSv03'"):
        OpenSmile("eGeMAPSv03")
    with pytest.raises(ValueError, match="'functionals', 'lld', 'lld_deltas'.*not 'frames'"):
        OpenSmile(level="frames")
    with pytest.raises(ValueError, match="not available for feature set 'eGeMAPSv02'"):
        OpenSmile(level="lld_deltas")


@pytest.mark.parametrize(
    "kind, package, extra, made",
    [
        (OpenSmile, "opensmile", "opensmile", egemaps._extractor),
        (SpeakerEmbedding, "resemblyzer", "speaker", speaker._encoder),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, kind, package, extra, made):
    made.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'metaser\[{extra}\]'"):
        kind()


@pytest.mark.parametrize("seconds", [0.05, 1, 1.6, 2.2, 5])
def test_embeddings_are_resemblyzer_s(embed, seconds):
    from resemblyzer import VoiceEncoder, normalize_volume

    encoder = VoiceEncoder("cpu", verbose=False)
    for clip in (_babble(seconds), np.float32(0.01) * _babble(seconds)):
        expected = encoder.embed_utterance(normalize_volume(clip, -30, increase_only=True))
        np.testing.assert_allclose(embed(clip), expected[None], atol=1e-6)


def test_embeddings_keep_the_contract(embed):
    again = pickle.loads(pickle.dumps(embed))
    for kind, clip in CLIPS.items():
        before = clip.copy()
        values = embed(clip)
        np.testing.assert_array_equal(clip, before)
        assert values.shape == (1, 256) and values.dtype == np.float32, kind
        assert np.linalg.norm(values) == pytest.approx(1, abs=1e-5), kind
        np.testing.assert_array_equal(values, again(clip), err_msg=kind)


def test_embeddings_do_not_hear_how_quiet_a_clip_is(embed):
    clip = np.float32(0.1) * _babble(2)
    np.testing.assert_allclose(embed(clip / 8), embed(clip), atol=1e-5)
    assert np.abs(embed(_babble(2, pitch=300)) - embed(_babble(2))).max() > 0.05


def test_embeddings_of_long_clips_are_those_of_their_start(embed):
    clip = _babble(5)
    np.testing.assert_array_equal(SpeakerEmbedding(seconds=2)(clip), embed(clip[: 2 * RATE]))


def test_clips_of_one_speaker_are_closer_than_those_of_two(embed, corpora):
    table = pd.read_csv(corpora / "emovo" / "metadata.csv").sort_values("file")
    chosen = table[table["emotion"] == "neutral"].groupby("speaker").head(4)
    vectors = [embed(audio.read(corpora / "emovo" / file, RATE))[0] for file in chosen["file"]]
    likeness = np.array(vectors) @ np.array(vectors).T
    speakers = chosen["speaker"].to_numpy()
    same, other = speakers[:, None] == speakers, ~np.eye(len(speakers), dtype=bool)
    assert len(set(speakers)) >= 4
    assert likeness[same & other].mean() > likeness[~same].mean() + 0.05
    nearest = np.where(other, likeness, -1).argmax(axis=1)
    assert (speakers[nearest] == speakers).mean() > 0.8  # by chance one in eight


def test_the_encoder_hears_one_rate(embed):
    with pytest.raises(ValueError, match="16000 Hz, .*not 8000"):
        SpeakerEmbedding(rate=8000)
