"""Runs torch.export on one mode of the model and notes every fallback."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import random
import sys
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from sdp_compile.capture.buffers import copy_assigned
from sdp_compile.capture.clone import clone
from sdp_compile.capture.diagnosis import Resized, explain, first_line, is_data_dependent
from sdp_compile.capture.gradients import restored_transforms
from sdp_compile.capture.inputs import Call
from sdp_compile.capture.observe import Observer
from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import Mode

Sizes = Literal["all", "leading", "none"]
Attempts: TypeAlias = tuple[tuple[Sizes, bool], ...]
"""Pairs to try in turn: which sizes are free, and whether export is strict."""

# Non-strict export runs the model's own Python code. Strict export reads its bytecode, and can capture some branches on
# tensor values that stop the other.
ATTEMPTS: Attempts = (("all", False), ("leading", False), ("none", False), ("leading", True))
NON_STRICT: Attempts = tuple((sizes, strict) for sizes, strict in ATTEMPTS if not strict)
_SIZES = {"all": "all input sizes free", "leading": "leading input size free", "none": "all input sizes fixed"}


def export_mode(
    model: nn.Module, call: Call, mode: Mode, device: torch.device, attempts: Attempts = ATTEMPTS
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Exports ``model`` in one mode, from a copy that shares its weights. No weight is read or changed.

    Args:
        model: The model.
        call: The arguments of one call.
        mode: Whether to export the model in training or evaluation mode.
        device: The device that the graph's constants are to name.
        attempts: What to try, in turn.

    Returns:
        The exported program, and notes for the report on what had to be given up to get it.

    Raises:
        CaptureError: Every attempt failed, or the graph would lose gradients that the model defines itself.
    """
    failures: dict[tuple[Sizes, bool], Exception] = {}
    for sizes, strict in attempts:
        if sizes != "all" and not strict and any(map(is_data_dependent, failures.values())):
            continue
        if strict and any(isinstance(error, Resized) for error in failures.values()):
            continue  # strict export would drop the assignment
        subject, inputs = prepared(model, call, mode, device)
        if not strict:
            copy_assigned(subject)
        observer = Observer(model)
        with contextlib.nullcontext() if strict else observer:
            try:
                with quiet(), restored_transforms():
                    program = torch.export.export(
                        subject,
                        inputs.args,
                        inputs.kwargs,
                        dynamic_shapes=_dynamic_shapes(subject, inputs, sizes),
                        strict=strict,
                    )
            except CaptureError:
                raise
            except Exception as error:
                failures[sizes, strict] = error
                continue
        observer.check()
        notes = []
        if failures:
            how = f"{'strict' if strict else 'non-strict'} export with {_SIZES[sizes]}"
            notes.append(f"{mode} graph captured by {how}, because: {first_line(next(iter(failures.values())))}")
        return program, tuple(notes)
    # Free sizes can fail where the model is fine. The error with fixed sizes is about the user's model alone.
    last = failures.get(("none", False)) or next(iter(failures.values()))
    told = next((error for error in failures.values() if is_data_dependent(error)), last)
    raise CaptureError(explain(model, told)) from told


def prepared(model: nn.Module, call: Call, mode: Mode, device: torch.device) -> tuple[nn.Module, Call]:
    """Returns a copy of the model in ``mode``, and the arguments, both on ``device`` and ready for export.

    Tensors on the meta device become fake tensors of ``device``, so that the graph can run later. On the meta device
    itself, a factory call without a device would clash with them.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, export=True)

    def on_real_device(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "meta":
            return tensor
        with fake_mode:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    subject = clone(model, on_real_device)
    for module in subject.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            # A key-value cache is for generation. In a training program it is an output that nobody reads.
            config.use_cache = False

    def on_model_device(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == device:
            return tensor.detach()
        with fake_mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    return subject.train(mode == "train"), call.map_tensors(on_model_device)


def captured_device(model: nn.Module, call: Call) -> torch.device:
    """Returns the device to capture for: that of the first parameter, buffer or input, and the CPU for meta tensors."""
    tensors = [*model.parameters(), *model.buffers(), *call.tensors]
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.device("cpu") if device.type == "meta" else device


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what torch logs and prints about a failed attempt, such as whole graphs: our error explains it.

    What a successful attempt prints, such as the user's own ``print`` in a forward, appears afterwards.
    """
    out, err = io.StringIO(), io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        logging.disable(disabled)
    print(out.getvalue(), end="")
    print(err.getvalue(), end="", file=sys.stderr)


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restores the random states of torch (CPU), numpy and Python. Fake CUDA tensors draw no random numbers."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _dynamic_shapes(model: nn.Module, call: Call, sizes: Sizes) -> dict[str, Any] | None:
    """Returns the dimensions that may vary, by parameter of ``forward``."""
    if sizes == "none":
        return None
    bound = inspect.signature(model.forward).bind(*call.args, **call.kwargs)
    return {name: _free(value, sizes) for name, value in bound.arguments.items()}


def _free(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, torch.Tensor):
        return {dim: Dim.AUTO for dim in range(value.ndim) if sizes == "all" or dim == 0}
    kind = pytree._get_node_type(value)
    if kind not in pytree.SUPPORTED_NODES:
        return None
    if kind in pytree.BUILTIN_TYPES:
        return pytree.tree_map(lambda item: _free(item, sizes), value, is_leaf=lambda item: item is not value)
    # torch.export describes an instance of a registered class by the list of its parts.
    return [_free(item, sizes) for item in pytree.SUPPORTED_NODES[kind].flatten_fn(value)[0]]
