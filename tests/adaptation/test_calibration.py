"""Temperature and calibration error against planted values and a written-out formula."""

import numpy as np
import pytest
from scipy.special import softmax

from metaser.adaptation.calibration import ece, fit_temperature, probabilities


def _planted(temperature: float, clips: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose probabilities are true at a temperature."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((clips, 4)) * 3
    chances = softmax(scores / temperature, axis=1).cumsum(axis=1)
    return scores, (rng.random((clips, 1)) > chances).sum(axis=1).clip(max=3)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_planted_temperature_is_found(temperature):
    assert fit_temperature(*_planted(temperature)) == pytest.approx(temperature, rel=0.05)


def test_weights_choose_whose_temperature_is_found():
    (hot, first), (cold, second) = _planted(3.0), _planted(0.4)
    scores, targets = np.concatenate([hot, cold]), np.concatenate([first, second])
    weights = np.repeat([1.0, 0.0], len(first))
    assert fit_temperature(scores, targets, weights) == pytest.approx(3.0, rel=0.05)


def test_calibration_error_falls_by_the_right_temperature():
    scores, targets = _planted(3.0)
    before, after = (ece(probabilities(scores, t), targets) for t in (1.0, 3.0))
    assert before > 0.15 and after < 0.02


def test_calibration_error_is_the_written_formula():
    rng = np.random.default_rng(1)
    chances, targets = softmax(rng.standard_normal((300, 3)), axis=1), rng.integers(3, size=300)
    expected, confidence = 0.0, chances.max(axis=1)
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            right = np.mean(chances[inside].argmax(axis=1) == targets[inside])
            expected += inside.mean() * abs(right - confidence[inside].mean())
    assert ece(chances, targets) == pytest.approx(expected)


def test_an_absent_class_has_no_probability_at_any_temperature():
    chances = probabilities(np.array([[1.0, -np.inf, 2.0]]), 5.0)
    assert chances[0, 1] == 0 and chances.sum() == pytest.approx(1)
    assert np.isnan(ece(np.empty((0, 3)), np.empty(0, int)))
