"""The captured model: one graph per mode over one set of parameters and buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.record import graph_from_record, graph_record

Mode = Literal["train", "eval"]
StateKind = Literal["parameter", "buffer", "constant"]


@dataclass(frozen=True)
class StateTensor:
    """What is known of one parameter, buffer or lifted constant before any weight exists.

    ``shape`` is that of the full tensor. A ``constant`` is a tensor that capture lifted out of the model's code;
    it is registered as a buffer outside of ``state_dict()``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: StateKind
    requires_grad: bool = False
    persistent: bool = True

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size of the full tensor in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Precision:
    """The dtypes that a graph was captured for: models read them, and a graph holds the casts that follow from them.

    ``casts`` says what parameters and buffers were converted to after `sdp_compile`: from one dtype to another, and by
    name where a tensor differs from the others of its dtype. ``inputs`` are the dtypes of the flat tensor inputs,
    ``autocast`` is the dtype of `torch.autocast`, None where it is off.
    """

    inputs: tuple[torch.dtype, ...] = ()
    autocast: torch.dtype | None = None
    casts: tuple[tuple[torch.dtype | str, torch.dtype], ...] = ()

    def cast(self, name: str, captured: torch.dtype) -> torch.dtype:
        """The dtype of a parameter or buffer that was captured with another."""
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
    """What capture knows of one flat tensor input: its name for messages, its example shape and which sizes are fixed.

    ``dims`` holds an integer for a fixed size and a name for a free one; sizes of one name are equal in every call.
    """

    name: str
    dims: tuple[int | str | None, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """One mode of the model as an FX graph of ATen calls.

    Placeholders are the flattened user inputs, in the order of ``in_spec``; a parameter, buffer or constant is one
    ``get_attr`` node whose target is its canonical name; the output node returns the flat list of ``out_spec``.
    Nodes keep ``meta["val"]`` (fake tensors of the full model), ``meta["nn_module_stack"]`` and
    ``meta["stack_trace"]``.

    ``in_spec`` describes ``(args, kwargs)``. ``constants`` maps the index of a flat input that is no tensor to the
    value that capture specialised it to. ``inputs`` describes each flat input that is a tensor. ``guards`` are Python
    conditions on the sizes of ``L[name]``, the argument called ``name``, under which the graph is the model's.
    ``precision`` tells the dtypes that the graph is for.
    """

    mode: Mode
    graph: fx.Graph
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    constants: Mapping[int, Any]
    inputs: Mapping[int, InputSpec] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    precision: Precision = field(default_factory=Precision)

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
    """A model as captured: programs, state and a weightless copy of the original.

    ``state`` maps canonical names, in the order of the original model (parameters, buffers, constants), to their
    description; ``aliases`` maps every name of the original ``state_dict()``, tied ones included, to the canonical.
    ``constants`` holds the values of lifted constants. ``skeleton`` is the user's model with its parameters and
    persistent buffers on the meta device. ``notes`` are remarks for the report: what capture had to give up.
    ``device`` is the one that the graphs' device constants name. ``example`` holds the positional and keyword arguments
    of capture, tensors on the meta device.
    """

    programs: Mapping[Mode, Program]
    state: Mapping[str, StateTensor]
    aliases: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    skeleton: nn.Module
    training: bool
    notes: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    example: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((), {}))
