import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from metaser.episodes import (
    SplitSampler,
    TaskSampler,
    digest,
    join_same_audio,
    read_manifest,
    tensors,
    write_manifest,
)
from metaser.tasks import read_task

CLASSES = ("angry", "happy", "neutral", "sad")


def _same(one, other) -> bool:
    arrays = ("support", "query", "support_targets", "query_targets")
    facts = (one.task, one.index, one.classes) == (other.task, other.index, other.classes)
    return facts and all((getattr(one, name) == getattr(other, name)).all() for name in arrays)


def _groups(task, rows, column) -> set:
    return set(task.table[column].to_numpy()[rows])


def _check_episode(task, episode, shots, queries) -> None:
    """The naive reading of the contract."""
    present = {name for name in episode.classes if name in set(task.table["emotion"])}
    for rows, targets, count in (
        (episode.support, episode.support_targets, shots),
        (episode.query, episode.query_targets, queries),
    ):
        emotions = task.table["emotion"].to_numpy()[rows].tolist()
        assert emotions == [episode.classes[target] for target in targets]
        assert {name: emotions.count(name) for name in present} == dict.fromkeys(present, count)
        assert len(set(rows)) == len(rows) == count * len(present)
    assert not _groups(task, episode.support, "clique") & _groups(task, episode.query, "clique")


@pytest.fixture
def task(make_task):
    return make_task(speakers=7, clips=5)


@pytest.mark.parametrize("speakers", ["disjoint", "same", "any"])
@pytest.mark.parametrize("permute", [False, True])
def test_an_episode_has_exactly_its_shots_and_queries_of_every_class(task, speakers, permute):
    sampler = TaskSampler(task, CLASSES, 2, 3, speakers=speakers, permute=permute)
    for index in range(30):
        episode = sampler.episode(index)
        _check_episode(task, episode, 2, 3)
        sides = [_groups(task, rows, "unit") for rows in (episode.support, episode.query)]
        if speakers == "disjoint":
            assert not sides[0] & sides[1]
        if speakers == "same":
            assert sides[0] == sides[1] and len(sides[0]) == 1


def test_unequal_classes_have_at_most_their_shots_and_at_least_one_clip(make_task):
    task = make_task(speakers=6, clips=6)
    sampler = TaskSampler(task, CLASSES, 6, 5, unequal=1.0)
    counts = {"support": [], "query": []}
    for index in range(200):
        episode = sampler.episode(index)
        assert not _groups(task, episode.support, "unit") & _groups(task, episode.query, "unit")
        counts["support"].append(np.bincount(episode.support_targets, minlength=4))
        counts["query"].append(np.bincount(episode.query_targets, minlength=4))
    for side, most in (("support", 6), ("query", 5)):
        drawn = np.array(counts[side])
        assert (drawn.max(axis=1) == most).all() and drawn.min() == 1
        assert np.bincount(drawn.argmax(axis=1), minlength=4).min() > 30  # each is commonest
    # Shares of a Dirichlet distribution with concentration 1 are normalised exponential numbers.
    shares = np.random.default_rng(0).exponential(size=(100_000, 4))
    expected = np.maximum(np.rint(6 * shares / shares.max(axis=1, keepdims=True)), 1).mean()
    assert np.mean(counts["support"]) == pytest.approx(expected, rel=0.05)
    nearly = TaskSampler(task, CLASSES, 6, 5, unequal=1e6).episode(0)
    _check_episode(task, nearly, 6, 5)
    with pytest.raises(ValueError, match="unequal must be above 0, not -1"):
        TaskSampler(task, CLASSES, 6, 5, unequal=-1)


def test_an_episode_is_the_same_whoever_asks_and_whatever_was_drawn_before(task):
    def sampler():
        return TaskSampler(task, CLASSES, 2, 3, seed=4)

    forwards = [sampler().episode(index) for index in range(40)]
    other = sampler()
    backwards = [other.episode(index) for index in reversed(range(40))][::-1]
    np.random.seed(1)  # whatever the global state is
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(other.episode, range(40)))
    for one, two, three in zip(forwards, backwards, threads):
        assert _same(one, two) and _same(one, three)
    assert len({episode.support.tobytes() for episode in forwards}) > 35


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"shots": 1}, {"queries": 2}, {"speakers": "any"}, {"classes": CLASSES[1:]}],
)
def test_another_protocol_or_seed_draws_other_episodes(task, change):
    arguments = {"classes": CLASSES, "shots": 2, "queries": 3, "seed": 4}
    one, other = (TaskSampler(task, **found) for found in (arguments, arguments | change))
    sides = [[set(s.episode(i).support) for i in range(10)] for s in (one, other)]
    assert not any(a <= b or b <= a for a, b in zip(*sides))


def test_the_version_and_the_name_of_the_task_count(task):
    tasks = (task, replace(task, version=2), replace(task, name="it_other"))
    first = {TaskSampler(t, CLASSES, 2, 3).episode(0).support.tobytes() for t in tasks}
    assert len(first) == 3


def test_drawing_leaves_global_random_state_alone(task):
    state = np.random.get_state()[1].copy()
    TaskSampler(task, CLASSES, 2, 3).episode(3)
    SplitSampler(task, CLASSES, 0.3, 0.5).episode(0)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_every_speaker_lands_on_each_side_and_every_clip_is_drawn(task):
    sampler = TaskSampler(task, CLASSES, 2, 3)
    episodes = [sampler.episode(index) for index in range(300)]
    for side in ("support", "query"):
        rows = np.concatenate([getattr(episode, side) for episode in episodes])
        assert _groups(task, rows, "unit") == set(range(7))
        assert set(rows) == set(range(len(task.table)))
        counts = np.bincount(task.table["unit"].to_numpy()[rows], minlength=7)
        assert counts.min() > 0.6 * counts.mean()  # no speaker is favoured by where he stands


def test_support_sets_have_few_and_many_speakers(task):
    sampler = TaskSampler(task, CLASSES, 2, 3)
    found = {len(_groups(task, sampler.episode(i).support, "unit")) for i in range(200)}
    assert {1, 2, 5, 6} <= found


def test_class_indices_are_fixed_across_tasks_with_missing_classes(make_task):
    lacking = make_task("ur_made", classes=("sad", "angry", "bored"))
    sampler = TaskSampler(lacking, CLASSES, 2, 2)
    for index in range(10):
        episode = sampler.episode(index)
        _check_episode(lacking, episode, 2, 2)
        assert episode.classes == CLASSES
        assert set(episode.support_targets) == set(episode.query_targets) == {0, 3}


def test_permuted_indices_reach_every_order(task):
    sampler = TaskSampler(task, CLASSES[:3], 1, 1, permute=True)
    orders = {sampler.episode(index).classes for index in range(80)}
    assert len(orders) == 6


def test_only_the_chosen_units_are_drawn_from(task):
    sampler = TaskSampler(task, CLASSES, 2, 3, units=(1, 4, 5))
    for index in range(20):
        episode = sampler.episode(index)
        assert _groups(task, np.r_[episode.support, episode.query], "unit") <= {1, 4, 5}


@pytest.mark.parametrize("speakers", ["disjoint", "same", "any"])
def test_declared_duplicates_never_stand_on_both_sides(make_task, speakers):
    task = make_task(speakers=4, clips=6)
    clique = np.arange(len(task.table)) // 2 * 2  # every clip has a twin, of the same class
    task = replace(task, table=task.table.assign(clique=clique))
    sampler = TaskSampler(task, CLASSES, 1, 2, speakers=speakers)
    for index in range(60):
        _check_episode(task, sampler.episode(index), 1, 2)


@pytest.mark.parametrize("speakers", ["disjoint", "same", "any"])
def test_the_same_audio_never_stands_on_both_sides(make_task, speakers):
    task = make_task(speakers=6, clips=4)
    rng = np.random.default_rng(0)
    content = rng.permutation(len(task.table))
    content[rng.choice(len(content), 12)] = content[0]  # one recording under many names
    content[task.table.index[task.table["unit"] == 5][:3]] = 1000
    joined = join_same_audio(task, np.array([f"{value:04x}" for value in content]))
    sampler = TaskSampler(joined, CLASSES, 1, 2, speakers=speakers)
    for index in range(60):
        episode = sampler.episode(index)
        _check_episode(joined, episode, 1, 2)
        assert not set(content[episode.support]) & set(content[episode.query])


def test_joining_the_same_audio_gives_the_connected_components(make_task):
    task = make_task(speakers=5, clips=2, classes=("angry", "sad"))
    content = np.arange(20)
    content[[4, 9]] = 100  # speakers 1 and 2
    content[[11, 12]] = 101  # speakers 2 and 3
    joined = join_same_audio(task, content.astype(str)).table
    speakers = [set(group) for _, group in joined.groupby("unit")["speaker"]]
    assert sorted(map(sorted, speakers)) == [["s0"], ["s1", "s2", "s3"], ["s4"]]
    cliques = [sorted(group.index) for _, group in joined.groupby("clique")]
    assert [rows for rows in cliques if len(rows) > 1] == [[4, 9], [11, 12]]
    assert task.table["unit"].tolist() == np.repeat(range(5), 4).tolist()  # left as it was


def test_distinct_audio_joins_nothing(task):
    assert join_same_audio(task, np.arange(len(task.table)).astype(str)) is task


def _refused(task, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        TaskSampler(task, *arguments, **options)
    return str(caught.value)


def test_too_many_shots_and_queries_are_refused_with_class_count_and_remedy(make_task):
    task = make_task(speakers=3, clips=2)
    few = replace(task, table=task.table.drop(task.table.index[task.table["emotion"] == "sad"][1:]))
    message = _refused(replace(few, table=few.table.reset_index(drop=True)), CLASSES, 2, 3)
    for part in (
        "'sad'",
        "it_made",
        "holds 1 clips",
        "2 shots",
        "3 queries",
        "must have 5 clips",
        "use fewer",
    ):
        assert part in message


def test_one_speaker_is_refused_in_a_strict_protocol_only(make_task):
    task = make_task(speakers=1, clips=9)
    message = _refused(task, CLASSES, 1, 1)
    assert "it_made has one speaker" in message and "speakers = 'any'" in message
    _check_episode(task, TaskSampler(task, CLASSES, 1, 1, speakers="any").episode(0), 1, 1)


def test_speakers_that_cannot_be_parted_are_refused(make_task):
    task = make_task(speakers=5, clips=2)
    rows = (task.table["emotion"] == "sad") & (task.table["unit"] != 3)
    task = replace(task, table=task.table[~rows].reset_index(drop=True))
    message = _refused(task, CLASSES, 1, 1)
    for part in (
        "5 speakers",
        "'sad' is the hardest",
        "1 of the speakers",
        "use fewer",
        "speakers = 'any'",
    ):
        assert part in message
    assert "have 3 clips of each class" in _refused(task, CLASSES[:3], 1, 2, speakers="same")


def test_fewer_than_two_classes_no_shots_and_strange_words_are_refused(task):
    assert "at least two" in _refused(task, ("angry", "bored"), 1, 1)
    assert "holds 0 of" in _refused(task, ("calm", "bored"), 1, 1)
    assert "not 0 and 3" in _refused(task, CLASSES, 0, 3)
    assert "not 'disjunct'" in _refused(task, CLASSES, 1, 3, speakers="disjunct")


def test_splits_that_are_feasible_only_rarely_are_found(make_task):
    """Every speaker speaks one emotion; of each ten, one supports and nine query (0.3 %)."""
    speakers = [(10 * kind + one, name) for kind, name in enumerate(CLASSES) for one in range(10)]
    table = pd.DataFrame(speakers, columns=["unit", "emotion"])
    table["clique"] = np.arange(len(table))
    table["speaker"] = table["unit"].map("s{}".format)
    table["file"] = table["clique"].map("{}.wav".format)
    task = replace(make_task(), table=table)
    sampler = TaskSampler(task, CLASSES, 1, 9)
    for index in range(60):
        _check_episode(task, sampler.episode(index), 1, 9)


def test_any_speaker_finds_unequal_sides(make_task):
    task = make_task(speakers=2, clips=15)
    sampler = TaskSampler(task, CLASSES, 20, 5, speakers="any")
    for index in range(20):
        _check_episode(task, sampler.episode(index), 20, 5)


@pytest.fixture
def uneven(make_task):
    """A task with 40, 21, 10 and 3 clips of the classes."""
    table = make_task(speakers=10, clips=4).table
    counts = dict(zip(CLASSES, (40, 21, 10, 3)))
    parts = [table[table["emotion"] == name].iloc[:count] for name, count in counts.items()]
    return replace(make_task(), table=pd.concat(parts).reset_index(drop=True))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_a_split_keeps_the_class_proportions_within_rounding(uneven, fraction):
    episode = SplitSampler(uneven, CLASSES, 0.3, fraction).episode(0)
    for index, count in enumerate((40, 21, 10, 3)):
        tested = (episode.query_targets == index).sum()
        assert abs(tested - 0.3 * count) <= 0.5
        learnt = (episode.support_targets == index).sum()
        assert abs(learnt - fraction * (count - tested)) <= 0.5 or learnt == 1
    emotions = uneven.table["emotion"].to_numpy()
    for rows, targets in (
        (episode.support, episode.support_targets),
        (episode.query, episode.query_targets),
    ):
        assert (emotions[rows] == np.array(CLASSES)[targets]).all()
    if fraction == 1:
        assert sorted([*episode.support, *episode.query]) == list(range(74))


def test_smaller_fractions_are_parts_of_larger_ones_and_the_test_stays(uneven):
    draws = [SplitSampler(uneven, CLASSES, 0.3, part).episode(0) for part in (0.1, 0.3, 0.7, 1.0)]
    for small, large in zip(draws, draws[1:]):
        assert set(small.support) < set(large.support)
        assert set(small.query) == set(large.query)


def test_other_seeds_and_indices_split_otherwise_and_reach_every_clip(uneven):
    def split(seed, index=0):
        return SplitSampler(uneven, CLASSES, 0.3, 1.0, seed).episode(index)

    assert _same(split(3), split(3))
    assert set(split(3).query) != set(split(4).query) != set(split(4, 1).query)
    queries = [set(split(seed).query) for seed in range(40)]
    assert set().union(*queries) == set(range(74))
    assert not set.intersection(*queries)


def test_shared_audio_never_straddles_a_split(uneven):
    rng = np.random.default_rng(2)
    clique = rng.integers(0, 25, len(uneven.table))  # across classes, too
    clique[-3:] = [30, 31, 32]
    task = replace(uneven, table=uneven.table.assign(clique=clique))
    for seed in range(30):
        episode = SplitSampler(task, CLASSES[:3], 0.3, 1.0, seed).episode(0)
        assert not set(clique[episode.support]) & set(clique[episode.query])
        assert len(episode.support) + len(episode.query) == 71


def test_a_class_too_small_to_split_is_refused(uneven):
    task = replace(uneven, table=uneven.table.iloc[:72])  # one sad clip
    with pytest.raises(ValueError, match="'sad' of it_made holds 1 clips.*leave the class out"):
        SplitSampler(task, CLASSES, 0.3, 1.0).episode(0)
    assert len(SplitSampler(task, CLASSES[:3], 0.3, 1.0).episode(0).support)


def test_tensors_gather_features_targets_and_the_classes_there(make_task, plant):
    task = make_task(classes=("angry", "sad"))
    features = plant(task)
    episode = TaskSampler(task, CLASSES, 2, 3).episode(1)
    batch = tensors(episode, features)
    for side, rows, targets in (
        (batch.support, episode.support, episode.support_targets),
        (batch.query, episode.query, episode.query_targets),
    ):
        audio = side.modalities["audio"]
        np.testing.assert_array_equal(audio.values.numpy(), features.values[rows])
        assert audio.mask.sum(dim=1).tolist() == features.lengths[rows].tolist()
        assert side.targets.tolist() == targets.tolist()
        assert side.classes.tolist() == [True, False, False, True]
    joined = batch.joined()
    assert joined.targets.tolist() == [*episode.support_targets, *episode.query_targets]
    assert len(joined) == len(joined.modalities["audio"]) == 10


def test_a_manifest_brings_the_same_episodes_back(task, tmp_path):
    sampler = TaskSampler(task, CLASSES, 2, 3)
    episodes = [sampler.episode(index) for index in range(4)]
    path = tmp_path / "episodes.json"
    found = write_manifest(path, task, episodes)
    assert found == digest(task, episodes)
    assert all(map(_same, read_manifest(path, task), episodes))
    assert digest(task, episodes[:3]) != found != digest(task, episodes[::-1])


def test_a_changed_or_foreign_manifest_is_refused(task, tmp_path):
    path = tmp_path / "episodes.json"
    sampler = TaskSampler(task, CLASSES, 2, 3)
    write_manifest(path, task, [sampler.episode(0)])
    with pytest.raises(ValueError):
        read_manifest(path, replace(task, version=2))
    with pytest.raises(ValueError):
        read_manifest(path, replace(task, name="it_other"))
    with pytest.raises(ValueError):
        read_manifest(path, replace(task, table=task.table.iloc[:3]))
    text = path.read_text()
    names = re.findall(r"s?\d+_\w+\.wav", text)
    path.write_text(
        text.replace(names[0], "@").replace(names[-1], names[0]).replace("@", names[-1])
    )
    with pytest.raises(ValueError):
        read_manifest(path, task)


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["it_emovo", "ur_urdu"])
def test_real_corpora_give_twenty_shot_episodes(corpora, name):
    task = read_task(name, corpora)
    if task.table is None:
        pytest.skip(f"needs {name} below {corpora}")
    sampler = TaskSampler(task, CLASSES, 20, 10)
    for index in range(50):
        episode = sampler.episode(index)
        _check_episode(task, episode, 20, 10)
        assert not _groups(task, episode.support, "speaker") & _groups(
            task, episode.query, "speaker"
        )
