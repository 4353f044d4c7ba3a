"""The captured model: one graph per mode over one set of parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.kept import Kept
from sdp_compile.ir.numbers import Numbers
from sdp_compile.ir.reads import Read
from sdp_compile.ir.record import graph_from_record, graph_record

Mode = Literal["train", "eval"]
FORWARD = "forward"
StateKind = Literal["parameter", "buffer", "constant"]


def key_of(mode: Mode, method: str = FORWARD) -> str:
    """Returns the key of a program: its mode, and for another method than forward also that, as ``train: encode``."""
    return mode if method == FORWARD else f"{mode}: {method}"


@dataclass(frozen=True)
class StateTensor:
    """The description of one parameter, buffer or lifted constant, without its values.

    Attributes:
        shape: The shape of the full tensor.
        dtype: Its dtype at capture.
        kind: A ``constant`` is a tensor that capture lifted out of the model's code. It becomes a buffer outside
            ``state_dict()``.
        requires_grad: Whether the parameter is trained.
        persistent: Whether the tensor is part of ``state_dict()``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: StateKind
    requires_grad: bool = False
    persistent: bool = True

    @property
    def numel(self) -> int:
        """Number of elements of the full tensor."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size of the full tensor in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Precision:
    """The dtypes that a graph was captured for. A graph holds the casts that follow from them.

    Attributes:
        inputs: The dtypes of the flat tensor inputs.
        autocast: The dtype of `torch.autocast`, or None if it is off.
        casts: How parameters and buffers were converted after `sdp_compile`: pairs of an old and a new dtype, and
            pairs of a name and a dtype for tensors that differ from the others of their old dtype.
    """

    inputs: tuple[torch.dtype, ...] = ()
    autocast: torch.dtype | None = None
    casts: tuple[tuple[torch.dtype | str, torch.dtype], ...] = ()

    def cast(self, name: str, captured: torch.dtype) -> torch.dtype:
        """Returns the dtype that the tensor ``name``, captured as ``captured``, has in this precision."""
        casts = dict(self.casts)
        return casts.get(name, casts.get(captured, captured))

    def __str__(self) -> str:
        parts = [f"{_text(old)} as {_text(new)}" for old, new in self.casts]
        parts += [] if self.autocast is None else [f"autocast to {_text(self.autocast)}"]
        return ", ".join([*parts, f"inputs of {', '.join(map(_text, self.inputs)) or 'no dtype'}"])


def _text(value: torch.dtype | str) -> str:
    return repr(value) if isinstance(value, str) else str(value).removeprefix("torch.")


@dataclass(frozen=True)
class InputSpec:
    """The description of one flat tensor input.

    Attributes:
        name: The name to use in messages.
        dims: For each dimension a fixed size, the name of a free size, or None for a formula of other sizes. Sizes
            with one name are equal in every call.
        example: The shape at capture.
    """

    name: str
    dims: tuple[int | str | None, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """One mode of the model as an FX graph of ATen calls.

    The placeholders are the flat user inputs, and then the numbers that may change. Each parameter, buffer or constant
    is one ``get_attr`` node whose target is its canonical name. The output node returns a flat list. Nodes keep
    ``meta["val"]`` (fake tensors of the full model), ``meta["nn_module_stack"]`` and ``meta["stack_trace"]``.

    Attributes:
        mode: The mode that was captured.
        graph: The graph.
        in_spec: How ``(args, kwargs)`` flatten to the placeholders.
        out_spec: How the flat list of outputs becomes the model's result.
        constants: For each flat input that is not a tensor, by index, the value that the graph is specialised to.
        inputs: The description of each flat input that is a tensor, by index.
        guards: Python conditions on the shapes of the tensor inputs, called by their names, such as
            ``x.shape[1] != 7``. The graph computes what the model computes only where they hold.
        precision: The dtypes that the graph is for.
        reads: What forward read besides tensors; the graph holds these values.
        asks_grad: Whether forward asks if gradients are enabled or if its inputs require gradients.
        grad: The answers that it got: whether gradients are enabled, and for each tensor input 0 if it
            requires none, 1 if it does as a leaf, 2 if it is a result that does.
        assigned: The attributes, as module path and name, that forward assigns tensors to. Their values are the last
            outputs of the graph.
        assigned_spec: How these outputs become the list of the attributes' values.
        numbers: The numbers that the graph takes after the user's inputs; None if it takes none.
        method: The method of the model that was captured.
        kept: What forward keeps by key at its first call; the graph computes it at each call.
    """

    mode: Mode
    graph: fx.Graph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    constants: Mapping[int, Any]
    inputs: Mapping[int, InputSpec] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    precision: Precision = field(default_factory=Precision)
    reads: tuple[Read, ...] = ()
    asks_grad: bool = False
    grad: tuple[int, ...] = ()
    assigned: tuple[tuple[str, str], ...] = ()
    assigned_spec: pytree.TreeSpec | None = None
    numbers: Numbers | None = None
    method: str = FORWARD
    kept: tuple[Kept, ...] = ()

    @property
    def key(self) -> str:
        """The program's key among those of its capture."""
        return key_of(self.mode, self.method)

    def __getstate__(self) -> dict[str, Any]:
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "graph": graph_record(self.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, graph_from_record(value) if name == "graph" else value)


def copy_program(program: Program) -> Program:
    """Returns the program with a graph of its own, whose nodes have the same names and copies of the metadata.

    Args:
        program: The program, which is not changed.
    """
    graph = fx.Graph(tracer_cls=program.graph._tracer_cls)
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if copy.name != node.name:
            copy._rename(node.name)
    graph._codegen = program.graph._codegen
    return replace(program, graph=graph)


@dataclass(frozen=True)
class Capture:
    """A captured model: its programs, the description of its state, and a copy of the original without weights.

    Attributes:
        programs: The program of each mode, and of each mode of further methods, by `key_of`.
        state: The description of each parameter, buffer and constant by canonical name, in the original's order.
        aliases: The canonical name for each name in the original ``state_dict()``, including the names of tied tensors.
        constants: The values of lifted constants, by name.
        skeleton: The user's model with its parameters and persistent buffers on the meta device.
        training: Whether the model was in training mode.
        notes: Remarks for the report on what capture had to give up.
        device: The device that the graphs' device constants name.
        examples: The positional and keyword arguments of capture for each method, with tensors on the meta device.
        kept: What calls of the compiled model have kept by key until now.
    """

    programs: Mapping[str, Program]
    state: Mapping[str, StateTensor]
    aliases: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    skeleton: nn.Module
    training: bool
    notes: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    examples: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=lambda: {FORWARD: ((), {})})
    kept: tuple[Kept, ...] = ()
