import numpy as np
import pytest
from scipy.stats import norm
from sklearn.gaussian_process.kernels import RBF

from metaser.features import distances as selection
from metaser.features.distances import Clips, choose, compare, median_gamma, mmd, proxy_a_distance

CLASSES = ("angry", "happy", "neutral", "sad")


def _corpus(shift=0.0, seed=0, speakers=8, clips=5, channels=4, class_shift=0.0, voice=0.0):
    """Speakers who say every class; ``shift`` moves all clips, ``class_shift`` the angry ones."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"s{n}" for n in range(speakers)], clips * len(CLASSES))
    emotions = np.tile(np.repeat(CLASSES, clips), speakers)
    vectors = rng.standard_normal((len(names), channels)) + shift
    vectors[:, 0] += class_shift * (emotions == "angry")
    vectors += voice * np.repeat(rng.standard_normal((speakers, channels)), clips * 4, axis=0)
    return Clips(vectors, names, emotions)


def _values(table, distance):
    return table[table["distance"] == distance].set_index("source")["value"]


def test_mmd_is_the_written_double_sum():
    rng = np.random.default_rng(0)
    a, b, gamma = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 1, 0.3
    kernel = RBF(length_scale=(1 / (2 * gamma)) ** 0.5)
    k = [[kernel(x[None], y[None]).item() for y in (*a, *b)] for x in (*a, *b)]
    own_a = np.mean([k[i][j] for i in range(5) for j in range(5) if i != j])
    own_b = np.mean([k[i][j] for i in range(5, 12) for j in range(5, 12) if i != j])
    between = np.mean([k[i][j] for i in range(5) for j in range(5, 12)])
    assert mmd(a, b, gamma) == pytest.approx(own_a + own_b - 2 * between, abs=1e-12)


def test_mmd_is_unbiased():
    rng = np.random.default_rng(1)
    values = [
        mmd(rng.standard_normal((6, 2)), rng.standard_normal((6, 2)), 0.5) for _ in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0
    # E k(x, y) of unit normals at distance δ in one dimension, with kernel exp(-γ d²)
    far = [
        mmd(rng.standard_normal((6, 1)), rng.standard_normal((6, 1)) + 1, 0.5) for _ in range(200)
    ]
    truth = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    assert np.mean(far) == pytest.approx(truth, abs=3 * np.std(far) / np.sqrt(200))


def test_the_median_heuristic():
    assert median_gamma(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(1 / (2 * 4))
    with pytest.raises(ValueError, match="same features"):
        median_gamma(np.ones((4, 2)))


def test_proxy_a_is_that_of_the_best_classifier():
    a, b = _corpus(0, 0, 20, 10, 1), _corpus(1.5, 1, 20, 10, 1)
    error = norm.cdf(-0.75)  # the boundary stands half-way
    assert proxy_a_distance(a, b) == pytest.approx(2 * (1 - 2 * error), abs=0.1)
    assert proxy_a_distance(a, _corpus(0, 2, 20, 10, 1)) == pytest.approx(0, abs=0.15)
    assert proxy_a_distance(a, _corpus(50, 1, 20, 10, 1)) == 2


def test_proxy_a_hears_no_speaker_twice():
    """Voices that are told apart by heart do not make two corpora different."""
    a, b = (_corpus(0, seed, 8, 10, 20, voice=20.0) for seed in (3, 4))
    leaky = [Clips(c.vectors, np.arange(len(c)).astype(str), c.emotions) for c in (a, b)]
    assert proxy_a_distance(*leaky) > 1.9
    assert proxy_a_distance(a, b) < 1.0


def test_distances_find_the_planted_order():
    target = _corpus(0, 0)
    shifts = {"far": 1.5, "near": 0.2, "middle": 0.7}
    sources = {name: _corpus(shift, 1 + n) for n, (name, shift) in enumerate(shifts.items())}
    table = compare(target, sources, shots=5, resamples=20)
    for distance in ("mmd", "proxy_a", "class_mmd", "class_means"):
        order = _values(table, distance).sort_values().index.tolist()
        assert order == ["near", "middle", "far"], distance


def test_labelled_distances_see_what_unlabelled_ones_cannot():
    """The same clips under exchanged labels are another task in the same sound."""
    target, same = _corpus(0, 0, clips=10, class_shift=4), _corpus(0, 1, clips=10, class_shift=4)
    swap = {"angry": "sad", "sad": "angry"}
    emotions = np.array([swap.get(name, name) for name in same.emotions])
    other = Clips(same.vectors, same.speakers, emotions)
    # One name decides the draw, so both sources are asked for in turn under the same.
    tables = [compare(target, {"x": source}, shots=5, resamples=5) for source in (same, other)]
    for distance in ("mmd", "proxy_a"):
        a, b = (_values(table, distance)["x"] for table in tables)
        assert a == pytest.approx(b, abs=1e-12)
    for distance in ("class_mmd", "class_means"):
        a, b = (_values(table, distance)["x"] for table in tables)
        assert b > a + 0.1, distance


def test_class_means_is_the_written_formula():
    target, source = _corpus(0, 0, 4, 5), _corpus(1, 1, 4, 5, class_shift=1)
    found = _values(compare(target, {"a": source}, shots=20, resamples=2), "class_means")["a"]
    spread = np.concatenate([target.vectors, source.vectors]).std(axis=0)
    parts = []
    for name in CLASSES:
        difference = target.vectors[target.emotions == name].mean(axis=0)
        difference -= source.vectors[source.emotions == name].mean(axis=0)
        parts.append(np.sqrt(np.mean((difference / spread) ** 2)))
    assert found == pytest.approx(np.mean(parts))


def test_labels_of_the_target_change_nothing_unless_asked_for():
    target, sources = _corpus(0, 0), {"a": _corpus(1, 1), "b": _corpus(2, 2)}
    shuffled = Clips(target.vectors, target.speakers, target.emotions[::-1].copy())
    first, second = (compare(clips, sources, resamples=5) for clips in (target, shuffled))
    assert first.equals(second)
    assert set(first["distance"]) == set(selection.UNLABELLED)


def test_intervals_cover_what_another_draw_of_speakers_gives():
    """The error of a mean over speakers is known: their spread over the root of their number."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(40) * 3
    names = np.arange(40).astype(str)
    side = Clips(np.repeat(values, 2)[:, None], np.repeat(names, 2), np.repeat(names, 2))
    error = selection._standard_error(
        lambda a, b: np.average(side.vectors[:, 0], weights=a), (side, side), 2000, rng
    )
    assert error == pytest.approx(values.std() / np.sqrt(40), rel=0.1)


def test_one_speaker_has_distances_and_no_interval():
    target = _corpus(0, 0, speakers=1, clips=5)
    table = compare(target, {"a": _corpus(1, 1)}, resamples=10)
    assert np.isfinite(_values(table, "mmd")["a"]) and np.isnan(_values(table, "proxy_a")["a"])
    assert table["low"].isna().all() and (table["clips"] == 20).all()
    with pytest.raises(ValueError, match="one speaker: choose by 'mmd'"):
        choose(target, {"a": _corpus(1, 1)}, 1, "proxy_a")


def test_all_corpora_give_equally_many_clips_whoever_else_is_there():
    target, large, small = _corpus(0, 0), _corpus(1, 1, 30), _corpus(1, 2, 2, 3)
    table = compare(target, {"large": large, "small": small}, resamples=2)
    assert (table["clips"] == len(small)).all()
    assert (compare(target, {"large": large}, limit=50, resamples=2)["clips"] == 50).all()


def test_choosing():
    target = _corpus(0, 0)
    sources = {name: _corpus(shift, 7) for name, shift in (("c", 3), ("a", 1), ("b", 2))}
    assert choose(target, sources, 2) == ["a", "b"]
    assert choose(target, sources, 2, order="farthest") == ["b", "c"]
    assert choose(target, sources, 9, "proxy_a") == choose(target, sources, 3, "proxy_a")
    with pytest.raises(ValueError, match="not 'class_mmd' and 'nearest'"):
        choose(target, sources, 2, "class_mmd")


def test_what_cannot_be_compared_is_refused():
    target = _corpus(0, 0)
    with pytest.raises(ValueError, match="at least 1 corpus, not 0"):
        compare(target, {})
    with pytest.raises(
        ValueError, match="'angry' of the target must have 41 labelled clips, not 40"
    ):
        compare(target, {"a": target}, shots=41)
    with pytest.raises(ValueError, match="at least two clips of each corpus, not 1"):
        compare(target, {"a": _corpus(0, 0)[:1]})


def test_clips_are_mean_frames_without_padding(make_task, plant):
    task = make_task()
    features = plant(task)
    clips = selection.clips_of(task, features)
    row = int(np.argmin(features.lengths))
    wanted = features.values[row, : features.lengths[row]].mean(axis=0)
    np.testing.assert_allclose(clips.vectors[row], wanted, rtol=1e-6)
    assert clips.emotions.tolist() == task.table["emotion"].tolist()
