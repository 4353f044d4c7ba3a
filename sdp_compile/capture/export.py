"""Runs torch.export on one mode of the model and notes every fallback."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from sdp_compile.capture.attributes import Attributes, Place
from sdp_compile.capture.audit import Findings, audit, check_attributes, check_surroundings
from sdp_compile.capture.buffers import copy_assigned
from sdp_compile.capture.caches import note_kept
from sdp_compile.capture.clone import clone
from sdp_compile.capture.diagnosis import explain, first_line, is_data_dependent
from sdp_compile.capture.eager import as_in_eager
from sdp_compile.capture.environment import check_answers
from sdp_compile.capture.gradients import restored_transforms
from sdp_compile.capture.inputs import Call, answering, grad_answer
from sdp_compile.capture.memos import Memos
from sdp_compile.capture.modes import in_mode
from sdp_compile.capture.observe import Observer
from sdp_compile.capture.quiet import quiet
from sdp_compile.capture.sizes import Sizes
from sdp_compile.errors import CaptureError
from sdp_compile.ir.kept import Kept
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import frozen
from sdp_compile.ir.program import Mode
from sdp_compile.ir.reads import Read

_ATTEMPTS: tuple[Sizes, ...] = ("all", "leading", "none")
_SIZES = {"all": "all input sizes free", "leading": "leading input size free", "none": "all input sizes fixed"}


@dataclass(frozen=True)
class Exported:
    """One mode of a model as torch.export captured it.

    Attributes:
        program: The exported program.
        reads: What forward read besides tensors.
        outputs: The attributes that forward assigns tensors to; their values come after the model's results.
        asks_grad: Whether forward asks if gradients are wanted.
        sizes: Which sizes of the inputs are free, and why the others are not.
        notes: What had to be given up.
        functions: The user's functions that forward called, with their global variables; None if that is not known.
        calls_math: Whether they call functions of `math` themselves.
        kept: What forward keeps by key.
    """

    program: ExportedProgram
    reads: tuple[Read, ...]
    outputs: tuple[Place, ...]
    asks_grad: bool
    sizes: tuple[Sizes, str]
    notes: tuple[str, ...]
    functions: Mapping[CodeType, dict[str, Any]] | None
    calls_math: bool
    kept: tuple[Kept, ...]


def export_mode(
    model: nn.Module, call: Call, mode: Mode, device: torch.device, sizes: tuple[Sizes, str] = ("all", "")
) -> Exported:
    """Exports ``model`` in one mode, from a copy that shares its weights. No weight is read or changed.

    Export is never strict: the model's own Python code runs, and an `Observer` sees what the graph would lose. Strict
    export reads bytecode instead, and drops custom gradients and writes without a word.

    Args:
        model: The model.
        call: The arguments of one call.
        mode: Whether to export the model in training or evaluation mode.
        device: The device that the graph's constants are to name.
        sizes: Which sizes to leave free at most and why, such as what the other mode allowed.

    Raises:
        CaptureError: Every attempt failed, or the graph would lose something that forward does.
    """
    findings, memos = _audited(model, call, mode, device)
    failures: dict[Sizes, Exception] = {}
    for free in _ATTEMPTS[_ATTEMPTS.index(sizes[0]) :]:
        if any(map(is_data_dependent, failures.values())):
            break
        with memos:
            subject, inputs = prepared(model, call, mode, device)
        kept = note_kept(subject, findings.caches, memos)
        copy_assigned(subject)
        check_answers(subject, {} if findings.surroundings is None else findings.surroundings.asked)
        if findings.outputs:
            _return_attributes(subject, findings.outputs)
        attributes, observer = Attributes(subject), Observer(model, subject)
        observer.watch.note_start(subject)
        if findings.surroundings is not None:
            observer.watch.outside = findings.surroundings.tensors
        try:
            watching = (memos, as_in_eager(findings.compiling is not None), attributes, observer, quiet())
            with contextlib.ExitStack() as stack:
                for context in (*watching, restored_transforms()):
                    stack.enter_context(context)
                program = torch.export.export(
                    subject,
                    inputs.args,
                    inputs.kwargs,
                    dynamic_shapes=_dynamic_shapes(subject, inputs, free),
                    strict=False,
                )
        except CaptureError:
            raise
        except Exception as error:
            failures[free] = error
            continue
        finally:
            check_surroundings(type(model), findings.surroundings)
        _forget(program)
        observer.check()
        check_attributes(type(model), attributes, findings.caches)
        if failures:
            sizes = free, first_line(next(iter(failures.values())))
        if _ATTEMPTS.index(observer.watch.sizes.left) > _ATTEMPTS.index(free):
            sizes = observer.watch.sizes.left, observer.watch.sizes.because
        left, because = sizes
        notes = [f"{mode} graph captured by export with {_SIZES[left]}, because: {because}"] if because else []
        values = [Read("buffer", "", name, frozen(value)) for name, value in observer.watch.values.asked.items()]
        return Exported(
            program,
            (*attributes.read(model), *findings.reads, *values),
            findings.outputs,
            (findings.grad or observer.watch.asked_requires_grad) is not None,
            sizes,
            tuple(notes),
            findings.functions,
            findings.calls_math,
            tuple(kept),
        )
    # Free sizes can fail where the model is fine. The error with fixed sizes is about the user's model alone.
    last = failures.get("none") or next(iter(failures.values()))
    told = next((error for error in failures.values() if is_data_dependent(error)), last)
    raise CaptureError(explain(model, told)) from told


def _audited(model: nn.Module, call: Call, mode: Mode, device: torch.device) -> tuple[Findings, Memos]:
    """Returns what a run of forward shows, and the functions with a cache that it may call."""
    scopes: list[dict[str, Any]] = []
    while True:
        memos = Memos(model, scopes)
        with memos:
            findings = audit(model, call, mode, lambda copied, inputs: prepared(copied, inputs, mode, device))
        functions = {} if findings.surroundings is None else findings.surroundings.functions
        reached = list({id(scope): scope for scope in functions.values()}.values())
        if not memos.missed(reached) or len(reached) <= len(scopes):
            return findings, memos
        scopes = reached


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
            # Free strides would become conditions on the memory of later inputs.
            plain = tensor.detach()
            plain = plain.contiguous() if plain.layout is torch.strided else plain
            return answering(plain, grad_answer(tensor))
        with fake_mode:
            return answering(torch.empty(tensor.shape, dtype=tensor.dtype, device=device), grad_answer(tensor))

    return in_mode(subject, mode), call.map_tensors(on_model_device)


def _return_attributes(subject: nn.Module, places: Sequence[Place]) -> None:
    """Makes forward return the values of attributes after its result."""
    forward = subject.forward

    @functools.wraps(forward)
    def returning(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        result = forward(*args, **kwargs)
        return result, [getattr(submodule(subject, path), name) for path, name in places]

    vars(subject)["forward"] = returning  # a part of the model may have this name too


def _forget(program: ExportedProgram) -> None:
    """Empties the cache of operators on fake tensors, which torch keeps for as long as the process lives."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    fake = next((value for value in values if isinstance(value, FakeTensor)), None)
    cache: Any = getattr(None if fake is None else fake.fake_mode.shape_env, "fake_tensor_cache", None)
    if cache is not None:
        cache.clear()


def captured_device(model: nn.Module, call: Call) -> torch.device:
    """Returns the device to capture for: that of the first parameter, buffer or input, and the CPU for meta tensors."""
    tensors = [*model.parameters(), *model.buffers(), *call.tensors]
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.device("cpu") if device.type == "meta" else device


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
