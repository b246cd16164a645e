"""Fine-tuning against Adam written out by hand, in double precision."""

import torch
from builders import draw_batch, small_model
from torch import nn

from metaser.methods.fine_tune import fine_tune
from metaser.methods.inner_loop import task_loss


def test_fine_tuning_is_adam_on_the_cyclic_schedule():
    """The rate runs from a fifth of its top to the top in 8 steps, and back in 8."""
    model, support = small_model(), draw_batch(0)
    tuned = fine_tune(
        lambda own, rows: task_loss(model, own, support[rows]),
        dict(model.named_parameters()),
        len(support),
        steps=20,
        rate=0.01,
    )
    copy = small_model()
    moments = {
        key: [torch.zeros_like(v), torch.zeros_like(v)] for key, v in copy.named_parameters()
    }
    for step in range(20):
        place = step % 16
        rate = 0.01 * (0.2 + 0.8 * (1 - abs(place - 8) / 8))
        loss = nn.functional.cross_entropy(copy(support.modalities), support.targets)
        slopes = torch.autograd.grad(loss, list(copy.parameters()))
        with torch.no_grad():
            for (key, value), slope in zip(copy.named_parameters(), slopes):
                first, second = moments[key]
                first.mul_(0.9).add_(0.1 * slope)
                second.mul_(0.999).add_(0.001 * slope**2)
                root = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                value -= rate * first / (1 - 0.9 ** (step + 1)) / root
    for key, value in copy.named_parameters():
        torch.testing.assert_close(tuned[key], value, rtol=1e-8, atol=1e-10)


def test_fine_tuning_visits_every_clip_once_a_round():
    seen = []
    weight = torch.zeros(1, requires_grad=True)

    def loss(own, rows):
        seen.append(rows.tolist())
        return own["w"].square().sum()

    fine_tune(loss, {"w": weight}, clips=10, steps=6, rate=0.1, batch_size=5)
    assert [len(rows) for rows in seen] == [5] * 6
    for one, two in zip(seen[::2], seen[1::2]):
        assert sorted(one + two) == list(range(10))
    assert seen[0] != seen[2]
    assert float(weight.detach()) == 0 and weight.grad is None
