"""Buckets hold each shared gradient once, in one order for all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.planning.buckets import make_buckets
from tests.planning.plans import owners_by_element, plans


@settings(deadline=None, max_examples=40)
@given(plans(), st.sampled_from([40, 200, 10**6]))
def test_buckets_hold_each_shared_gradient_once_in_one_order(case, bucket_bytes):
    structure, plan = case
    everything = plan.buckets(None, bucket_bytes)
    assert [bucket.number for bucket in everything] == list(range(len(everything)))
    reduced = {name: np.zeros(plan.state[name].shape, dtype=int) for name in plan.state}
    for bucket in everything:
        assert bucket.owners in plan.groups
        assert bucket.nbytes == sum(4 * piece.numel for piece in bucket.pieces)
        for piece in bucket.pieces:
            assert piece.owners == bucket.owners
            reduced[piece.name][np.ix_(*piece.index)] += 1
    for members in plan.levels.classes:
        rounds: dict[int, list[Any]] = {}
        for bucket in plan.buckets(members[0], bucket_bytes):
            rounds.setdefault(bucket.round, []).append(bucket)
        for held in rounds.values():  # the last one may have swallowed a small one
            names = {piece.name for bucket in held for piece in bucket.pieces}
            nbytes, is_last = sum(bucket.nbytes for bucket in held), held[0].round == everything[-1].round
            assert nbytes <= bucket_bytes or len(names) == 1 or is_last
    for name in plan.state:
        shared = np.vectorize(lambda members: len(members) > 1, otypes=[bool])(owners_by_element(structure, plan, name))
        assert (reduced[name] == shared).all()
    for rank in range(plan.workers):
        mine = plan.buckets(rank, bucket_bytes)
        assert [bucket.number for bucket in mine] == [b.number for b in everything if rank in b.owners]
    # Pieces become ready in reverse order of first use.
    position = {name: -number for number, name in enumerate(plan.order)}
    lasts = [max(position[piece.name] for piece in bucket.pieces) for bucket in everything]
    assert lasts == sorted(lasts)


def piece(name: str, numel: int, owners: tuple[int, ...]) -> Piece:
    return Piece(name, owners, (np.arange(numel),))


def filled(pieces: list[Piece], bucket_bytes: int, **dtypes: torch.dtype) -> list[list[str]]:
    state = {p.name: StateTensor((99,), dtypes.get(p.name, torch.float32), "parameter", True) for p in pieces}
    buckets = make_buckets(pieces, state, bucket_bytes, [(worker,) for worker in range(3)])
    assert [bucket.number for bucket in buckets] == list(range(len(buckets)))
    return [[p.name for p in bucket.pieces] for bucket in buckets]


def test_a_bucket_is_closed_before_it_exceeds_its_bytes():
    pieces = [piece("a", 2, (0, 1)), piece("b", 2, (0, 1)), piece("c", 1, (0, 1)), piece("d", 9, (0, 1))]
    assert filled(pieces, 16) == [["a", "b"], ["c"], ["d"]]
    assert filled(pieces, 20) == [["a", "b", "c"], ["d"]]
    assert filled(pieces, 1) == [["a"], ["b"], ["c"], ["d"]]
    assert filled(pieces[:3], 8) == [["a"], ["b"], ["c"]]
    assert filled(pieces[:3], 16) == [["a", "b", "c"]], "the last round joins the one before it if it is small"


def test_buckets_come_in_the_order_in_which_they_become_ready():
    pieces = [piece("a", 1, (0, 1)), piece("b", 1, (1, 2)), piece("c", 1, (0, 1)), piece("d", 1, (0, 2))]
    assert filled(pieces, 100) == [["b"], ["a", "c"], ["d"]]


def test_a_round_is_full_when_one_worker_holds_enough():
    pieces = [piece("a", 2, (0, 1)), piece("b", 2, (2,)), piece("c", 2, (1, 2)), piece("d", 2, (0,))]
    state = {p.name: StateTensor((2,), torch.float32, "parameter", True) for p in pieces}
    buckets = make_buckets(pieces, state, 8, [(0,), (1,), (2,)])
    assert [(b.pieces[0].name, b.round) for b in buckets] == [("a", 0), ("b", 0), ("c", 1), ("d", 1)]


def test_gradients_of_other_dtypes_travel_apart():
    pieces = [piece("a", 2, (0, 1)), piece("b", 2, (0, 1)), piece("c", 2, (0, 1))]
    assert filled(pieces, 8, b=torch.bfloat16) == [["a"], ["b"], ["c"]]
    assert filled(pieces, 12, b=torch.bfloat16) == [["a"], ["b"], ["c"]]
    assert filled(pieces, 100, b=torch.bfloat16) == [["b"], ["a", "c"]]
