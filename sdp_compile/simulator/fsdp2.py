"""A step of FSDP2: parameters are gathered block by block, gradients reduce-scattered."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdp_compile.simulator.exchanges import Exchanges
from sdp_compile.simulator.timeline import Exchange

_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Unit:
    """What `fully_shard` treats as one: a block, or the ``root`` with all that is in no block."""

    name: str
    nbytes: int
    root: bool


def units(exchanges: Exchanges) -> list[Unit]:
    """The root and then the blocks in order: a parameter's block is its name up to the first number (``layers.0``)."""
    state = exchanges.plan.state
    sizes: dict[str, int] = {"": 0}
    for name in exchanges.order:
        match = _BLOCK.match(name)
        sizes.setdefault(match[1] if match else "", 0)
        sizes[match[1] if match else ""] += state[name].nbytes
    return [Unit(name, nbytes, not name) for name, nbytes in sizes.items() if nbytes]


@dataclass(frozen=True)
class Step:
    """When the step's backward ends, communication included, and all of its collectives."""

    end: float
    collectives: tuple[Exchange, ...]


def step(exchanges: Exchanges, forward: float, backward: float) -> Step:
    """Runs forward and backward; ``forward`` and ``backward`` are all units' seconds together, shared by their bytes.

    With overlap the next block is gathered while one computes (FSDP2's prefetching, one block ahead), and gradients
    are reduce-scattered behind the next block's backward; gathers and scatters take turns on the link. The root is
    gathered once, a block again for backward.
    """
    everything = units(exchanges)
    total = sum(unit.nbytes for unit in everything) or 1
    gathers = {unit.name: exchanges.of("all_gather", unit.nbytes, exchanges.everyone) for unit in everything}
    scatters = {unit.name: exchanges.of("reduce_scatter", unit.nbytes, exchanges.everyone) for unit in everything}
    overlaps = exchanges.cluster.overlaps
    link = 0.0
    computed = [0.0, 0.0]  # when the last unit and the one before it were computed
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
