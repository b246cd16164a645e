"""Recurrent layers against PyTorch's, in double precision."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from metaser.backbones.recurrence import recurrent

CHANNELS, HIDDEN, TASKS = 3, 4, 3


class _Net(nn.Module):
    def __init__(self, kind: type[nn.Module], **options):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.rnn = kind(CHANNELS, HIDDEN, batch_first=True, **options).double()

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return recurrent(self.rnn, values, mask)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _mask(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _derivatives(outputs: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a curved function of the outputs, and gradients of their norm."""
    loss = (outputs.pow(3) * _draw(*outputs.shape, seed=7)).sum() + outputs.square().mean()
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    norm = sum(slope.square().sum() for slope in first)
    return [*first, *torch.autograd.grad(norm, inputs)]


def _close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) and any(value.any() for value in expected)
    for one, other in zip(found, expected):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * scale)


each = pytest.mark.parametrize(
    "kind, options",
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.GRU, {"num_layers": 2}),
        (nn.GRU, {"bidirectional": True}),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    ],
)


@each
@pytest.mark.parametrize("clips, frames", [(2, 5), (1, 1), (300, 3), (200, 5)])
def test_values_and_both_derivatives_are_pytorch_s(kind, options, clips, frames):
    net = _Net(kind, **options)
    values = _draw(clips, frames, CHANNELS).requires_grad_()
    found, expected = net(values, _mask(*[frames] * clips)), net.rnn(values)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [values] + [value for name, value in net.named_parameters()]
    _close(_derivatives(found, inputs), _derivatives(expected, inputs))


@each
def test_padding_is_as_in_packed_sequences(kind, options):
    net = _Net(kind, **options)
    mask = _mask(4, 1, 7)
    values = _draw(3, 7, CHANNELS)
    packed = pack_padded_sequence(values, mask.sum(dim=1), batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(net.rnn(packed)[0], batch_first=True)
    torch.testing.assert_close(net(values, mask)[mask], expected[mask], rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("shared", ["nothing", "parameters", "values"])
def test_mapped_over_tasks_it_is_a_loop_over_tasks(kind, options, shared):
    net = _Net(kind, **options)
    size = TASKS if shared != "parameters" else 1
    parameters = {
        name: (value.detach() + 0.1 * _draw(size, *value.shape)).requires_grad_()
        for name, value in net.named_parameters()
    }
    values = _draw(TASKS if shared != "values" else 1, 4, 5, CHANNELS).requires_grad_()
    mask = _mask(3, 5, 1, 4)

    def states(parameters, values):
        return functional_call(net, parameters, (values, mask)) * mask.unsqueeze(-1)

    def task(tensor, index):
        return tensor[index if len(tensor) > 1 else 0]

    if shared == "parameters":
        one = {name: value[0] for name, value in parameters.items()}
        found = vmap(states, in_dims=(None, 0))(one, values)
    elif shared == "values":
        found = vmap(states, in_dims=(0, None))(parameters, values[0])
    else:
        found = vmap(states)(parameters, values)
    expected = torch.stack(
        [
            states({name: task(p, t) for name, p in parameters.items()}, task(values, t))
            for t in range(TASKS)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [values, *parameters.values()]
    _close(_derivatives(found, inputs), _derivatives(expected, inputs))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_derivatives_agree_with_finite_differences(kind, bidirectional):
    net = _Net(kind, bidirectional=bidirectional)
    names = [name for name, _ in net.named_parameters()]

    def states(values, *parameters):
        return functional_call(net, dict(zip(names, parameters)), (values, _mask(2, 2)))

    inputs = (_draw(2, 2, CHANNELS).requires_grad_(), *net.parameters())
    assert torch.autograd.gradcheck(states, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(states, inputs, fast_mode=True)


@pytest.mark.parametrize("adapted", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"])
def test_parameters_may_be_frozen(adapted):
    net = _Net(nn.LSTM, num_layers=2)
    for name, value in net.named_parameters():
        value.requires_grad_(name == f"rnn.{adapted}")
    values = _draw(2, 4, CHANNELS)
    inputs = [getattr(net.rnn, adapted)]
    found, expected = net(values, _mask(4, 4)), net.rnn(values)[0]
    _close(_derivatives(found, inputs), _derivatives(expected, inputs))


@each
def test_gradients_add_up(kind, options):
    net = _Net(kind, **options)
    values, mask = _draw(2, 5, CHANNELS), _mask(5, 3)
    expected = torch.autograd.grad(net(values, mask)[mask].square().sum(), list(net.parameters()))
    for _ in range(3):
        net(values, mask)[mask].square().sum().backward()
    _close([value.grad for value in net.parameters()], [3 * slope for slope in expected])


@each
def test_padding_has_no_slope(kind, options):
    net = _Net(kind, **options)
    mask = _mask(4, 1, 7)
    values = _draw(3, 7, CHANNELS).requires_grad_()
    first, *_ = _derivatives(net(values, mask) * mask.unsqueeze(-1), [values])
    assert not first[~mask].any() and first[mask].any(dim=-1).all()


def test_single_precision_stays_single():
    net = _Net(nn.LSTM, num_layers=2).float()
    values = _draw(2, 4, CHANNELS).float()
    found = net(values, _mask(4, 4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, net.rnn(values)[0])


@pytest.mark.parametrize(
    "options", [{"num_layers": 2, "dropout": 0.5}, {"proj_size": 2}, {"bias": False}]
)
def test_what_is_not_supported_is_refused(options):
    with pytest.raises(ValueError, match="must have .*dropout=0"):
        _Net(nn.LSTM, **options)(_draw(1, 2, CHANNELS), _mask(2))
