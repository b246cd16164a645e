"""The stated interval against planted relations between cross-validation and truth."""

import numpy as np
import pytest

from metaser.adaptation.expect import Draw, expect, fit_bands, skill, uar_of


def _draws(tasks: int, seed: int, shots=5, offset=-0.1, between=0.1, within=0.05, each=60):
    """Draws of tasks that lie a little off a common offset each."""
    rng = np.random.default_rng(seed)
    found = []
    for task in range(tasks):
        own = rng.normal(offset, between)
        for _ in range(each):
            seen = rng.uniform(0.1, 0.8)
            truth = seen + own + rng.normal(0, within)
            found.append(Draw(f"t{task}", shots, "speakers", seen, truth))
    return found


def test_skill_and_uar_are_inverse():
    assert skill(0.25, 4) == 0 and skill(1.0, 3) == 1
    assert uar_of(skill(0.61, 3), 3) == pytest.approx(0.61)
    assert uar_of(1.4, 4) == 1 and uar_of(-2.0, 4) == 0


def test_the_planted_offset_is_found():
    bands = {band.folds: band for band in fit_bands(_draws(40, 0))}
    assert set(bands) == {"none", "speakers"}
    assert bands["speakers"].offset == pytest.approx(-0.1, abs=0.05)
    assert bands["none"].half > bands["speakers"].half  # what is seen tells something


def test_the_interval_holds_the_truth_of_new_tasks():
    held = []
    for seed in range(40):
        bands = fit_bands(_draws(6, seed))
        new = _draws(1, 1000 + seed)
        found = [expect(bands, 5, 4, "speakers", uar_of(one.seen, 4)) for one in new]
        held += [f.low <= uar_of(one.truth, 4) <= f.high for f, one in zip(found, new)]
    assert np.mean(held) > 0.9


def test_a_wide_spread_between_tasks_makes_a_wide_interval():
    narrow, wide = (fit_bands(_draws(8, 3, between=b))[1].half for b in (0.02, 0.2))
    assert wide > 3 * narrow


def test_every_task_counts_the_same():
    many = _draws(1, 0, each=600)
    few = [Draw("other", 5, "speakers", d.seen, d.truth + 0.3) for d in _draws(1, 0, each=60)]
    assert fit_bands(many + few)[0].offset == pytest.approx(
        np.mean([np.mean([d.truth for d in side]) for side in (many, few)])
    )


def test_the_nearest_smaller_number_of_shots_is_taken():
    bands = fit_bands(_draws(4, 0, shots=2, offset=-0.2) + _draws(4, 1, shots=10, offset=0.1))
    low, high = (expect(bands, k, 4, "speakers", 0.7).uar for k in (9, 10))
    assert low == expect(bands, 2, 4, "speakers", 0.7).uar != high
    assert expect(bands, 1, 4, "none", float("nan")).folds == "none"


def test_without_draws_of_a_kind_the_clips_are_not_looked_at():
    bands = fit_bands(_draws(4, 0))
    good, bad = (expect(bands, 5, 4, "clips", seen) for seen in (0.9, 0.3))
    assert good.folds == "none" and good.uar == bad.uar and good.seen == 0.9
    with pytest.raises(ValueError, match="metaser train"):
        expect([], 5, 4, "clips", 0.5)


def test_a_kind_of_cross_validation_needs_several_tasks():
    lonely = [Draw("t0", 5, "clips", d.seen, d.truth) for d in _draws(1, 5)]
    kinds = {band.folds for band in fit_bands(_draws(4, 0) + lonely)}
    assert kinds == {"none", "speakers"}
    assert {band.folds for band in fit_bands(lonely)} == {"none", "clips"}
