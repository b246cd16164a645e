import pytest
import torch
from builders import draw_clips

from metaser.batch import Padded
from metaser.training.augmentation import MASKS, spec_augment


def _clips(lengths=(40, 7, 1), channels=12) -> Padded:
    return draw_clips(lengths, channels, kind=torch.float32)


def _masked(clips: Padded, frames: int, channels: int, seed: int) -> Padded:
    return spec_augment(clips, frames, channels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_whole_stretches_and_bands_become_the_mean_and_the_rest_stays(seed):
    clips = _clips()
    masked = _masked(clips, 6, 3, seed)
    assert torch.equal(masked.mask, clips.mask)
    for before, after, real in zip(clips.values, masked.values, clips.mask):
        assert not after[~real].any()
        before, after = before[real], after[real]
        mean, changed = clips.values[clips.mask].mean(dim=0), before != after
        assert torch.allclose(after[changed], mean.expand_as(after)[changed], atol=1e-6)
        rows, columns = changed.all(dim=1), changed.all(dim=0)
        assert torch.equal(changed, rows[:, None] | columns)
        for places, widest in ((rows, min(6, len(before) // 2)), (columns, 3)):
            edges = (places.int().diff(prepend=torch.zeros(1)) == 1).sum()
            assert edges <= MASKS and places.sum() <= MASKS * widest


def test_every_width_is_equally_likely():
    clips = _clips(lengths=(1000,) * 3000, channels=1)
    hidden = (_masked(clips, 4, 0, 0).values != clips.values).squeeze(-1).sum(dim=1).float()
    # Two masks of 0 to 4 frames each have 4 together, but for the few that overlap.
    assert hidden.mean() == pytest.approx(4, abs=0.1)
    assert hidden.max() == 8 and hidden.min() == 0


def test_the_seed_decides():
    one, same, other = (_masked(_clips(), 6, 3, seed).values for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
