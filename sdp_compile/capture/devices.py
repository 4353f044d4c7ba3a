"""Makes a graph's device constants follow the module when it moves to another device."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.capture.regions import enter_autocast


def retarget_devices(graph: fx.Graph, source: torch.device, target: torch.device) -> None:
    """Replaces every device constant equal to ``source`` with ``target``, in place.

    Nested arguments and the device types of autocast regions are replaced too. Other devices than ``source`` stay,
    since the user named them explicitly. A device without an index equals any device of its type.
    """
    if source == target:
        return
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is enter_autocast:
            if node.args[0] == source.type:
                node.args = (target.type, *node.args[1:])
            continue
        node.args = _replace(node.args, source, target)
        node.kwargs = _replace(node.kwargs, source, target)


def _replace(value: Any, source: torch.device, target: torch.device) -> Any:
    return fx.node.map_aggregate(
        value, lambda leaf: target if isinstance(leaf, torch.device) and _same(leaf, source) else leaf
    )


def _same(one: torch.device, other: torch.device) -> bool:
    # A device without an index is the current one of its type, and a process uses one device per type.
    return one.type == other.type and (one.index == other.index or one.index is None or other.index is None)
