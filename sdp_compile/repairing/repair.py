"""``model.repair(optimizer)``: what some owners hold otherwise than most becomes what most of them hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.clean import copies_of, damage, held_tensors, unsound
from sdp_compile.checkpoint.coverage import shortened
from sdp_compile.checkpoint.model import CompiledModel, model_of
from sdp_compile.checkpoint.states import OptimizerStates, kind_of, optimizer_states
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import DamagedState, SDPError
from sdp_compile.repairing.gathering import Differing, gathered
from sdp_compile.runtime.comm.meeting import meet
from sdp_compile.runtime.optimizer.owner_check import begin_anew
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.owners.checksums import checksums
from sdp_compile.runtime.owners.copies import OwnCopy
from sdp_compile.runtime.owners.majority import Repair, Repaired, as_words, vote
from sdp_compile.runtime.state.full_state import device_of
from sdp_compile.runtime.waiting.words import workers_text

WHAT = "model.repair()"

_REMEDY = "Nothing was changed. Load the newest checkpoint: it was clean when it was saved."


@torch.no_grad()
def repair(module: Any, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Repair:
    """Repairs what the owners of a unit hold differently. Collective; see `SDPModule.repair`.

    Args:
        module: The compiled module.
        optimizer: The optimizers of its parameters.

    Returns:
        What was repaired.

    Raises:
        DamagedState: If no majority of the owners agrees, or what is left is infinite or NaN.
        DistributedError: If the workers do not agree, or there is no process group.
    """
    model = model_of(module, WHAT)
    assert isinstance(model, CompiledModel)
    optimizers = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    peers, team = model.peers, Team(model.peers, WHAT)
    if peers is not None:
        meet(f"in {WHAT}", peers.groups)
    with team.together(lambda: " ".join(map(kind_of, optimizers)), what="optimizer"):
        if torch._C._current_graph_task_id() != -1:
            raise SDPError(f"{WHAT} was called inside backward. Call it after backward, or after the step.")
        described = [optimizer_states(model, one) for one in optimizers]
    everyone = team.gather(described)
    with team.together():
        states = [OptimizerStates.merged([one[at] for one in everyone], model) for at in range(len(optimizers))]
        known = list(zip(optimizers, states, strict=True))
        copies = {} if peers is None else {copy.identifier: copy for copy in copies_of(model, known)}
    changes, repaired = _decided(model, team, copies)
    for change in changes:
        change.apply(change.after)
    every: Sequence[Optimizer | None] = optimizers or [None]
    held = [one for own in every for one in held_tensors(model, own)]
    problems = team.gather(unsound(model, held))
    if any(problems):
        for change in changes:
            change.apply(change.before)
        sharded = any(isinstance(one, ShardedOptimizer) for one in optimizers)
        why = "Each state of a ShardedOptimizer has one holder, and" if sharded else "All owners have it so, and"
        raise DamagedState(f"{damage(problems)} {why} there is nothing to repair it from. {_REMEDY}")
    if peers is not None:
        peers.refresh_parameters()  # under backward masking, others have fetched what was damaged
        begin_anew(peers.engine, optimizers)
    alone = [name for one in optimizers if isinstance(one, ShardedOptimizer) for name in one.layout.first]
    return Repair(repaired, tuple(sorted({name for names in team.gather(alone) for name in names})))


@dataclass(frozen=True, eq=False)
class _Change:
    """Elements of a copy that this worker replaces, as integers, by position."""

    copy: OwnCopy
    positions: Tensor
    before: Tensor
    after: Tensor

    def apply(self, words: Tensor) -> None:
        """Writes the elements."""
        values = self.copy.read()
        assert values is not None
        changed = values.reshape(-1).clone()  # contiguous, and no view
        as_words(changed.view(torch.uint8), values.itemsize)[self.positions] = words
        self.copy.write(changed)


def _decided(
    model: CompiledModel, team: Team, copies: Mapping[str, OwnCopy]
) -> tuple[list[_Change], tuple[Repaired, ...]]:
    """Returns what this worker replaces, and what all workers together do. Collective.

    Raises:
        DamagedState: If no majority of some owners agrees.
    """
    if model.peers is None or model.peers.groups.peers_are_fake:
        return [], ()
    differing = _differing(team, copies)
    values = {one.identifier: values for one in copies.values() if (values := one.read()) is not None}
    changes: list[_Change] = []
    undecided: dict[str, int] = {}
    counts: dict[str, tuple[list[int], int]] = {}
    for part, raw in gathered(differing, values, model.peers.groups, device_of(model.module)):
        itemsize, own = values[part.identifier].itemsize, part.owners.index(model.rank)
        words = as_words(raw, itemsize)
        positions = (words != words[0]).any(0).nonzero().squeeze(1)
        winners, is_clear = vote(words[:, positions])
        others = words[:, positions] != winners
        if not is_clear.all():
            undecided[part.identifier] = int((~is_clear).sum())
        if own == 0:
            outvoted = [owner for owner, row in zip(part.owners, others, strict=True) if row.any()]
            counts[part.identifier] = outvoted, int(others.any(0).sum())
        mine = others[own].nonzero().squeeze(1)
        if len(mine):
            device = values[part.identifier].device
            at, before, after = positions[mine], words[own, positions[mine]], winners[mine]
            changes.append(_Change(copies[part.identifier], *(one.to(device) for one in (at, before, after))))
    found = team.gather([undecided, counts])
    lost = {identifier: number for one, _ in found for identifier, number in one.items()}
    if lost:
        listed = [
            f"{part.label} differs between {workers_text(part.owners)}, and no value of {lost[part.identifier]} of its "
            "elements is that of most of them"
            for part in differing
            if part.identifier in lost
        ]
        raise DamagedState(f"{shortened(listed, '; ')}. {_REMEDY}")
    known = {identifier: facts for _, one in found for identifier, facts in one.items()}
    repaired = []
    for part in differing:
        workers, elements = known[part.identifier]
        repaired.append(Repaired(part.label, part.parameter, part.state, part.owners, tuple(workers), elements))
    return changes, tuple(repaired)


def _differing(team: Team, copies: Mapping[str, OwnCopy]) -> list[Differing]:
    """Returns the parts of which checksums differ, in one order on all workers. Collective.

    Raises:
        DamagedState: If too few workers own one of them to tell who is right.
    """
    tensors = [one.read() for one in copies.values()]
    sums = iter(checksums([one for one in tensors if one is not None], late=False)())
    mine: dict[str, list[Any]] = {}
    for copy, one in zip(copies.values(), tensors, strict=True):
        facts = [None, "", 0] if one is None else [next(sums), str(one.dtype), one.nbytes]
        mine[copy.identifier] = [*facts, copy.label, copy.parameter, copy.state]
    views = team.gather(mine)
    owners: dict[str, list[int]] = {}
    for rank, view in enumerate(views):
        for identifier in view:
            owners.setdefault(identifier, []).append(rank)
    result, problems = [], []
    for identifier in sorted(owners):
        held = [views[rank][identifier] for rank in owners[identifier]]
        if len({one[0] for one in held}) == 1:
            continue
        (nbytes, name, parameter, state), where = held[0][2:], workers_text(owners[identifier])
        if len({tuple(one[1:3]) for one in held}) > 1:
            problems.append(f"{name} is missing on some of {where}, or has another dtype")
        elif len(held) < 3:
            problems.append(f"{name} differs between {where}, and with two owners nothing tells who is right")
        result.append(Differing(identifier, name, parameter, state, tuple(owners[identifier]), nbytes))
    if problems:
        raise DamagedState(f"{shortened(problems, '; ')}. {_REMEDY}")
    return result
