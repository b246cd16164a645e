"""Normalising by who speaks, and when that is safe."""

import numpy as np
import pytest
from scipy.special import expit

from metaser.features.table import Features
from metaser.features.voice import gate, normalise_voices, varied_share


def _features(values: np.ndarray, lengths: np.ndarray | None = None) -> Features:
    clips, frames, _ = values.shape
    lengths = np.full(clips, frames) if lengths is None else lengths
    return Features(values.astype(np.float32), lengths, np.arange(clips).astype(str))


def _made(seed: int = 0, clips: int = 24) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(seed)
    speakers = np.array(["ann", "ben", "cem"])[rng.integers(0, 3, clips)]
    shift = {"ann": 0.0, "ben": 2.0, "cem": -1.0}
    offsets = np.array([shift[who] for who in speakers])[:, None, None]
    return _features(rng.standard_normal((clips, 4, 5)) + offsets), speakers


def test_statistics_lean_on_the_corpus_as_the_formula_says():
    features, speakers = _made()
    found = np.asarray(normalise_voices(features, speakers).values)
    values = features.values.astype(float)
    centre, variance = values.mean(axis=(0, 1)), values.var(axis=(0, 1))
    for who in np.unique(speakers):
        own = values[speakers == who]
        n = len(own)
        mean = n / (n + 3) * own.mean(axis=(0, 1)) + 3 / (n + 3) * centre
        spread = np.sqrt(n / (n + 10) * own.var(axis=(0, 1)) + 10 / (n + 10) * variance)
        expected = np.clip((own - mean) / spread, -5, 5)
        np.testing.assert_allclose(found[speakers == who], expected, atol=1e-5)


def test_a_voice_of_which_nothing_is_known_gets_the_corpus_s_statistics():
    features, speakers = _made()
    known = speakers != "ben"
    found = np.asarray(normalise_voices(features, speakers, known).values)
    values = features.values.astype(float)
    expected = (values - values.mean(axis=(0, 1))) / values.std(axis=(0, 1))
    np.testing.assert_allclose(found[~known], expected[~known], atol=1e-5)


def test_known_clips_alone_decide():
    features, speakers = _made()
    known = np.zeros(len(speakers), bool)
    known[[np.flatnonzero(speakers == who)[0] for who in ("ann", "ben", "cem")]] = True
    one = np.asarray(normalise_voices(features, speakers, known).values)
    changed = features.values.copy()
    moved = np.flatnonzero(speakers == "ann")[1:3]
    changed[moved[0]], changed[moved[1]] = features.values[moved[1]], features.values[moved[0]]
    other = np.asarray(normalise_voices(_features(changed), speakers, known).values)
    np.testing.assert_allclose(other[moved[0]], one[moved[1]], atol=1e-5)


def test_neutral_clips_are_moved_to_where_neutral_lies():
    features, speakers = _made(clips=400)
    neutral = np.linspace(-1, 1, 5)
    values = features.values.astype(float)
    spread = values.std(axis=(0, 1))
    planted = _features(
        np.where(np.arange(400)[:, None, None] % 2, values + neutral * spread, values)
    )
    known = np.arange(400) % 2 == 1  # these are the neutral ones
    found = np.asarray(normalise_voices(planted, speakers, known, neutral=neutral).values)
    means = np.array([found[~known & (speakers == who)].mean(axis=(0, 1)) for who in set(speakers)])
    assert np.abs(means).max() < 0.2  # the others lie around 0, whoever speaks


def test_frames_that_pad_and_clips_without_frames_do_not_count():
    features, speakers = _made()
    lengths = np.full(len(speakers), 4)
    lengths[:5] = [1, 2, 3, 0, 4]
    padded = features.values.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = 99
    clean = np.where(np.arange(4)[:, None] < lengths[:, None, None], features.values, 0)
    one = normalise_voices(_features(padded, lengths), speakers)
    other = normalise_voices(_features(clean, lengths), speakers)
    np.testing.assert_array_equal(np.asarray(one.values), np.asarray(other.values))


def test_the_gate_is_open_where_speakers_show_several_emotions():
    targets, speakers = np.array([0, 1, 2, 3, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    assert varied_share(targets, speakers) == pytest.approx(4 / 6)
    assert (gate(4 / 6), gate(0.49), gate(0.5)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("evidence", [-3.0, 0.0, 2.5])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_gate_weighs_evidence(share, evidence):
    assert gate(share, evidence) == pytest.approx(expit(2 * evidence + 4 * (share - 0.25)))
    assert gate(share, evidence) < gate(share, evidence + 1)
