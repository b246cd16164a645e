"""The game of Goodfellow et al. on a line, coverage and density, and enlarged support sets."""

import logging
import math

import numpy as np
import pytest
import torch

from metaser.backbones import MLP
from metaser.batch import Batch, Padded
from metaser.methods import METHODS
from metaser.methods.feature_gan import FeatureGAN, play, quality
from metaser.methods.gan_augmentation import GANAugmentation
from metaser.methods.support_gan import SupportGAN
from metaser.model import Model


def _gan(channels=1, classes=1, **sizes) -> FeatureGAN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureGAN(channels, classes, **sizes)


def _draw(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixture():
    """A third of the vectors near -1, the others near 1; and a GAN that has learnt them."""
    draw = np.random.default_rng(0)
    side = draw.choice([-1.0, 1.0], 3000, p=[1 / 3, 2 / 3])
    real = torch.tensor(side + 0.3 * draw.standard_normal(3000), dtype=torch.float32)[:, None]
    gan, none = _gan(noise=4, hidden=32), torch.zeros(3000, dtype=torch.long)
    value = play(gan, real, none, weights=torch.ones(3000), steps=1000, draw=_draw(), rate=2e-3)
    return real, gan, value


def test_the_game_ends_where_theory_says(mixture):
    """Value -log 4, discriminator 1/2 where there are vectors, and the mixture's own shape."""
    real, gan, value = mixture
    assert value == pytest.approx(-math.log(4), abs=0.08)
    none = torch.zeros(len(real), dtype=torch.long)
    with torch.no_grad():
        made = gan.generate(none, _draw(5))
        judged = gan.judge(real, none).sigmoid()
    assert float(judged.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((made < 0).float().mean()) == pytest.approx(1 / 3, abs=0.12)
    found = quality(real[:600].numpy(), made[:600].numpy())
    assert found.coverage > 0.5 and found.density > 0.7


def test_a_frozen_generator_learns_nothing(mixture):
    """The measures tell: what passes above fails where the generator stays as it was."""
    real, _, _ = mixture
    gan, none = _gan(noise=4, hidden=32), torch.zeros(len(real), dtype=torch.long)
    before = [value.clone() for value in gan.generator.parameters()]
    play(gan, real, none, weights=torch.ones(len(real)), steps=1, draw=_draw())
    assert not all(torch.equal(a, b) for a, b in zip(before, gan.generator.parameters()))
    frozen = _gan(noise=4, hidden=32)
    with torch.no_grad():
        made = frozen.generate(none, _draw(5))
    assert quality(real[:600].numpy(), made[:600].numpy()).coverage < 0.3


def test_coverage_and_density_are_their_written_formulas():
    draw = np.random.default_rng(0)
    real, made = draw.standard_normal((20, 2)), 0.5 * draw.standard_normal((12, 2))
    radius = [sorted(math.dist(a, b) for b in real)[3] for a in real]
    covered = [any(math.dist(a, g) < r for g in made) for a, r in zip(real, radius)]
    inside = sum(math.dist(a, g) < r for a, r in zip(real, radius) for g in made)
    found = quality(real, made, neighbours=3)
    assert found.coverage == np.mean(covered)
    assert found.density == pytest.approx(inside / (3 * 12))


def test_a_collapsed_generator_covers_little_and_may_be_dense():
    real = np.random.default_rng(0).standard_normal((200, 4))
    found = quality(real, np.zeros((200, 4)))
    assert found.coverage < 0.1 and found.density > 0
    with pytest.raises(ValueError, match="below the 4 real vectors, not 5"):
        quality(real[:4], real[:4])


def _clips(shift, shots=5, seed=0, classes=3, channels=4) -> Batch:
    draw = np.random.default_rng(seed)
    means = 2 * np.random.default_rng(9).standard_normal((classes, channels))
    targets = np.repeat(np.arange(classes), shots)
    values = means[targets] + shift + draw.standard_normal((len(targets), channels))
    padded = Padded(
        torch.tensor(values[:, None], dtype=torch.float32),
        torch.ones(len(targets), 1, dtype=torch.bool),
    )
    return Batch({"audio": padded}, torch.from_numpy(targets), torch.ones(classes, dtype=bool))


def test_generated_vectors_are_of_their_class_and_move_with_the_support_set():
    method = SupportGAN(steps=600, adapt_steps=300)
    method.fit([_clips(0.0, 100), _clips(0.0, 100, seed=1)])
    assert method.quality.coverage > 0.3
    support = _clips(1.5, 10, seed=2)
    vectors, targets = support.modalities["audio"].mean(), torch.arange(3).repeat_interleave(50)
    made = method._made(vectors, support, targets)
    unmoved = SupportGAN.__new__(SupportGAN)
    unmoved.__dict__ = {**vars(method), "adapt_steps": 0}
    before = unmoved._made(vectors, support, targets)
    for k in range(3):
        gaps = [
            (made[targets == k].mean(dim=0) - vectors[support.targets == j].mean(dim=0)).norm()
            for j in range(3)
        ]
        assert int(torch.stack(gaps).argmin()) == k
        old = (before[targets == k].mean(dim=0) - vectors[support.targets == k].mean(dim=0)).norm()
        assert gaps[k] < old


def test_without_generated_vectors_it_is_logistic_regression():
    from metaser.methods.baselines import LogisticRegression

    support, query = _clips(0.0), _clips(0.0, seed=3).modalities
    found = GANAugmentation(generated=0, strength=0.3).adapt(support)(query)
    torch.testing.assert_close(found, LogisticRegression(0.3).adapt(support)(query))


def test_one_clip_a_class_needs_sources():
    one = _clips(0.0, shots=1)
    with pytest.raises(ValueError, match=r"not one clip.*call fit\(sources\)"):
        GANAugmentation(steps=10).adapt(one)
    method = GANAugmentation(steps=10, adapt_steps=5)
    method.fit([_clips(0.0, 20)])
    assert method.adapt(one)(one.modalities).isfinite().all()


def test_a_collapse_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "metaser"):
        GANAugmentation(steps=0).fit([_clips(0.0, 50)])
    assert "coverage 0.0" in caplog.text


def _tuned(generated: int, enlarge=None):
    """Head tuning of an untrained network on two clips a class, and its scores of others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = METHODS["head_tuning"](
            Model(MLP(4, (8,)), 3), steps=100, rate=1e-2, generated=generated, gan_steps=300
        )
    method.fit([_clips(0.0, 50), _clips(0.0, 50, seed=1)])
    if enlarge is not None:
        method.gan.enlarged = enlarge
    return method, method.adapt(_clips(0.0, 2, seed=2))(_clips(0.0, 30, seed=3).modalities)


def test_the_head_is_tuned_on_given_and_generated_embeddings():
    """With the generator switched off it is head tuning; with it the support set is larger."""
    _, plain = _tuned(0)
    seen = []
    method, off = _tuned(5, enlarge=lambda support: seen.append(support) or support)
    assert torch.equal(plain, off)
    (support,) = seen
    assert support.modalities["audio"].values.shape == (6, 1, 8)
    larger = SupportGAN.enlarged(method.gan, support)
    assert len(larger) == 6 + 3 * 5 and torch.equal(larger.targets.bincount(), torch.full((3,), 7))
    found, scores = _tuned(5)
    assert found.use_sources and found.quality is not None and not torch.equal(scores, plain)


def test_generated_embeddings_are_for_the_head_alone():
    with pytest.raises(ValueError, match="'head' for cycle, fresh_head and generated"):
        METHODS["fine_tuning"](Model(MLP(4, (8,)), 3), generated=5)
