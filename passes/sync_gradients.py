"""Marks which gradients are averaged over which owners, and where they are complete in backward."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sdp_compile import ops
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES


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
        current = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
        sources = dict(current)
        original_users = {name: list(node.users) for name, node in current.items()}
        _move_inputs_to_the_head(graph)
        buckets = {}
        for bucket in context.plan.buckets(context.rank, self.bucket_bytes):
            names = [name for name in dict.fromkeys(piece.name for piece in bucket.pieces) if name in current]
            if names:
                buckets[bucket] = names
        anchors = _anchors(list(buckets.values()), original_users)
        for (bucket, names), anchor in reversed(list(zip(buckets.items(), anchors, strict=True))):
            with graph.inserting_before(anchor):
                node = graph.call_function(
                    ops.all_reduce_mean,
                    tuple(current[name] for name in names),
                    {"bucket": bucket.number, "owners": bucket.owners},
                )
                for position, name in enumerate(names):
                    item = graph.call_function(operator.getitem, (node, position))
                    item.meta = inherited(current[name])
                    current[name] = item
        for name, users in original_users.items():
            for user in users:
                user.replace_input_with(sources[name], current[name])
        return program


def _anchors(buckets: list[list[str]], users: Mapping[str, list[fx.Node]]) -> list[fx.Node]:
    """For each bucket in ascending order, the first node that needs any of its parameters. Its mark stands before it.

    A mark of a lower bucket also needs its parameters, and stands where its own anchor is.
    """
    needed = {name: min(of_name) for name, of_name in users.items() if of_name}
    anchors = []
    for names in buckets:
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
