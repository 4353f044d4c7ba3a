"""All owners deal the same parts to the same shares, and every common element is in exactly one part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sdp_compile.planning.holdings import LoweringKind, holdings
from sdp_compile.runtime.owners import parts
from tests.runtime.stub import SCATTERED, capture_of, network, plan_of

WORKERS = 4


def engine(rank: int, lowering: LoweringKind = "sliced") -> Any:
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    return SimpleNamespace(holdings=holdings(lowering, plan, rank), key=lambda name: f"0:{name}")


def test_every_common_element_is_in_one_part(monkeypatch: Any) -> None:
    monkeypatch.setattr(parts, "_SMALLEST_BYTES", 64)
    for rank in range(WORKERS):
        own = engine(rank)
        plan = own.holdings.plan
        counts = {
            name: torch.zeros(plan.local_shape(name, rank))
            for name in plan.state
            if plan.state[name].kind == "parameter" and plan.local_shape(name, rank)
        }
        for part in parts._make(own):
            part.region.write(counts[part.name], part.region.read(counts[part.name]) + 1)
        for name, count in counts.items():
            expected = torch.zeros_like(count)
            for piece in plan.pieces(name):
                if rank in piece.owners and len(piece.owners) > 1:
                    own.holdings.region(piece).write(expected, torch.ones(piece.shape))
            assert torch.equal(count, expected), name


def test_owners_agree_on_the_parts_and_contribute_nothing_together(monkeypatch: Any) -> None:
    monkeypatch.setattr(parts, "_SMALLEST_BYTES", 64)
    seen: dict[str, list[Any]] = {}
    for rank in range(WORKERS):
        for part in parts._make(engine(rank)):
            seen.setdefault(part.identifier, []).append(part)
    assert {part.share for found in seen.values() for part in found} == set(range(parts.SHARES))
    for found in seen.values():
        assert len(found) > 1
        assert len({(part.share, part.label, part.region.shape) for part in found}) == 1
        assert sum(part.factor for part in found) == 0


def test_the_holders_of_a_parameter_contribute_nothing_together() -> None:
    for lowering in ("sliced", "masked"):
        engines = [engine(rank, lowering) for rank in range(WORKERS)]
        for name in engines[0].holdings.plan.state:
            assert sum(parts.holder_factor(own, name) for own in engines) == 0


def test_labels_name_rows_and_units() -> None:
    labels = {part.label for rank in range(WORKERS) for part in parts._make(engine(rank))}
    assert "'tied'" in labels
    assert "'up.weight'[2:4, :] (units 1 of 'hidden')" in labels
    assert "'up.bias'[(0, 1, 8, 9)] (units 0, 4 of 'hidden')" in labels
