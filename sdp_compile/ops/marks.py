"""The marks of the places in backward at which gradients are complete."""

from __future__ import annotations

import torch


def all_reduce_mean(*parameters: torch.Tensor, bucket: int, owners: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Returns its parameters, and marks that their gradients are averaged over ``owners`` as one bucket.

    The node is placed before the first use of any of the parameters, so backward passes it when all of their gradients
    are complete. While backward runs, the module's gradient engine issues its buckets in ascending number, the same
    order on all workers. In eager mode it does so when hooks report the gradients of the parameters, and this node does
    nothing; in a compiled graph, when backward passes the mark of the round (`complete_round`). The engine averages
    ``.grad`` and not the gradient that flows through this node, because several backward passes may accumulate before
    one reduction.

    Args:
        parameters: The parameters of the bucket.
        bucket: The number of the bucket.
        owners: The workers that average it.
    """
    return parameters


def complete_round(*parameters: torch.Tensor, round: int) -> tuple[torch.Tensor, ...]:
    """Returns its parameters, and marks where the gradients of all buckets of a round are complete in backward.

    It takes the place of the buckets' marks where a graph is executed. In a compiled graph the gradients are handed to
    the engine here (`sdp_compile.runtime.gradients.compiled`).

    Args:
        parameters: The parameters of the round.
        round: The number of the round.
    """
    return parameters
