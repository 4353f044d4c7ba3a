"""Mark in the graph which gradients are averaged over which owners."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from sdp_compile import ops
from sdp_compile.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.passes.base import Lowering, Pass, copy_program
from sdp_compile.program import Program


@dataclass(frozen=True)
class SyncGradients(Pass):
    """Inserts one `sdp_compile.ops.all_reduce_mean` node per bucket of this rank, before the first computation.

    A parameter whose elements belong to several owner sets runs through one node per owner set.
    """

    name: ClassVar[str] = "sync_gradients"
    bucket_bytes: int = DEFAULT_BUCKET_BYTES

    def run(self, program: Program, context: Lowering) -> Program:
        program = copy_program(program)
        graph = program.graph
        current = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}
        sources = dict(current)
        original_users = {name: list(node.users) for name, node in current.items()}
        anchor = _first_computation(graph)
        with graph.inserting_before(anchor):
            for bucket in context.plan.buckets(context.rank, self.bucket_bytes):
                names = [name for name in dict.fromkeys(piece.name for piece in bucket.pieces) if name in current]
                if not names:
                    continue
                node = graph.call_function(
                    ops.all_reduce_mean,
                    tuple(current[name] for name in names),
                    {"bucket": bucket.number, "owners": bucket.owners},
                )
                for position, name in enumerate(names):
                    item = graph.call_function(operator.getitem, (node, position))
                    item.meta = {k: v for k, v in current[name].meta.items() if k != "rewrites"}
                    current[name] = item
        for name, users in original_users.items():
            for user in users:
                user.replace_input_with(sources[name], current[name])
        graph.lint()
        return program


def _first_computation(graph: fx.Graph) -> fx.Node:
    """The first node that computes; all parameters are moved before it, so that marks can stand at the head."""
    anchor: fx.Node = next(node for node in graph.nodes if node.op in {"call_function", "output"})
    for node in list(graph.nodes):
        if node.op in {"get_attr", "placeholder"} and anchor < node:
            anchor.prepend(node)
    return anchor
