"""Recurrent layers under ``torch.func.vmap``, with first and second derivatives on any device.

The parameters stay those of ``nn.LSTM`` and ``nn.GRU``, whose own computation cannot be mapped
over tasks and, with cuDNN, cannot be differentiated twice.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

Dims = tuple[int | None, ...]
"""The dimension of each tensor that vmap maps over; None for one that is not mapped."""


def recurrent(module: nn.LSTM | nn.GRU, values: Tensor, mask: Tensor) -> Tensor:
    """Return the states of the last layer, from an initial state of zeros.

    They are computed here in three cases: with two directions; when compiling; and inside
    ``torch.backends.cudnn.flags(enabled=False)``, by which PyTorch is asked for recurrent layers
    that can be differentiated twice. Otherwise the module computes them itself, which is faster but
    gives only first derivatives.

    Parameters
    ----------
    module : nn.LSTM or nn.GRU
        Has the parameters; ``batch_first``, with biases, without dropout or projection.
    values : Tensor
        (clips, frames, channels).
    mask : Tensor
        (clips, frames) bool; real frames come first. The reverse direction starts at the last real
        frame.

    Returns
    -------
    Tensor
        (clips, frames, hidden), with both directions (clips, frames, 2 x hidden). States of frames
        that are not real have no meaning.

    Raises
    ------
    ValueError
        If the module has other options than these.
    """
    if module.dropout or module.proj_size or not (module.bias and module.batch_first):
        raise ValueError(
            "recurrent layers must have batch_first=True, bias=True, dropout=0 and proj_size=0, "
            f"not {module}: change these options"
        )
    if torch.onnx.is_in_onnx_export():
        return _exportable(module, values, mask)
    stock = torch.backends.cudnn.enabled and not torch.compiler.is_compiling()
    if stock and not module.bidirectional:  # the reverse direction would start in the padding
        return _stock(module, values)
    layer = _lstm if isinstance(module, nn.LSTM) else _gru
    dtype = cast(Tensor, module.weight_ih_l0).dtype
    sequence = values.transpose(0, 1).to(dtype)  # autocast may have given another
    for index in range(module.num_layers):
        directions, parameters = [sequence], [_parameters(module, f"l{index}")]
        if module.bidirectional:
            directions.append(_turn(sequence, mask))
            parameters.append(_parameters(module, f"l{index}_reverse"))
        states = layer(torch.stack(directions), *map(torch.stack, zip(*parameters)))
        sequence = states[0]
        if module.bidirectional:
            sequence = torch.cat([sequence, _turn(states[1], mask)], dim=-1)
    return sequence.transpose(0, 1)


def _stock(module: nn.LSTM | nn.GRU, values: Tensor) -> Tensor:
    """By the module itself, on a GPU always as in training.

    Adapting takes gradients in evaluation, and cuDNN keeps what they need in training alone. As
    there is no dropout, nothing else differs.
    """
    if module.training or not values.is_cuda:
        return cast(Tensor, module(values)[0])
    names = [f"l{index}" for index in range(module.num_layers)]
    parameters = [value for name in names for value in _parameters(module, name)]
    state = values.new_zeros(len(names), len(values), module.hidden_size)
    options = (True, len(names), 0.0, True, False, True)
    if isinstance(module, nn.LSTM):
        return torch.lstm(values, (state, state), parameters, *options)[0]
    return torch.gru(values, state, parameters, *options)[0]


def _exportable(module: nn.LSTM | nn.GRU, values: Tensor, mask: Tensor) -> Tensor:
    """The same by PyTorch's kernels, which ONNX knows.

    One direction at a time, because the reverse direction of these kernels starts in the padding.
    The initial state is passed, because the exporter would otherwise fix its number of clips.
    """
    state = values.new_zeros(1, values.shape[0], module.hidden_size)
    options = (True, 1, 0.0, False, False, False)

    def run(sequence: Tensor, suffix: str) -> Tensor:
        """States of one direction."""
        parameters = _parameters(module, suffix)
        if isinstance(module, nn.LSTM):
            return torch.lstm(sequence, (state, state), parameters, *options)[0]
        return torch.gru(sequence, state, parameters, *options)[0]

    sequence = values.transpose(0, 1)
    for index in range(module.num_layers):
        states = run(sequence, f"l{index}")
        if module.bidirectional:
            back = _turn(run(_turn(sequence, mask), f"l{index}_reverse"), mask)
            states = torch.cat([states, back], dim=-1)
        sequence = states
    return sequence.transpose(0, 1)


def _parameters(module: nn.Module, suffix: str) -> list[Tensor]:
    """Weights and biases of one layer and direction, such as those of suffix "l0_reverse"."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(module, f"{name}_{suffix}") for name in names]


def _turn(sequence: Tensor, mask: Tensor) -> Tensor:
    """Reverse the real frames of (frames, clips, channels) and leave the others in place."""
    frames = torch.arange(sequence.shape[0], device=sequence.device)
    count = mask.sum(dim=1, keepdim=True)
    source = torch.where(frames < count, count - 1 - frames, frames).transpose(0, 1)
    return sequence.gather(0, source.unsqueeze(-1).expand(sequence.shape))


def _gru(
    sequence: Tensor, weight_in: Tensor, weight_state: Tensor, bias_in: Tensor, bias_state: Tensor
) -> Tensor:
    """One GRU layer, (directions, frames, clips, channels) to (directions, frames, clips, hidden).

    Parameters have a leading dimension of directions, too: both at once need half the operations.
    """
    hidden = weight_state.shape[2]
    inputs = torch.baddbmm(bias_in.unsqueeze(1), sequence.flatten(1, 2), weight_in.mT)
    inputs = inputs.unflatten(1, sequence.shape[1:3])
    state = torch.zeros_like(inputs[:, 0, :, :hidden])
    states = []
    for drive in inputs.unbind(1):
        recall = torch.baddbmm(bias_state.unsqueeze(1), state, weight_state.mT)
        reset, update = (drive + recall)[..., : 2 * hidden].sigmoid().chunk(2, dim=-1)
        candidate = (drive[..., 2 * hidden :] + reset * recall[..., 2 * hidden :]).tanh()
        state = torch.lerp(candidate, state, update)
        states.append(state)
    return torch.stack(states, dim=1)


def _lstm(
    sequence: Tensor, weight_in: Tensor, weight_state: Tensor, bias_in: Tensor, bias_state: Tensor
) -> Tensor:
    """One LSTM layer, with the shapes of ``_gru``; directions are the tasks of ``_LSTM``."""
    scale = torch.ones_like(bias_in)
    scale.unflatten(1, (4, -1))[:, 2] = -2  # see _LSTM
    parameters = (
        weight_in * scale.unsqueeze(-1),
        weight_state * scale.unsqueeze(-1),
        # Not (bias_in + bias_state) * scale: both would get the same gradient, as views of one
        # tensor, so that ``.grad`` of both would share memory and add every later gradient twice.
        bias_in * scale + bias_state * scale,
    )
    states: Tensor = _LSTM.apply(sequence, *parameters)[0]
    return states[:, 1:]


class _LSTM(Function):
    """One LSTM layer written with sigmoids alone: tanh(x) = 1 - 2 sigmoid(-2x).

    PyTorch's tanh takes several times longer than its sigmoid. The weights of the candidate are
    multiplied by -2 beforehand. With h' and c' the state and the cell of the frame before, and g
    the gate of the candidate,

        (i, f, g, o) = sigmoid(a),  a = W x + U h' + b
        c = f c' + i (1 - 2g)
        h = o (1 - 2 sigmoid(-2c))

    States and cells begin with a frame of zeros, so that their frame t comes before frame t of the
    inputs. ``_blocks`` slices the inputs and the states before them, ``_after`` the states after.
    """

    @staticmethod
    def forward(
        inputs: Tensor, weight_in: Tensor, weight_state: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return states, gates and cells, each (tasks, frames, clips, …), of such inputs."""
        tasks, frames, clips, _ = inputs.shape
        hidden = weight_state.shape[2]
        gates = inputs.new_empty(tasks, frames, clips, 4 * hidden)
        states, cells = inputs.new_empty(2, tasks, frames + 1, clips, hidden).unbind()
        state, cell = states[:, 0].zero_(), cells[:, 0].zero_()
        minus_two = inputs.new_tensor(-2.0)  # a number would become a new tensor each time
        for block in _blocks(gates):
            gate = gates[:, block]
            gate.flatten(1, 2).copy_(bias.unsqueeze(1)).baddbmm_(
                inputs[:, block].flatten(1, 2), weight_in.mT
            )
            steps = _frames(
                gate, *gate.chunk(4, dim=-1), states[:, _after(block)], cells[:, _after(block)]
            )
            for a, i, f, g, o, next_state, next_cell in steps:
                a.baddbmm_(state, weight_state.mT).sigmoid_()
                torch.addcmul(i, i, g, value=-2, out=next_cell).addcmul_(f, cell)
                state, cell = next_state, next_cell
                torch.mul(cell, minus_two, out=state).sigmoid_()
                torch.addcmul(o, o, state, value=-2, out=state)
        return states, gates, cells

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradients need."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs and parameters."""
        if grad_states is None:
            return (None,) * 4
        gradients: tuple[Tensor | None, ...] = _LSTMBackward.apply(
            grad_states, *ctx.saved_tensors, ctx.needs_input_grad[0]
        )
        return gradients[:4]

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *operands: Any) -> tuple[tuple, Dims]:
        """Compute many tasks at once."""
        return _more_tasks(_LSTM.apply, info.batch_size, in_dims, operands)


class _LSTMBackward(Function):
    """Gradients of ``_LSTM``, themselves differentiable.

    With the step linearised as

        dc = f dc' + L_i da_i + L_f da_f + L_g da_g
        dh = q dc + L_o da_o

    the gradients come from its adjoint, run back in time. They are the derivative of <G, h> for the
    incoming G. Hence the backward of this function, with the cotangents of the gradients as a
    direction, is the gradient of <G, dh> for the tangent dh in that direction. It is computed as
    the tangent of the forward pass, then the tangent of the adjoint, which is the adjoint with
    further sources. Names of tangents begin with ``way``.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        inputs: Tensor,
        weight_in: Tensor,
        weight_state: Tensor,
        bias: Tensor,
        states: Tensor,
        gates: Tensor,
        cells: Tensor,
        needs_inputs: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of inputs, weights and bias, then those of states and cells."""
        grad_states = grad[:, 1:].clone(memory_format=torch.contiguous_format)
        grad_cells = torch.zeros_like(grad_states)
        grad_inputs = torch.empty_like(inputs) if needs_inputs else None
        grad_in, grad_state, grad_bias = map(torch.zeros_like, (weight_in, weight_state, bias))
        for block, grad_gates in _adjoint(gates, cells, weight_state, grad_states, grad_cells):
            if grad_inputs is not None:
                grad_input = torch.bmm(grad_gates, weight_in)
                grad_inputs[:, block] = grad_input.view(inputs[:, block].shape)
            grad_in.baddbmm_(grad_gates.mT, inputs[:, block].flatten(1, 2))
            grad_state.baddbmm_(grad_gates.mT, states[:, block].flatten(1, 2))
            grad_bias += grad_gates.sum(dim=1)
        return grad_inputs, grad_in, grad_state, grad_bias, grad_states, grad_cells

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the second derivatives need."""
        ctx.mark_non_differentiable(*output[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:-1], *output[4:])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        way_inputs: Tensor | None,
        way_in: Tensor | None,
        way_state: Tensor | None,
        way_bias: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of ``forward``, for cotangents of its gradients."""
        inputs, weight_in, weight_state, bias, states, gates, cells, grad_states, grad_cells = (
            ctx.saved_tensors
        )
        way_in, way_state, way_bias = (
            torch.zeros_like(value) if way is None else way
            for way, value in ((way_in, weight_in), (way_state, weight_state), (way_bias, bias))
        )
        way_gates = torch.empty_like(gates)
        way_states, way_cells, more_states, more_cells = map(
            torch.zeros_like, (states, cells, states, cells)
        )
        grad_inputs = torch.empty_like(inputs)
        grad_in, grad_state, grad_bias = map(torch.zeros_like, (weight_in, weight_state, bias))
        state, cell = way_states[:, 0], way_cells[:, 0]
        for block in _blocks(gates):
            gate, way = gates[:, block], way_gates[:, block]
            after = _after(block)
            flat = way.flatten(1, 2)
            flat.copy_(way_bias.unsqueeze(1)).baddbmm_(
                inputs[:, block].flatten(1, 2), way_in.mT
            ).baddbmm_(states[:, block].flatten(1, 2), way_state.mT)
            if way_inputs is not None:
                flat.baddbmm_(way_inputs[:, block].flatten(1, 2), weight_in.mT)
            slopes, q = _linearise(gate, cells[:, block], cells[:, after])
            i, f, g, o = gate.chunk(4, dim=-1)
            steps = _frames(way, slopes, f, q, way_states[:, after], way_cells[:, after])
            for way_gate, slope, forget, q_, next_state, next_cell in steps:
                way_gate.baddbmm_(state, weight_state.mT)
                from_i, from_f, from_g, from_o = (way_gate * slope).chunk(4, dim=-1)
                torch.add(from_i, from_f, out=next_cell).add_(from_g).addcmul_(forget, cell)
                state, cell = next_state, next_cell
                torch.addcmul(from_o, q_, cell, out=state)
            # The sources are the changes of the slopes.
            dh, dc = grad_states[:, block], grad_cells[:, block]
            r = torch.mul(cells[:, after], -2).sigmoid_()
            way_i, way_f, way_g, way_o = _times_slope(way, gate).chunk(4, dim=-1)
            way_r = _times_slope(way_cells[:, after] * -2, r)
            changes = _factors(way_i, way_cells[:, block], way_g, way_r)
            changes = _spread(_times_slope(changes, gate), dc, dh)
            grad_gates = _spread(slopes, dc, dh)
            way.mul_(grad_gates).addcmul_(way, gate, value=-2).add_(changes)
            way_r.mul_(o).addcmul_(way_r, r, value=-2).add_(_times_slope(way_o, r))
            torch.mul(way_r.mul_(4), dh, out=more_cells[:, after])
            more_cells[:, block].addcmul_(way_f, dc)
            flat = grad_gates.flatten(1, 2)
            more_states[:, block] = torch.bmm(flat, way_state).view(dh.shape)
            grad_inputs[:, block] = torch.bmm(flat, way_in).view(inputs[:, block].shape)
            if way_inputs is not None:
                grad_in.baddbmm_(flat.mT, way_inputs[:, block].flatten(1, 2))
            grad_state.baddbmm_(flat.mT, way_states[:, block].flatten(1, 2))
        chain = _adjoint(
            gates, cells, weight_state, more_states[:, 1:], more_cells[:, 1:], way_gates
        )
        for block, flat in chain:
            grad_inputs[:, block] += torch.bmm(flat, weight_in).view(inputs[:, block].shape)
            grad_in.baddbmm_(flat.mT, inputs[:, block].flatten(1, 2))
            grad_state.baddbmm_(flat.mT, states[:, block].flatten(1, 2))
            grad_bias += flat.sum(dim=1)
        return (way_states, grad_inputs, grad_in, grad_state, grad_bias, *[None] * 4)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *operands: Any) -> tuple[tuple, Dims]:
        """Compute many tasks at once."""
        return _more_tasks(_LSTMBackward.apply, info.batch_size, in_dims, operands)


def _more_tasks(
    function: Callable[..., tuple], size: int, in_dims: Dims, operands: tuple
) -> tuple[tuple, Dims]:
    """Outputs and their mapped dimensions, with vmap's ``size`` tasks joined to the tasks."""

    def join(operand: Any, dim: int | None) -> Any:
        """A tensor with all tasks in its leading dimension; anything else as it is."""
        if not isinstance(operand, Tensor):
            return operand
        if dim is None:
            operand, dim = operand.expand(size, *operand.shape), 0
        return operand.movedim(dim, 0).flatten(0, 1)

    outputs = function(*map(join, operands, in_dims))
    outputs = tuple(None if o is None else o.unflatten(0, (size, -1)) for o in outputs)
    return outputs, tuple(None if o is None else 0 for o in outputs)


def _adjoint(
    gates: Tensor,
    cells: Tensor,
    weight_state: Tensor,
    grad_states: Tensor,
    grad_cells: Tensor,
    sources: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Run the adjoint back in time, in place; yield each block with the gradients of its gates.

    ``grad_states``, ``grad_cells`` and, unless None, ``sources`` hold the gradients of states,
    cells and gates that come from elsewhere. Gradients of gates are (tasks, frames of the block x
    clips, 4 x hidden).
    """
    later: tuple[Tensor, Tensor, Tensor] | None = None
    for block in reversed(_blocks(gates)):
        forget = gates[:, block].chunk(4, dim=-1)[1]
        slopes, q = _linearise(gates[:, block], cells[:, block], cells[:, _after(block)])
        quarters = slopes.unflatten(-1, (4, -1))
        sequences = [slopes, quarters[..., :3, :], quarters[..., 3, :], forget, q]
        sequences += [grad_states[:, block], grad_cells[:, block]]
        if sources is not None:
            sequences.append(sources[:, block])
        for da, da_ifg, da_o, f, q_, dh, dc, *source in reversed(list(_frames(*sequences))):
            if later:
                later_da, later_f, later_dc = later
                dh.baddbmm_(later_da, weight_state)
                dc.addcmul_(later_f, later_dc)
            dc.addcmul_(q_, dh)
            da_ifg.mul_(dc.unsqueeze(-2))
            da_o.mul_(dh)
            if source:
                da.add_(*source)
            later = da, f, dc
        yield block, slopes.flatten(1, 2)


def _linearise(gates: Tensor, past: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The factors L, as wide as the gates, and q, as wide as the cells; see ``_LSTMBackward``."""
    i, _, g, o = gates.chunk(4, dim=-1)
    r = torch.mul(cells, -2).sigmoid_()
    factors = _factors(i, past, g, r)
    factors[..., : i.shape[-1]] += 1
    factors[..., -i.shape[-1] :] += 1
    return _times_slope(factors, gates), _times_slope(4 * o, r)


def _factors(i: Tensor, past: Tensor, g: Tensor, r: Tensor) -> Tensor:
    """The factors -2g, c', -2i and -2r of the slopes of the gates, concatenated."""
    factors = i.new_empty(*i.shape[:-1], 4, i.shape[-1])
    for index, part in ((0, g), (2, i), (3, r)):
        torch.mul(part, -2, out=factors[..., index, :])
    factors[..., 1, :] = past
    return factors.flatten(-2)


def _spread(factors: Tensor, grad_cells: Tensor, grad_states: Tensor) -> Tensor:
    """Multiply factors in place: of i, f and g by the cells' gradient, of o by the states'."""
    quarters = factors.unflatten(-1, (4, -1))
    quarters[..., :3, :].mul_(grad_cells.unsqueeze(-2))
    quarters[..., 3, :].mul_(grad_states)
    return factors


def _times_slope(values: Tensor, gates: Tensor) -> Tensor:
    """Values times the slope of the sigmoid where it has the value ``gates``."""
    return cast(Tensor, torch.ops.aten.sigmoid_backward(values, gates))


def _frames(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The frames of several sequences (tasks, frames, …), one after the other."""
    return zip(*(sequence.unbind(1) for sequence in sequences))


def _blocks(gates: Tensor) -> list[slice]:
    """Slices of frames, small enough for the processor's cache, large enough for fast products."""
    _, frames, clips, _ = gates.shape
    size = max(1, 512 // clips)
    return [slice(start, min(start + size, frames)) for start in range(0, frames, size)]


def _after(block: slice) -> slice:
    """The slice of states and cells after the frames of a block."""
    return slice(block.start + 1, block.stop + 1)
