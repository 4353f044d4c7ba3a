"""Whether what is about to be saved is clean: all owners hold the same bits, and they are finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.coverage import shortened
from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.checkpoint.states import OptimizerStates
from sdp_compile.errors import DamagedState
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.meeting import Statement
from sdp_compile.runtime.comm.verdict import Details
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.owners.comparison import Comparison
from sdp_compile.runtime.owners.copies import OwnCopy, OwnState, not_finite, own_copies
from sdp_compile.runtime.owners.parts import label
from sdp_compile.runtime.waiting.words import workers_text

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that training changes.

    Attributes:
        name: The parameter.
        state: The name of the optimizer's state; empty for the value.
        tensor: The tensor.
        piece: Where the piece lies in the parameter's tensor that this is a shard of; None for no shard.
    """

    name: str
    state: str
    tensor: Tensor
    piece: Region | None = None

    @property
    def what(self) -> str:
        """What it is, for errors."""
        return f"the optimizer's state {self.state!r} of" if self.state else "the value of"


def check_clean(
    model: Model, optimizer: Optimizer | None, states: OptimizerStates | None, what: str, advice: str
) -> None:
    """Raises the same error on all workers unless all owners hold the same finite values and states. Collective.

    Buffers may differ, and may hold infinity: running statistics are local, and masks are made of it. So may parameters
    that are not trained.

    Args:
        model: The model.
        optimizer: An optimizer of its parameters, if there is one.
        states: What all workers together say of its state.
        what: The call, for errors.
        advice: What to do, for the error.

    Raises:
        DamagedState: If owners hold different values or states, or some are infinite or NaN.
    """
    problems = unsound(model, held_tensors(model, optimizer))
    peers = model.peers
    if peers is None:
        everyone = [problems]
        found = bool(problems)
    else:
        comparison = Comparison([copy.item for copy in copies_of(model, [(optimizer, states)])], False)
        statement = Statement(
            f"in {what}", (0, comparison.term()), bool(problems), details=lambda: Details(items=comparison.details())
        )
        try:
            alone = peers.groups.workers == 1  # a meeting of one has nothing to tell
            found = peers.engine.meet(statement).finish() or (alone and bool(problems))
        except DamagedState as error:
            raise DamagedState(f"{error} {advice}") from None
        everyone = peers.groups.gather_json(problems[:_SHOWN]) if found else []
    if found:
        raise DamagedState(f"{damage(everyone)} {advice}")


def damage(everyone: Sequence[Sequence[str]]) -> str:
    """Returns a sentence about what is not finite, from the problems of each worker."""
    ranks: dict[str, list[int]] = {}
    for rank, problems in enumerate(everyone):
        for problem in problems:
            ranks.setdefault(problem, []).append(rank)
    listed = [f"{problem} on {workers_text(own)}" for problem, own in ranks.items()]
    return f"Not finite (infinite or NaN): {shortened(listed, '; ', _SHOWN)}."


def copies_of(model: Model, optimizers: Sequence[tuple[Optimizer | None, OptimizerStates | None]]) -> Iterator[OwnCopy]:
    """Yields what this worker owns together with others, of the values and of the states of optimizers."""
    states: dict[str, list[OwnState]] = {}
    for number, (optimizer, known) in enumerate(optimizers):
        if optimizer is None or known is None or isinstance(optimizer, ShardedOptimizer):
            continue
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, name in model.parameters.items():
            if parameter in stepped and name in known.dtypes:
                entries = optimizer.state.get(parameter, {})
                own = OwnState(entries, list(known.dtypes[name]), list(known.scalars[name]), f"{number} ")
                states.setdefault(name, []).append(own)
    assert model.peers is not None
    return own_copies(model.peers.engine, states)


def held_tensors(model: Model, optimizer: Optimizer | None) -> Iterator[Held]:
    """Yields the parameters that are trained, and all tensors and numbers of the optimizer's state."""
    for parameter, name in model.parameters.items():
        if parameter.requires_grad:
            yield Held(name, "", parameter.detach())
            if optimizer is not None and not isinstance(optimizer, ShardedOptimizer):
                yield from _states(name, optimizer.state.get(parameter, {}))
    if isinstance(optimizer, ShardedOptimizer):
        for name, shards in optimizer.layout.shards.items():
            for shard in shards:
                yield from _states(name, optimizer.state.get(shard.parameter, {}), shard.region)


def _states(name: str, entries: Mapping[str, object], piece: Region | None = None) -> Iterator[Held]:
    for key, value in entries.items():
        if isinstance(value, float):
            value = torch.tensor(value)
        if isinstance(value, Tensor):
            yield Held(name, key, value, piece)


def unsound(model: Model, held: Iterator[Held] | Sequence[Held]) -> list[str]:
    """Returns in words what this worker owns that is infinite or NaN."""
    tensors = list(held)
    bad = not_finite([one.tensor for one in tensors])
    return [f"{tensors[at].what} {place}" for at in bad for place in _places(model, tensors[at])]


def _places(model: Model, held: Held) -> Iterator[str]:
    """Yields the owned pieces of a tensor in which an element is not finite."""
    region = model.region_of(held.name)
    if not isinstance(model, CompiledModel) or region is None:
        yield repr(held.name)
        return
    plan, holdings = model.module.plan, model.module.holdings
    for piece in plan.pieces(held.name):
        if not is_member(model.rank, piece.owners) or not piece.numel:
            continue
        own = holdings.region(piece)
        if held.piece is not None:
            is_there = all(map(np.array_equal, own.index, held.piece.index))
        elif held.tensor.shape == region.shape:
            is_there = bool(not_finite([own.read(held.tensor)]))
        else:
            yield repr(held.name)
            return
        if is_there:
            yield label(plan, piece)
