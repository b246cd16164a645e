"""The multi-task Gaussian process against scikit-learn, against refitting, and in both spaces."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

from metaser.batch import Batch, Padded, mean_frames
from metaser.methods import METHODS
from metaser.methods.gaussian_process import GaussianProcess, leave_out

CHANNELS, CLASSES, NOISE, CONSTANT = 7, 3, 0.4, 0.2


def _batch(seed: int, clips: int, present: tuple[int, ...] = (0, 1, 2)) -> Batch:
    """Vectors that tell their class a little, with unequal classes."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([present, rng.choice(present, clips - len(present))])
    values = rng.standard_normal((clips, 1, CHANNELS)) + targets[:, None, None] * 0.7
    audio = Padded(torch.from_numpy(values), torch.ones(clips, 1, dtype=torch.bool))
    classes = torch.from_numpy(np.isin(np.arange(CLASSES), targets))
    speakers = torch.from_numpy(rng.integers(0, 4, clips))
    return Batch({"audio": audio}, torch.from_numpy(targets), classes, {"speaker": speakers})


def _process(*shares: float, **options) -> GaussianProcess:
    return GaussianProcess(
        CHANNELS, CLASSES, shares=shares, noise=NOISE, constant=CONSTANT, sharpness=1.0, **options
    )


def _weights(targets: np.ndarray, total: float) -> np.ndarray:
    counts = np.bincount(targets, minlength=CLASSES)
    return total / (np.count_nonzero(counts) * counts[targets])


def _wanted(targets: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[targets] - 1 / CLASSES


def _exact(share: float, sources: list[Batch], support: Batch, query: np.ndarray) -> np.ndarray:
    """Regress in function space, with the covariance of all clips written out."""
    tasks = [*sources, support]
    frames = [mean_frames(task.modalities).numpy() for task in tasks]
    targets = [task.targets.numpy() for task in tasks]
    average = np.mean([len(own) for own in targets[:-1]]) if sources else 0.0
    noise = [NOISE / _weights(own, average) for own in targets[:-1]]
    noise.append(NOISE / _weights(targets[-1], len(targets[-1])))
    task = np.repeat(np.arange(len(tasks)), list(map(len, targets)))
    inputs = np.concatenate(frames)

    def kernel(left, right, same):
        plain = left @ right.T / CHANNELS + CONSTANT
        return plain * (share + (1 - share) * same)

    gram = kernel(inputs, inputs, task[:, None] == task) + np.diag(np.concatenate(noise))
    beside = kernel(query, inputs, np.array([len(tasks) - 1])[:, None] == task)
    return beside @ np.linalg.solve(gram, _wanted(np.concatenate(targets)))


def _scores(method: GaussianProcess, support: Batch, query: Batch) -> np.ndarray:
    return method.adapt(support)(query.modalities).numpy()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_weight_space_is_function_space(share):
    sources = [_batch(0, 30), _batch(1, 17, (0, 2)), _batch(2, 24)]
    support, query = _batch(3, 12), _batch(4, 9)
    method = _process(share)
    method.fit(sources)
    expected = _exact(share, sources, support, mean_frames(query.modalities).numpy())
    np.testing.assert_allclose(_scores(method, support, query), expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_extremes_are_those_of_scikit_learn(share):
    sources, support, query = [_batch(0, 30), _batch(1, 20)], _batch(3, 12), _batch(4, 9)
    method = _process(share)
    method.fit(sources)
    pooled = [*sources, support] if share else [support]
    noise = [NOISE / _weights(one.targets.numpy(), 25.0) for one in pooled[:-1]]
    noise.append(NOISE / _weights(support.targets.numpy(), len(support)))
    linear = DotProduct(np.sqrt(CONSTANT * CHANNELS), "fixed")
    kernel = ConstantKernel(1 / CHANNELS, "fixed") * linear
    reference = GaussianProcessRegressor(kernel, alpha=np.concatenate(noise), optimizer=None)
    inputs = np.concatenate([mean_frames(one.modalities).numpy() for one in pooled])
    reference.fit(inputs, _wanted(np.concatenate([one.targets.numpy() for one in pooled])))
    expected = reference.predict(mean_frames(query.modalities).numpy())
    np.testing.assert_allclose(_scores(method, support, query), expected, atol=1e-5)


def test_leaving_out_in_closed_form_is_fitting_again():
    rng = np.random.default_rng(0)
    inputs, wanted = rng.standard_normal((14, 4)), rng.standard_normal((14, 3))
    groups = rng.integers(0, 4, 14)
    gram = torch.from_numpy(inputs @ inputs.T + 0.5 * np.eye(14))
    inverse = torch.linalg.inv(gram)
    left = leave_out(inverse, inverse @ torch.from_numpy(wanted), torch.from_numpy(groups))
    for group in np.unique(groups):
        out, kept = groups == group, groups != group
        dual = np.linalg.solve(gram.numpy()[np.ix_(kept, kept)], wanted[kept])
        foretold = gram.numpy()[np.ix_(out, kept)] @ dual
        np.testing.assert_allclose(left.numpy()[out], wanted[out] - foretold, atol=1e-10)


def _planted(seed: int, clips: int, weights: np.ndarray) -> Batch:
    """Clips whose class follows from given weights; three speakers in turn."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((clips, 1, CHANNELS))
    targets = (values[:, 0] @ weights).argmax(axis=1)
    audio = Padded(torch.from_numpy(values), torch.ones(clips, 1, dtype=torch.bool))
    classes = torch.from_numpy(np.isin(np.arange(CLASSES), targets))
    speakers = torch.arange(clips) % 3
    return Batch({"audio": audio}, torch.from_numpy(targets), classes, {"speaker": speakers})


def test_sources_are_trusted_as_far_as_the_clips_say():
    rng = np.random.default_rng(5)
    like, other = rng.standard_normal((2, CHANNELS, CLASSES))
    method = METHODS["gaussian_process"](channels=CHANNELS, classes=CLASSES, noise=0.1)
    method.fit([_planted(seed, 300, like) for seed in range(3)])
    fixed = _process(0.0)
    for weights, own in ((like, False), (other, True)):
        support, query = _planted(20, 45, weights), _planted(21, 300, weights)
        found = (_scores(method, support, query).argmax(axis=1) == query.targets.numpy()).mean()
        alone = (_scores(fixed, support, query).argmax(axis=1) == query.targets.numpy()).mean()
        assert found > alone - 0.05 if own else found > alone + 0.05
        pooled = _process(0.95)
        pooled.fit([_planted(seed, 300, like) for seed in range(3)])
        evidence = [one.adapt(support).evidence for one in (pooled, fixed)]
        assert (evidence[0] < evidence[1]) == own


def test_what_is_kept_is_matrices_and_no_clip():
    sources = [_batch(seed, 40) for seed in range(3)]
    method = _process(0.5, 0.9, directions=4)
    method.fit(sources)
    shapes = {name: tuple(value.shape) for name, value in method.state_dict().items()}
    assert shapes == {"directions": (7, 4), "means": (2, 5, 3), "covariances": (2, 5, 5)}
    state = {name: value.clone() for name, value in method.state_dict().items()}
    again = _process(0.5, 0.9, directions=4)
    again.load_state_dict(state)
    support, query = _batch(8, 12), _batch(9, 5)
    np.testing.assert_array_equal(_scores(again, support, query), _scores(method, support, query))
    for name, value in method.state_dict().items():  # adapting changes nothing
        assert torch.equal(value, state[name])


def test_a_class_that_the_language_lacks_is_never_said():
    method = _process(0.8)
    method.fit([_batch(0, 30)])
    support = _batch(3, 10, (0, 2))
    scores = _scores(method, support, _batch(4, 20))
    assert np.isneginf(scores[:, 1]).all() and np.isfinite(scores[:, [0, 2]]).all()


def test_one_speaker_is_foretold_by_the_sources_alone():
    method = _process(0.5)
    method.fit([_batch(0, 30), _batch(1, 30)])
    support = _batch(3, 12)
    alone = Batch(
        support.modalities,
        support.targets,
        support.classes,
        {"speaker": torch.zeros(12, dtype=torch.long)},
    )
    design = method._design(mean_frames(support.modalities).double())
    chances = (design @ method.means[0]).log_softmax(dim=1)
    expected = 0.3 * chances.gather(1, support.targets[:, None]).sum()
    assert method.adapt(alone).evidence == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"noise": 0.0}, "noise must be above 0, not 0.0"),
        ({"shares": (0.5, 1.2)}, "shares must be numbers from 0 to 1"),
        ({"shares": ()}, "shares must be numbers from 0 to 1"),
    ],
)
def test_wrong_arguments_are_named(wrong, told):
    with pytest.raises(ValueError, match=told):
        GaussianProcess(CHANNELS, CLASSES, **wrong)
