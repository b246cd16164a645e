"""The stated interval against planted relations between what clips say and the truth."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from metaser.adaptation.expect import (
    Clues,
    Draw,
    OffsetBand,
    Told,
    expect,
    fit_bands,
    skill,
    uar_of,
)

CLASSES = 4
LEVEL, SPREAD, OWN, BIAS, BIASES, NOISE = 0.5, 0.2, 0.02, -0.05, 0.1, 0.1
"""Skill of tasks: mean, spread over tasks, over draws. Clues: bias, its spread, noise."""


def _draws(
    tasks: int, seed: int, shots=5, folds="speakers", noise=NOISE, each=60, first=0, classes=CLASSES
):
    """Draws whose clues are the truth plus a task's bias plus noise."""
    rng = np.random.default_rng(seed)
    found = []
    for task in range(first, first + tasks):
        level, bias = rng.normal(LEVEL, SPREAD), rng.normal(BIAS, BIASES)
        for _ in range(each):
            truth = rng.normal(level, OWN)
            clues = truth + bias + rng.normal(0, noise) + rng.normal(0, 0.01, 2)
            said = _said(*uars(clues, classes), folds=folds, classes=classes)
            found.append(Draw(f"t{task}", shots, said, uars(truth, classes)))
    return found


def uars(skills, classes=CLASSES):
    return 1 / classes + (1 - 1 / classes) * skills


def _said(unadapted: float, seen=None, folds="none", voices=False, classes=CLASSES) -> Clues:
    """Clues whose soft values are given; the forecast must not look at the UAR."""
    told = None if folds == "none" else Told(0.5, seen)
    return Clues(classes, voices, Told(0.5, unadapted), folds, told)


def test_skill_and_uar_are_inverse_and_no_uar_is_below_chance():
    assert skill(0.25, 4) == 0 and skill(1.0, 3) == 1
    assert uar_of(skill(0.61, 3), 3) == pytest.approx(0.61)
    assert uar_of(1.4, 4) == 1 and uar_of(-2.0, 4) == 0.25


def test_the_slope_is_that_of_the_planted_normal_distributions():
    """With many tasks it is cov(truth, clue) / var(clue), and so is that of a plain regression."""
    draws = _draws(400, 0)
    band = {band.folds: band for band in fit_bands(draws)}["speakers"]
    common = SPREAD**2 + OWN**2
    spread = common + BIASES**2 + NOISE**2 + 0.01**2 / 2
    low, high = (band.foresee(_said(uar, uar, "speakers")) for uar in (0.4, 0.8))
    slope = (high.low - low.low) / (skill(0.8, 4) - skill(0.4, 4))
    assert slope == pytest.approx(high.weight) == pytest.approx(common / spread, abs=0.03)
    half = (high.high - high.low) / 2
    assert half == pytest.approx(1.96 * np.sqrt(common - common**2 / spread), rel=0.05)
    skills = [np.mean(draw.clues.skills("speakers")) for draw in draws]
    plain, offset = np.polyfit(skills, [skill(draw.truth, 4) for draw in draws], 1)
    assert slope == pytest.approx(plain, abs=0.02)
    middle = offset + plain * skill(0.8, 4)
    assert (high.low + high.high) / 2 == pytest.approx(middle, abs=0.02)


def test_clips_of_fewer_classes_count_less():
    """The noise of a skill grows by C / (C - 1)^2, as does that of the mean of C recalls."""
    rng = np.random.default_rng(0)
    clips, hits = 5, {}
    for classes in (2, 4):
        recalls = rng.binomial(clips, 0.7, (100_000, classes)).mean(axis=1) / clips
        hits[classes] = np.var([skill(uar, classes) for uar in recalls])
    assert hits[2] / hits[4] == pytest.approx((2 / 1) / (4 / 9), rel=0.03)
    (band,) = [band for band in fit_bands(_draws(5, 0)) if band.folds == "speakers"]
    few, many = (band.foresee(_said(0.8, 0.8, "speakers", classes=c)) for c in (2, 4))
    assert few.weight < many.weight
    assert few.high - few.low > many.high - many.low


def test_the_interval_holds_the_truth_of_new_tasks():
    held, widths = [], []
    for seed in range(60):
        bands = fit_bands(_draws(5, seed))
        for draw in _draws(1, 1000 + seed):
            found = expect(bands, 5, draw.clues)
            held.append(found.low <= draw.truth <= found.high)
            widths.append(found.high - found.low)
    assert 0.93 < np.mean(held) < 0.995
    assert np.mean(widths) < 0.6


def test_the_noisier_the_clips_the_less_they_count():
    weights = []
    for noise in (0.02, 0.1, 0.4):
        bands = fit_bands(_draws(6, 1, noise=noise))
        low, high = (expect(bands, 5, _said(uar, uar, "speakers")) for uar in (0.4, 0.9))
        weights.append((high.uar - low.uar) / 0.5)
        assert weights[-1] == pytest.approx(low.weight, abs=1e-9) or high.high == 1
    assert weights[0] > weights[1] > 2 * weights[2] > 0


def test_every_task_counts_the_same():
    many, few = _draws(1, 0, each=600), _draws(1, 3, each=60, first=1)
    once, twice = fit_bands(many + few)[0], fit_bands(many + few * 3)[0]
    clues = _said(0.7)
    assert astuple(once.foresee(clues)) == pytest.approx(astuple(twice.foresee(clues)))


def test_few_tasks_make_a_wide_interval():
    found = [fit_bands(_draws(count, 0))[0].foresee(_said(0.6)) for count in (1, 3, 40)]
    widths = [one.high - one.low for one in found]
    assert widths == sorted(widths, reverse=True)


def test_the_nearest_smaller_number_of_shots_is_taken():
    bands = fit_bands(_draws(4, 0, shots=2) + _draws(4, 1, shots=10))
    clues = _said(0.7, 0.7, "speakers")
    assert expect(bands, 9, clues) == expect(bands, 2, clues) != expect(bands, 10, clues)
    assert expect(bands, 1, clues) == expect(bands, 2, clues)


def test_without_draws_of_a_kind_the_unadapted_model_alone_is_looked_at():
    bands = fit_bands(_draws(4, 0))
    good, bad = (expect(bands, 5, _said(0.6, seen, "clips")) for seen in (0.9, 0.3))
    assert good.folds == "clips" and good.uar == bad.uar
    assert expect(bands, 5, _said(0.9)).uar > good.uar
    with pytest.raises(ValueError, match="metaser train"):
        expect([], 5, _said(0.5))


def test_a_kind_of_cross_validation_needs_several_tasks():
    lonely = _draws(1, 5, folds="clips", first=9)
    assert {band.folds for band in fit_bands(_draws(4, 0) + lonely)} == {"none", "speakers"}
    assert {band.folds for band in fit_bands(lonely)} == {"none", "clips"}


def test_models_that_rely_on_voices_have_bands_of_their_own():
    draws = _draws(4, 0)
    better = [
        replace(draw, clues=replace(draw.clues, voices=True), truth=draw.truth + 0.1)
        for draw in draws
    ]
    bands = fit_bands(draws + better)
    clues = _said(0.6, 0.6, "speakers")
    with_voices = expect(bands, 5, replace(clues, voices=True))
    assert with_voices.uar == pytest.approx(expect(bands, 5, clues).uar + 0.1)


def test_where_the_clips_contradict_themselves_the_interval_holds_both():
    bands = fit_bands(_draws(5, 0))
    fine = expect(bands, 5, _said(0.6, 0.62, "speakers"))
    odd = expect(bands, 5, _said(0.25, 0.9, "speakers"))
    assert not fine.contradicted and odd.contradicted
    low, high = (expect(bands, 5, _said(uar, uar, "speakers")) for uar in (0.25, 0.9))
    assert (odd.low, odd.high) == pytest.approx((low.low, high.high))


def test_bands_of_older_files_add_their_offset_to_the_cross_validation():
    known = {"shots": 5, "half": 0.2, "tasks": 3, "draws": 60}
    kinds = {"none": 0.4, "clips": -0.1}
    bands = [OffsetBand(folds=folds, offset=offset, **known) for folds, offset in kinds.items()]
    clues = Clues(4, True, Told(0.3, 0.2), "clips", Told(0.7, 0.5))
    assert expect(bands, 5, clues).uar == pytest.approx(uar_of(skill(0.7, 4) - 0.1, 4))
    assert expect(bands, 5, _said(0.3)).uar == pytest.approx(uar_of(0.4, 4))
