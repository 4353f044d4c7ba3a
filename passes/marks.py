"""Checks the marks of a graph, which say over which owners a gradient is averaged."""

from __future__ import annotations

from collections.abc import Iterator
from operator import getitem

from torch import fx

from sdp_compile import ops
from sdp_compile.errors import LoweringError
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.plan import Plan


def check_marks(graph: fx.Graph, plan: Plan, rank: int) -> None:
    """Checks that every shared parameter that is used passes a mark for each of its owner sets.

    Args:
        graph: The worker's graph, after `SyncGradients`.
        plan: Says which parameters are shared by which owners.
        rank: The worker.

    Raises:
        LoweringError: If a mark is missing: the gradient would not be averaged, and the other owners would wait for it.
    """
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name not in plan.state or not plan.is_trainable(name) or not node.users:
            continue
        needed = {
            piece.owners
            for piece in plan.pieces(name)
            if len(piece.owners) > 1 and is_member(rank, piece.owners) and piece.numel
        }
        missing = needed - set(_owners_on_the_way(node))
        if missing:
            raise LoweringError(
                f"The gradient of {name!r} does not pass a mark of the owners {min(missing)}: it would not be averaged "
                "over them. Keep the pass 'sync_gradients', and its nodes."
            )


def _owners_on_the_way(node: fx.Node) -> Iterator[tuple[int, ...]]:
    """Yields the owner sets of the marks that a parameter passes before it is used."""
    while len(node.users) == 1 and (user := next(iter(node.users))).target is ops.all_reduce_mean:
        yield user.kwargs["owners"]  # type: ignore[misc]
        position = user.args.index(node)
        node = next(item for item in user.users if item.target is getitem and item.args[1] == position)
