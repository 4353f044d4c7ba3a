"""Backward masking: makes the graph compute the full model with parameters in two parts, owned and unowned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ops import narrow
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.unowned import Unowned
from sdp_compile.structure.operators import lookup
from sdp_compile.structure.operators.parts import Channels, Split


@dataclass(frozen=True)
class SplitParameters(Pass):
    """Reads each parameter that the worker does not own whole in two parts: a parameter, and a buffer with the rest.

    Linear layers, convolutions, embeddings and layer norms compute with the two parts. They compute only the gradient
    of the owned part, and save only what it needs. Other operators read the parts joined. Batch and group norms lose
    nothing by it, since the gradient of their input needs the same sums. A parameter of which the worker owns nothing
    becomes a buffer, without a gradient. The outputs stay the same.
    """

    name: ClassVar[str] = "split_parameters"
    masking: ClassVar[Masking | None] = "backward"
    lowering: ClassVar[LoweringKind | None] = "sliced"

    def run(self, program: Program, context: PassContext) -> Program:
        parts = context.holdings.unowned
        program = copy_program(program)
        for node in list(program.graph.nodes):
            if node.op == "get_attr" and str(node.target) in parts:
                _split(node, parts[str(node.target)])
        return program


def _split(node: fx.Node, parts: tuple[Unowned, ...]) -> None:
    if parts[0].dim is None:
        node.target = parts[0].name
        return
    users, full_meta = list(node.users), dict(node.meta)
    node.meta.pop("layouts", None)  # those of the full parameter
    graph = node.graph
    with graph.inserting_after(node):
        buffers = [graph.get_attr(part.name) for part in parts]
    for user in users:
        owned = node
        for part, buffer in zip(parts, buffers, strict=True):
            assert part.dim is not None
            split = Split(owned, buffer, part.dim, Channels(part.runs))
            if part is not parts[-1]:  # of several cut dimensions, the parts stay apart along the last one only
                with graph.inserting_before(user):
                    owned = _joined(split, {})
        _use(user, node, split, full_meta)


def _use(user: fx.Node, full: fx.Node, split: Split, meta: Mapping[str, Any]) -> None:
    """Makes ``user`` read the parts instead of the full tensor."""
    alone = _count(user, full) == 1
    with user.graph.inserting_before(user):
        known = lookup(user.target)
        if alone and known.view is not None:
            _through(user, split, known.view(user, split.dim))
            return
        call = known.narrow(user, full, split) if alone and known.narrow is not None else None
        if call is None:
            # Each reader has its own join, directly before it, so that the full tensor does not outlive its use.
            user.replace_input_with(full, _joined(split, meta))
        else:
            user.target, user.args, user.kwargs = *call, {}
            user.meta.pop("rewrites", None)


def _count(user: fx.Node, read: fx.Node) -> int:
    found: list[fx.Node] = []
    fx.node.map_arg((user.args, user.kwargs), lambda arg: found.append(arg) if arg is read else None)
    return len(found)


def _joined(split: Split, meta: Mapping[str, Any]) -> fx.Node:
    node = split.owned.graph.call_function(narrow.join, (split.owned, split.rest, split.dim, split.runs))
    node.meta = {key: value for key, value in meta.items() if key != "rewrites"}
    return node


def _through(view: fx.Node, split: Split, dim: int) -> None:
    """Applies ``view``, a transposition or a cast, to each part; ``dim`` is where the parts of its result meet."""
    halves = []
    for part in (split.owned, split.rest):
        half = view.graph.call_function(view.target, (part, *view.args[1:]), dict(view.kwargs))  # type: ignore[arg-type]
        half.meta = {key: value for key, value in view.meta.items() if key not in ("rewrites", "layouts")}
        halves.append(half)
    for user in list(view.users):
        _use(user, view, Split(halves[0], halves[1], dim, split.channels), view.meta)
    if not view.users:
        view.graph.erase_node(view)
