import numpy as np
import pytest

from metaser.tasks import labels

URDU = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}


def test_protocol_classes_come_first_in_index_order():
    assert labels.CLASSES[:4] == ("angry", "happy", "neutral", "sad")
    assert len(set(labels.CLASSES)) == len(labels.CLASSES)


def test_codes_become_classes_and_dropped_codes_none():
    assert labels.map_codes(["S", "xxx", "A"], URDU, drop=["xxx"]) == ["sad", None, "angry"]


def test_unmapped_code_names_code_count_and_example():
    with pytest.raises(labels.LabelError) as caught:
        labels.map_codes(["A", "X", "X"], URDU, files=["a.wav", "b.wav", "c.wav"])
    message = str(caught.value)
    assert "'X' of 2 clips" in message
    assert "b.wav" in message
    assert "drop" in message
    assert "A, H, N, S" in message


def test_every_unmapped_code_is_named_and_a_slip_guessed():
    with pytest.raises(labels.LabelError, match=r"'ange'.*mean 'anger'.*'joy'"):
        labels.map_codes(["ange", "joy"], {"anger": "angry"})


def test_codes_are_case_sensitive():
    assert labels.unmapped(["a", "A"], URDU) == {"a": [0]}


@pytest.mark.parametrize(
    ("mapping", "drop", "new", "words"),
    [
        ({}, [], [], "no emotion code"),
        ({"A": "angy"}, [], [], "did you mean 'angry'"),
        ({"A": "angry"}, ["A"], [], "both mapped and dropped"),
        ({"A": "angry"}, [], ["angry"], "canonical already"),
        ({"A": "angry"}, [], ["level_low"], "no code is mapped"),
        ({"A": "Angry"}, [], [], "not a class of MetaSER"),
    ],
)
def test_mappings_that_cannot_be_meant(mapping, drop, new, words):
    with pytest.raises(labels.LabelError) as caught:
        labels.check_mapping(mapping, drop, new)
    assert words.lower() in str(caught.value).lower()


def test_own_classes_are_allowed_when_declared():
    labels.check_mapping({"0": "level_low"}, new=["level_low"])


def test_ratings_are_scaled_to_the_unit_interval():
    scaled = labels.scale_ratings([1, 2, 3, 5, np.nan], 1, 5)
    np.testing.assert_allclose(scaled, [-1, -0.5, 0, 1, np.nan])


@pytest.mark.parametrize(
    ("values", "low", "high", "words"), [([6], 1, 5, "6.0"), ([1], 5, 1, r"\[5, 1\]")]
)
def test_ratings_outside_of_their_scale_are_refused(values, low, high, words):
    with pytest.raises(labels.LabelError, match=words):
        labels.scale_ratings(values, low, high)
