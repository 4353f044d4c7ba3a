"""Device constants of a graph follow the module when it is moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.capture.regions import enter_autocast


def retarget_devices(graph: fx.Graph, source: torch.device, target: torch.device) -> None:
    """Replaces, in place, every device constant equal to ``source`` by ``target``.

    Looks into nested arguments, and at the device type of autocast regions. Devices other than ``source`` are the
    user's explicit choice and stay. ``cpu`` and ``cpu:0``, ``cuda`` and the current CUDA device, count as equal.
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
    # A device without an index is the current one of its type; a process uses one device per type.
    return one.type == other.type and (one.index == other.index or one.index is None or other.index is None)
