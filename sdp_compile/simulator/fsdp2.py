"""A training step of FSDP2, which gathers parameters and reduce-scatters gradients block by block."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdp_compile.simulator.exchanges import Exchanges
from sdp_compile.simulator.timeline import Exchange

_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Unit:
    """What `fully_shard` wraps: a block, or the ``root`` with all parameters outside of blocks."""

    name: str
    nbytes: int
    root: bool


def units(exchanges: Exchanges) -> list[Unit]:
    """Returns the root and the blocks. A parameter's block is its name up to the first number, as in ``layers.0``."""
    state = exchanges.plan.state
    sizes: dict[str, int] = {"": 0}
    for name in exchanges.order:
        match = _BLOCK.match(name)
        sizes.setdefault(match[1] if match else "", 0)
        sizes[match[1] if match else ""] += state[name].nbytes
    return [Unit(name, nbytes, not name) for name, nbytes in sizes.items() if nbytes]


@dataclass(frozen=True)
class Step:
    """When backward and its communication end, in seconds, and all collectives of the step."""

    end: float
    collectives: tuple[Exchange, ...]


def step(exchanges: Exchanges, forward: float, backward: float) -> Step:
    """Simulates forward and backward.

    With overlap, the next block is gathered while the current one computes (FSDP2 prefetches one block ahead), and
    gradients are reduce-scattered during the backward of the next block. All collectives take turns on the link. The
    root is gathered once, blocks once for forward and once for backward.

    Args:
        exchanges: The collectives of the plan on the cluster.
        forward: Seconds that a worker computes in forward; units share them in proportion to their bytes.
        backward: Seconds in backward, likewise.
    """
    everything = units(exchanges)
    total = sum(unit.nbytes for unit in everything) or 1
    gathers = {unit.name: exchanges.of("all_gather", unit.nbytes, exchanges.everyone) for unit in everything}
    scatters = {unit.name: exchanges.of("reduce_scatter", unit.nbytes, exchanges.everyone) for unit in everything}
    overlaps = exchanges.cluster.overlaps
    link = 0.0
    computed = [0.0, 0.0]  # end times of the last unit and of the one before it
    done: list[Exchange] = []

    def communicate(exchange: Exchange, ready: float) -> float:
        nonlocal link
        link = max(link, ready) + exchange.seconds
        done.append(exchange)
        return link

    def compute(seconds: float, ready: float) -> None:
        computed[:] = [max(computed[0], ready) + seconds, computed[0]]

    for unit in everything:
        gathered = communicate(gathers[unit.name], computed[1] if overlaps else computed[0])
        compute(forward * unit.nbytes / total, gathered)
    for unit in reversed(everything):
        ready = 0.0
        if not unit.root:
            ready = communicate(gathers[unit.name], computed[1] if overlaps else computed[0])
        compute(backward * unit.nbytes / total, ready)
        scattered = communicate(scatters[unit.name], computed[0])
        if not overlaps:
            computed[0] = max(computed[0], scattered)
    return Step(max(link, computed[0]), tuple(done))
