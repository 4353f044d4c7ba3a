"""Which nodes of a captured graph lie in a region of `torch.utils.checkpoint`."""

from __future__ import annotations

import torch
from torch import fx

from sdp_compile.capture.observe import CHECKPOINT

REGION = "checkpoint"
"""Key of ``node.meta`` for the number of the region that the node is recomputed with in backward."""

_COPY = torch.ops.aten.copy_.default


def mark_regions(graph: fx.Graph) -> None:
    """Turns the annotations that `Observer` made into ``meta["checkpoint"]``, in place.

    Writes to state get no number. Export puts them at the end of the graph, and they must happen only once.
    """
    for node in graph.nodes:
        number = (node.meta.pop("custom", None) or {}).get(CHECKPOINT)
        if number is not None and node.op == "call_function" and node.target is not _COPY:
            node.meta[REGION] = number


def region_of(node: fx.Node) -> int | None:
    """Returns the number of the checkpoint region that a node lies in, or None."""
    number: int | None = node.meta.get(REGION)
    return number
