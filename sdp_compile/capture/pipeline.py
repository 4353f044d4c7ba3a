"""The steps of capture, from a model and its example inputs to its graphs and a description of its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from sdp_compile.capture.audit import refuse_carried
from sdp_compile.capture.checkpoints import mark_regions
from sdp_compile.capture.clone import canonical_names, is_persistent, named_state, skeleton, to_meta
from sdp_compile.capture.export import Exported, captured_device, export_mode, prepared
from sdp_compile.capture.free import with_free_numbers
from sdp_compile.capture.graph import Constants, program_of
from sdp_compile.capture.inputs import Call, example_call, requiring, with_batch
from sdp_compile.capture.methods import Methods, entry, method_names, recorded_inputs
from sdp_compile.capture.overlaps import refuse_overlaps
from sdp_compile.capture.precision import autocast_dtype, autocast_of, call_in, skeleton_in
from sdp_compile.capture.quiet import preserved_rng
from sdp_compile.capture.refuse import refuse, refuse_counting
from sdp_compile.capture.registered import registered
from sdp_compile.capture.sizes import Sizes
from sdp_compile.errors import CaptureError
from sdp_compile.ir.numbers import Place
from sdp_compile.ir.program import FORWARD, Capture, Mode, Precision, Program, StateTensor

_MODES: tuple[Mode, Mode] = ("train", "eval")


def capture(model: nn.Module, example_inputs: Any = None, methods: Methods = ()) -> Capture:
    """Captures ``model`` in training and evaluation mode, in the autocast state of the caller.

    The model, its weights, its mode and the random state are not changed. In the mode that the model is in, its parts
    keep modes of their own; the other mode is what ``train()`` or ``eval()`` makes of it.

    Args:
        model: The model, on any device. On the meta device, no weight is ever allocated.
        example_inputs: The inputs of one training call: a tuple of positional arguments, a mapping of keyword
            arguments, or one tensor. Their sizes may vary between calls where the model allows it.
        methods: Further methods to capture, by name; a mapping gives the example inputs of each. Otherwise they are
            those with which forward calls it.

    Returns:
        The graphs of both modes and all that is known of the model without its weights.

    Raises:
        CaptureError: The model cannot be captured without changing what it computes, or the inputs do not fit it.
    """
    refuse(model)
    names = method_names(model, methods)
    model = registered(model)
    call = example_call(model, example_inputs)
    device = captured_device(model, call)
    constants = Constants(model)
    programs: dict[str, Program] = {}
    notes: list[str] = []
    calls = {FORWARD: call, **_calls(model, call, names, methods, device)}
    for method, inputs in calls.items():
        sizes: tuple[Sizes, str] = "all", ""
        precision = Precision(inputs.dtypes, autocast_dtype(device.type))
        subject, batched = entry(model, method), with_batch(inputs)
        for mode in _MODES:
            program, exported = _program(subject, inputs, batched, mode, device, precision, constants, sizes=sizes)
            program, sizes = replace(program, method=method), exported.sizes
            programs[program.key] = program
            notes += exported.notes
    refuse_overlaps(model, programs.values())
    refuse_carried(type(model).__name__, programs.values())
    metas = {method: inputs.map_tensors(to_meta) for method, inputs in calls.items()}
    return Capture(
        programs=programs,
        state=_state(model, constants),
        aliases=_aliases(model, canonical_names(model)),
        constants=constants.values,
        skeleton=skeleton(model),
        training=model.training,
        notes=tuple(dict.fromkeys(notes)),
        device=device,
        examples={method: (meta.args, meta.kwargs) for method, meta in metas.items()},
    )


def recapture(
    captured: Capture,
    mode: Mode,
    precision: Precision,
    device: torch.device,
    shapes: Sequence[Sequence[int]] | None = None,
    grad: tuple[int, ...] = (),
    values: Mapping[str, torch.Tensor] = MappingProxyType({}),
    places: Sequence[Place] = (),
    method: str = FORWARD,
) -> Capture:
    """Captures one mode again, for another call, from the skeleton that ``captured`` holds.

    Args:
        captured: The earlier capture. It is not changed.
        mode: The mode to capture.
        precision: The dtypes of the inputs, parameters and buffers, and the autocast state.
        device: The device that the graph's constants name.
        shapes: The shapes of the inputs, taken as they are; by default those of the first capture.
        grad: Whether gradients are enabled, and `grad_answer` of each tensor input; by default those of a first
            call without gradients for its inputs.
        values: The values of buffers with one element, which forward may read.
        places: Where forward reads numbers that change often. They become inputs of the graph where that is possible.
        method: The method to capture.

    Returns:
        ``captured`` with the new program in place of the mode's old one.

    Raises:
        CaptureError: The model cannot be captured in these dtypes or for these sizes.
    """

    def copied() -> nn.Module:
        return entry(skeleton_in(precision, captured, device, values), method)

    model = copied()
    constants = Constants(model, captured.constants)
    # Within torch.func.vmap or grad, no tensor of the capture takes part in the transform.
    with autocast_of(precision, device), temporarily_clear_interpreter_stack():
        call = call_in(precision, captured, shapes, method)
        batched = with_batch(call) if shapes is None else None

        def again(model: nn.Module) -> tuple[Program, Exported]:
            known = Constants(model, constants.values)
            return _program(model, call, batched, mode, device, precision, known, grad)

        first = _program(model, call, batched, mode, device, precision, constants, grad)
        program = replace(with_free_numbers(first, copied, places, again), method=method)
    refuse_carried(type(model).__name__, [*captured.programs.values(), program])
    state = {
        name: replace(tensor, dtype=precision.cast(name, tensor.dtype)) if tensor.kind != "constant" else tensor
        for name, tensor in captured.state.items()
    }
    return replace(
        captured,
        programs={**captured.programs, program.key: program},
        state={**state, **_constant_state(constants)},
        constants=constants.values,
    )


def _calls(
    model: nn.Module, call: Call, names: Sequence[str], methods: Methods, device: torch.device
) -> dict[str, Call]:
    """Returns the call of each further method."""
    if isinstance(methods, Mapping):
        return {name: example_call(model, methods[name], name) for name in names}
    if not names:
        return {}

    def prepare(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
        return prepared(model, call, "train", device)

    return recorded_inputs(model, call, names, prepare)


def _program(
    model: nn.Module,
    call: Call,
    batched: Call | None,
    mode: Mode,
    device: torch.device,
    precision: Precision,
    constants: Constants,
    grad: tuple[int, ...] = (),
    sizes: tuple[Sizes, str] = ("all", ""),
) -> tuple[Program, Exported]:
    if mode == "train":
        refuse_counting(model)
    grad = grad or (True, *[False] * len(precision.inputs))
    with preserved_rng(), torch.inference_mode(False), torch.set_grad_enabled(bool(grad[0])):
        exported = _export(model, requiring(call, grad), batched and requiring(batched, grad), mode, device, sizes)
    program = program_of(model, exported, mode, canonical_names(model), constants)
    mark_regions(program.graph)
    return replace(program, precision=precision, grad=grad), exported


def _export(
    model: nn.Module, call: Call, batched: Call | None, mode: Mode, device: torch.device, sizes: tuple[Sizes, str]
) -> Exported:
    if batched is None:
        return export_mode(model, call, mode, device, sizes)
    try:
        return export_mode(model, batched, mode, device, sizes)
    except CaptureError:
        exported = export_mode(model, call, mode, device)
        remark = (
            f"{mode} graph captured for batches of size 1 only, because capture failed with the inputs repeated to 2"
        )
        return replace(exported, notes=(*exported.notes, remark))


def _state(model: nn.Module, constants: Constants) -> dict[str, StateTensor]:
    state: dict[str, StateTensor] = {}
    for name, parameter in model.named_parameters():
        state[name] = StateTensor(tuple(parameter.shape), parameter.dtype, "parameter", parameter.requires_grad)
    for name, buffer in model.named_buffers():
        persistent = is_persistent(model, name)
        state[name] = StateTensor(tuple(buffer.shape), buffer.dtype, "buffer", persistent=persistent)
    return {**state, **_constant_state(constants)}


def _constant_state(constants: Constants) -> dict[str, StateTensor]:
    return {
        name: StateTensor(tuple(value.shape), value.dtype, "constant", persistent=False)
        for name, value in constants.values.items()
    }


def _aliases(model: nn.Module, canonical: Mapping[str, str]) -> dict[str, str]:
    by_tensor = {id(tensor): canonical[name] for name, tensor in named_state(model)}
    state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    return {
        key: by_tensor[id(value)]
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and id(value) in by_tensor
    }
