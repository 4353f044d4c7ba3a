"""Marks which gradients are averaged over which owners, and where they are complete in backward."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from sdp_compile import ops
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES

_ROUND = "sdp_compile_round"
"""The key in a mark's metadata of the number of its bucket's round."""


@dataclass(frozen=True)
class SyncGradients(Pass):
    """Inserts one mark, a `sdp_compile.ops.all_reduce_mean` node, for each gradient bucket of the worker.

    The outputs stay the same. A mark returns its parameters as they are, and all their uses read its results. The pass
    promises:

    - Each trained parameter that is used passes one mark for each owner set of its elements that has two or more
      workers, this one among them.
    - A mark stands directly before the first use of any of its parameters, so backward passes it as soon as the
      gradients of all of them are complete.
    - Backward passes the marks in ascending order of buckets, the same order on all owners.

    Placeholders, parameters and buffers move before the first computation, so that a mark can stand anywhere.

    Args:
        bucket_bytes: Upper bound of the size of one bucket in bytes. A larger piece of a parameter is a bucket of its
            own.
    """

    name: ClassVar[str] = "sync_gradients"
    bucket_bytes: int = DEFAULT_BUCKET_BYTES

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        graph = program.graph
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        _move_inputs_to_the_head(graph)
        marks = []
        for bucket in context.plan.buckets(context.rank, self.bucket_bytes):
            names = [name for name in dict.fromkeys(piece.name for piece in bucket.pieces) if name in used]
            if names and any(piece.numel for piece in bucket.pieces):
                kwargs = {"bucket": bucket.number, "owners": bucket.owners}
                marks.append(_Mark(ops.all_reduce_mean, names, kwargs, {_ROUND: bucket.round}))
        _insert(graph, marks)
        return program


def by_rounds(program: Program) -> Program:
    """Returns a program to execute, with one mark for all buckets of a round: they are packed at once.

    Each mark of a compiled graph costs a call of Python in backward. A round's mark,
    `sdp_compile.ops.complete_round`, stands directly before the first use of any of its parameters.

    Args:
        program: A program with the marks of `SyncGradients`; it stays as it is.

    Returns:
        The new program; the same one if it has no such marks.
    """
    old = [node for node in program.graph.nodes if node.target is ops.all_reduce_mean]
    if not old or any(_ROUND not in node.meta for node in old):
        return program
    program = copy_program(program)
    graph = program.graph
    buckets: list[tuple[int, int, list[str]]] = []
    for node in [node for node in graph.nodes if node.target is ops.all_reduce_mean]:
        names = [str(parameter.target) for parameter in node.all_input_nodes]  # earlier marks have been taken out
        for item in list(node.users):
            item.replace_all_uses_with(node.args[item.args[1]])
            graph.erase_node(item)
        graph.erase_node(node)
        buckets.append((int(node.kwargs["bucket"]), node.meta[_ROUND], names))
    rounds: dict[int, dict[str, None]] = {}
    for _, number, names in sorted(buckets):
        rounds.setdefault(number, {}).update(dict.fromkeys(names))
    _insert(graph, [_Mark(ops.complete_round, list(names), {"round": at}) for at, names in rounds.items()])
    return program


@dataclass(frozen=True)
class _Mark:
    """A node to insert: what it calls, with which parameters and other arguments, and its metadata."""

    target: Callable[..., Any]
    names: list[str]
    kwargs: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)


def _insert(graph: fx.Graph, marks: Sequence[_Mark]) -> None:
    """Inserts marks in the order in which backward passes them, and lets all uses of their parameters read them."""
    current = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
    sources = dict(current)
    original_users = {name: list(node.users) for name, node in current.items()}
    anchors = _anchors([mark.names for mark in marks], original_users)
    for mark, anchor in reversed(list(zip(marks, anchors, strict=True))):
        with graph.inserting_before(anchor):
            node = graph.call_function(mark.target, tuple(current[name] for name in mark.names), mark.kwargs)
            node.meta.update(mark.meta)
            for position, name in enumerate(mark.names):
                item = graph.call_function(operator.getitem, (node, position))
                item.meta = inherited(current[name])
                current[name] = item
    for name, users in original_users.items():
        for user in users:
            user.replace_input_with(sources[name], current[name])


def _anchors(marks: Sequence[list[str]], users: Mapping[str, list[fx.Node]]) -> list[fx.Node]:
    """For each mark, in the order of backward, the first node that needs any of its parameters. It stands before it.

    An earlier mark also needs its parameters, and stands where its own anchor is.
    """
    needed = {name: min(of_name) for name, of_name in users.items() if of_name}
    anchors = []
    for names in marks:
        anchor = min(needed[name] for name in names)
        anchors.append(anchor)
        needed.update(dict.fromkeys(names, anchor))
    return anchors


def _move_inputs_to_the_head(graph: fx.Graph) -> None:
    """Moves all placeholders, parameters and buffers before the first computation."""
    anchor: fx.Node = next(node for node in graph.nodes if node.op in {"call_function", "output"})
    for node in list(graph.nodes):
        if node.op in {"get_attr", "placeholder"} and anchor < node:
            anchor.prepend(node)
