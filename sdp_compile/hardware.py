"""Machines in the units of their data sheets, by name or field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Hardware:
    """The machines as users describe them; the defaults resemble nodes of eight H100.

    Args:
        nodes: number of machines; each has equally many workers.
        intra_bandwidth: GB/s of a worker inside its node.
        intra_latency: microseconds of a message inside a node.
        inter_bandwidth: GB/s of a node to other nodes.
        inter_latency: microseconds of a message between nodes.
        tflops: TFLOP/s that a worker achieves.
        update: GB/s of parameters that AdamW updates; it moves seven times as much.
        copy: GB/s that a worker copies in its memory; it moves twice as much.
        cores: cores of a node that its workers share; None for one processor per worker.
        algorithm: of collectives; ``best`` takes the cheaper.
        memory: GB of a worker, to tell whose parameters, gradients and AdamW state do not fit.
    """

    nodes: int = 1
    intra_bandwidth: float = 300.0
    intra_latency: float = 10.0
    inter_bandwidth: float = 50.0
    inter_latency: float = 20.0
    tflops: float = 30.0
    update: float = 400.0
    copy: float = 1400.0
    cores: int | None = None
    algorithm: Literal["ring", "tree", "best"] = "best"
    memory: float = 80.0


HARDWARE: Mapping[str, Mapping[str, float]] = {
    "default": {},
    # DGX H100: NVIDIA's datasheet has 494 TFLOP/s in TF32 without sparsity, 80 GB and 3.35 TB/s of memory, 450 GB/s of
    # NVLink in each direction, and eight ports of 400 Gb/s per node. Computing reaches the 40% of the peak that "The
    # Llama 3 Herd of Models" (arXiv 2407.21783, table 4) reports, NVLink and memory the rates of the defaults.
    "h100": {"tflops": 200.0, "inter_bandwidth": 400.0},
    "h100-10gbe": {"tflops": 200.0, "inter_bandwidth": 1.25, "inter_latency": 50.0},
}
"""Nodes by name: what differs from the defaults, which are one tenth as fast and have one port per node."""
