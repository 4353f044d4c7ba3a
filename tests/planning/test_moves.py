"""What moves between two plans, against a count element by element."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

import sdp_compile as sdp
from sdp_compile.errors import PlanError
from sdp_compile.planning.moves import Move, Reslicing
from tests.runtime.models import batch, build

WORKERS = 4
POLICIES = {
    "neuron": sdp.NeuronPolicy(coverage=0.5),
    "random": sdp.NeuronPolicy(coverage=0.5, design="random", seed=3),
    "nodes": sdp.NeuronPolicy(coverage=0.5, node_size=2),
    "axes": sdp.NeuronPolicy(coverage=0.75, axes="all"),
    "alone": sdp.NeuronPolicy(replicas=1),
    "block": sdp.BlockPolicy(coverage=0.5),
    "backward": sdp.NeuronPolicy(coverage=0.5, masking="backward"),
    "full": sdp.NeuronPolicy(coverage=1.0),
}
Held = NDArray[np.bool_]


@cache
def planned(model: str, policy: str, workers: int = WORKERS) -> sdp.Plan:
    return sdp.plan(build(model), POLICIES[policy], (batch(model, 0),), workers=workers)


def owned(plan: sdp.Plan, name: str) -> Held:
    """Who owns each element, by worker."""
    return np.stack([plan.mask(name, rank).numpy() for rank in range(plan.workers)])


def valued(plan: sdp.Plan, name: str) -> Held:
    """Who has the value of each element."""
    everywhere = plan.masking == "backward" and plan.state[name].kind == "parameter"
    return np.ones_like(owned(plan, name)) if everywhere else owned(plan, name)


def stepped(plan: sdp.Plan, bucket_bytes: int) -> dict[str, Held]:
    """Who steps each element, if owners split the buckets: element by element."""
    result = {name: owned(plan, name) for name in plan.state}
    for bucket, owners in plan.splits(bucket_bytes):
        elements = []
        for piece in bucket.pieces:
            numbers = np.arange(np.prod(plan.state[piece.name].shape, dtype=int)).reshape(plan.state[piece.name].shape)
            chosen = numbers[np.ix_(*piece.index)] if piece.index else numbers
            elements += [(piece.name, int(number)) for number in chosen.reshape(-1)]
        for position, (name, number) in enumerate(elements):
            flat = result[name].reshape(plan.workers, -1)
            flat[:, number] = False
            flat[owners[position // bucket.chunk], number] = True
    return result


def check(moves: list[Move], before: Held, after: Held) -> int:
    """Everybody gets all that they will hold, once, from someone who has it, and nothing that they have."""
    found = np.zeros_like(after)
    elements = 0
    for move in moves:
        for sender, receiver in move.routes:
            at, source = np.ix_([receiver], *move.index), np.ix_([sender], *move.index)
            assert not found[at].any(), "twice"
            assert before[source].all(), "from someone who does not have it"
            assert sender == receiver or not before[at].any(), "for nothing"
            found[at] = True
            elements += move.numel if sender != receiver else 0
    assert (found == after).all()
    assert elements == int((after & ~before).sum())
    return elements


@pytest.mark.parametrize("model", ["transformer", "cnn"])
def test_everybody_gets_what_they_lack_and_nothing_else(model: str) -> None:
    small = 4096
    steppers = {one: stepped(planned(model, one), small) for one in POLICIES}
    names = list(POLICIES)
    for number, one in ((number, one) for step in (1, 3, 6) for number, one in enumerate(names, step)):
        other = names[number % len(names)]
        before, after = planned(model, one), planned(model, other)
        splits = before.splits(small), after.splits(small)
        plain, sharded = Reslicing(before, after), Reslicing(before, after, splits)
        steps = steppers[one], steppers[other]
        values = states = shards = 0
        for name, tensor in before.state.items():
            itemsize = tensor.dtype.itemsize
            if tensor.kind != "constant":
                values += itemsize * check(plain.values(name), valued(before, name), valued(after, name))
            if before.is_trainable(name):
                states += itemsize * check(plain.states(name), owned(before, name), owned(after, name))
                shards += itemsize * check(sharded.states(name), steps[0][name], steps[1][name])
        assert before.moves(after).total == values + 2 * states
        assert before.moves(after, states=3).total == values + 3 * states
        assert before.moves(after, sharded=True, bucket_bytes=small).total == values + 2 * shards


def test_the_same_plan_moves_nothing_and_the_report_names_pairs() -> None:
    plan, full = planned("transformer", "neuron"), planned("transformer", "full")
    assert plan.moves(plan).total == plan.moves(plan, sharded=True).total == 0
    grown = plan.moves(full)
    assert [grown.received(rank) for rank in range(WORKERS)] == [grown.sent(rank) for rank in range(WORKERS)]
    text = str(grown)
    assert "44.8% of what the workers hold afterwards" in text and "worker 3 to 0:" in text
    assert full.moves(plan).total == 0 and "\n" not in str(full.moves(plan))


def test_only_plans_of_the_same_model_and_workers() -> None:
    plan = planned("transformer", "neuron")
    with pytest.raises(PlanError, match="for 2 workers, and there are 4"):
        plan.moves(planned("transformer", "neuron", 2))
    with pytest.raises(PlanError, match="another model"):
        plan.moves(planned("cnn", "block"))
