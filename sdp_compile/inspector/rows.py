"""A program as rows of plain data, one per node worth showing."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from sdp_compile import ops
from sdp_compile.inspector.naming import Naming, target_text
from sdp_compile.inspector.plain import place
from sdp_compile.inspector.replay import Step
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.sizes import Sizes
from sdp_compile.ir.source import module_path, source_line
from sdp_compile.ops import narrow
from sdp_compile.structure.layout import kept_size

Kind = Literal["input", "state", "compute", "output", "mask", "sync", "rescale", "drop", "join", "size", "rewritten"]

_KINDS: Mapping[Any, Kind] = {
    ops.all_reduce_mean: "sync",
    ops.mask_parameter: "mask",
    ops.mask_gradient: "mask",
    ops.rescale: "rescale",
    narrow.join: "join",
    operator.mul: "size",
    operator.floordiv: "size",
}

_CALL_NUMBER = re.compile(r"@\d+")


@dataclass(frozen=True)
class Row:
    """One node of a graph.

    Attributes:
        code: The node's call as Python code.
        inputs: Names of the rows that it reads.
        state: Names of the state tensors in its code.
        full_shape: Shape in the full model at the example's input size; None if the result is not a tensor.
        shape: Shape on the worker, likewise.
        resized: Whether the two shapes differ.
        source, line: File and line of the user's code, and the code there.
    """

    name: str
    module: str
    module_type: str
    kind: Kind
    target: str
    code: str
    inputs: tuple[str, ...]
    state: tuple[str, ...]
    full_shape: tuple[int, ...] | None
    shape: tuple[int, ...] | None
    dtype: str
    resized: bool
    source: str
    line: str


@dataclass(frozen=True, eq=False)
class Listing:
    """A program as rows: the computing rows in order, and the rows of each state tensor.

    ``calls`` holds what each row computes, which can be compared between programs.
    """

    computing: tuple[Row, ...]
    state: Mapping[str, tuple[Row, ...]]
    calls: Mapping[str, Any]

    def rows(self) -> Iterator[Row]:
        """Yields all rows in reading order, each state tensor right before its first use."""
        waiting = dict(self.state)
        for row in self.computing:
            if row.kind != "sync":
                yield from (one for name in row.state for one in waiting.pop(name, ()))
            if row.kind == "output":
                yield from (one for unused in waiting.values() for one in unused)
            yield row


def original_calls(step: Step) -> dict[str, Any]:
    """Returns what each node of a captured program computes."""
    naming = Naming(step.program.graph)
    return {node.name: naming.call(node) for node in step.program.graph.nodes}


@dataclass(frozen=True, eq=False)
class Outline:
    """What each row computes and the worker's shape of each state tensor: enough to count changes."""

    calls: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...] | None]


def outline(subject: Subject, step: Step, original: Mapping[str, Any], rank: int) -> Outline:
    """Returns the outline of one step, which is much faster than its rows."""
    return _Lister(subject, step, original, rank).outline()


def listing(subject: Subject, step: Step, original: Mapping[str, Any], rank: int) -> Listing:
    """Returns the rows of one step; ``original`` holds the captured program's calls, to see what passes changed."""
    return _Lister(subject, step, original, rank).list()


def _reading_order(node: fx.Node) -> tuple[int, int]:
    """Inputs, then the all-reduces in the order in which they are issued, then the rest in graph order.

    Left in their place in the graph, the all-reduces would keep alike layers from folding.
    """
    if node.op == "placeholder":
        return 0, 0
    bucket = node.kwargs.get("bucket") if node.target is ops.all_reduce_mean else None
    return (1, bucket) if isinstance(bucket, int) else (2, 0)


class _Lister:
    def __init__(self, subject: Subject, step: Step, original: Mapping[str, Any], rank: int) -> None:
        self.subject, self.step, self.original = subject, step, original
        self.nodes: list[fx.Node] = list(step.program.graph.nodes)
        self.naming = Naming(step.program.graph)
        self.kept = subject.plan.kept_units(rank) if step.is_sliced else {}
        self.sizes = Sizes()
        self.modules: dict[fx.Node, str] = {}

    def outline(self) -> Outline:
        shown = [node for node in self.nodes if self._is_shown(node)]
        calls = {node.name: self.naming.call(node) for node in shown}
        return Outline(calls, {node.name: self._shapes(node)[1] for node in shown if node.op == "get_attr"})

    def _is_shown(self, node: fx.Node) -> bool:
        """Whether a node has a row. Tensors behind an all-reduce and the buffers of a mask have none."""
        whole = self.naming.state_of(node)
        kept = node is whole and node.name in self.original
        return whole is None or kept or node.target in ops.MASKS

    def list(self) -> Listing:
        self.modules = self._modules()
        computing: list[Row] = []
        state: dict[str, tuple[Row, ...]] = {}
        for node in sorted(filter(self._is_shown, self.nodes), key=_reading_order):
            whole = self.naming.state_of(node)
            if whole is None:
                computing.append(self._row(node))
            else:
                state[str(whole.target)] = (*state.get(str(whole.target), ()), self._row(node))
        return Listing(tuple(computing), state, {node.name: self.naming.call(node) for node in self.nodes})

    def _row(self, node: fx.Node) -> Row:
        full, shape, dtype = self._shapes(node)
        source, line = place(source_line(node))
        module = self.modules[node]
        return Row(
            name=node.name,
            module=module,
            module_type=self.subject.module_types.get(module, ""),
            kind=self._kind(node),
            target=target_text(node),
            code=self.naming.code(node),
            inputs=tuple(dict.fromkeys(self._row_name(one) for one in node.all_input_nodes)),
            state=tuple(str(one.target) for one in self.naming.states(node)),
            full_shape=full,
            shape=shape,
            dtype=dtype,
            resized=full != shape,
            source=source,
            line=line,
        )

    def _kind(self, node: fx.Node) -> Kind:
        simple: Mapping[str, Kind] = {"placeholder": "input", "get_attr": "state", "output": "output"}
        if node.op in simple:
            return simple[node.op]
        if node.name not in self.original or getattr(node.target, "__module__", "") == ops.__name__:
            # All other inserted nodes work on parts of parameters or stand in for a dropped branch.
            return _KINDS.get(node.target, "drop" if self.subject.plan.masking == "forward" else "join")
        return "compute" if self.original[node.name] == self.naming.call(node) else "rewritten"

    def _row_name(self, node: fx.Node) -> str:
        """The row that shows a node. Tensors behind an all-reduce are shown by it."""
        hidden = self.naming.state_of(node) is not None and node.target is operator.getitem
        return str(node.args[0]) if hidden else node.name

    def _shapes(self, node: fx.Node) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, str]:
        """Full shape, worker's shape and dtype of a node's result."""
        value, full = node.meta.get("val"), node.meta.get("full_val", node.meta.get("val"))
        if not isinstance(value, torch.Tensor) or not isinstance(full, torch.Tensor):
            return None, None, ""
        whole = self.sizes.example(full)
        dtype = str(value.dtype).removeprefix("torch.")
        if "full_val" in node.meta:  # the program is verified: this is the shape that the graph yields
            return whole, self.sizes.example(value), dtype
        layouts = node.meta.get("layouts")
        if not layouts or len(layouts) != len(whole):
            return whole, whole, dtype
        sizes = zip(whole, layouts, strict=True)
        # The layout's own size differs from the example's if it contains a free size.
        local = tuple(size * kept_size(layout, self.kept) // layout.size if size else 0 for size, layout in sizes)
        return whole, local, dtype

    def _modules(self) -> dict[fx.Node, str]:
        """The module of each node. A node without a recorded module belongs to the one that uses it first."""
        first_use: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if node.target is not ops.all_reduce_mean:
                for one in {*node.all_input_nodes, *self.naming.states(node)}:
                    if self.naming.state_of(node) is not one:
                        first_use.setdefault(one, node)
        modules: dict[fx.Node, str] = {}
        for node in reversed(self.nodes):
            user = first_use.get(node)
            if node.meta.get("nn_module_stack") or user is None or node.target is ops.all_reduce_mean:
                modules[node] = self._known_module(node)
            else:
                modules[node] = "" if node.op == "placeholder" else modules[user]
        return modules

    def _known_module(self, node: fx.Node) -> str:
        """The path of the innermost module around a node. Export numbers repeated calls and adds frames of its own."""
        path = _CALL_NUMBER.sub("", module_path(node))
        while path and path not in self.subject.module_types:
            path = path.rpartition(".")[0]
        return path
