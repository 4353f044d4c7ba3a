"""Nodes: machines with fast links inside, on which equally many neighbouring workers run.

Worker w is on node w // ``node_size``. Where there are nodes for all cells, the workers of a node are in one cell: what
they add up leaves the node as parts of one sum. Otherwise neighbouring workers are in different cells.
"""

from __future__ import annotations

from sdp_compile.errors import PolicyError


def checked_node_size(node_size: int | None, workers: int) -> int:
    """Returns the number of workers of each node; all of them if ``node_size`` is None.

    Raises:
        PolicyError: The workers do not fill nodes of this size.
    """
    if node_size is None:
        return workers
    if workers % node_size:
        fitting = [size for size in range(1, workers + 1) if workers % size == 0]
        near = [
            *[size for size in fitting if size < node_size][-1:],
            *[size for size in fitting if size > node_size][:1],
        ]
        raise PolicyError(
            f"node_size={node_size} does not divide the {workers} workers into nodes of equal size. Use "
            f"{' or '.join(map(str, near))}, or another number of workers."
        )
    return node_size


def stride_of(workers: int, slots: int, node_size: int) -> int:
    """Returns how many neighbouring workers share a cell: worker w is in cell (w // stride) mod ``slots``.

    The stride is the size of a node if the nodes can be dealt evenly to the cells, else 1. With another number of nodes
    some units would have more owners than others.
    """
    return node_size if (workers // node_size) % slots == 0 else 1
