"""What a worker holds: its pieces lie in its own tensors, in both lowerings."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from sdp_compile.errors import PlanError
from sdp_compile.planning.holdings import LoweringKind, holdings
from sdp_compile.planning.masks import mask_name
from sdp_compile.policies import BlockPolicy, NeuronPolicy
from tests.planning.plans import plan_for
from tests.synthetic import attention, blocks, convolutions, mlp

CASES = {
    "attention": (attention(), NeuronPolicy()),
    "attention, backward": (attention(), NeuronPolicy(masking="backward")),
    "convolutions, backward": (convolutions((6, 5, 4)), NeuronPolicy(masking="backward", axes="all", replicas=3)),
    "blocks, backward": (blocks((4, 6, 3, 5)), BlockPolicy(masking="backward")),
}


@pytest.mark.parametrize("lowering", get_args(LoweringKind))
@pytest.mark.parametrize("name", CASES)
def test_pieces_lie_where_the_worker_holds_them(name: str, lowering: LoweringKind) -> None:
    structure, policy = CASES[name]
    plan = plan_for(structure, policy, 4)
    values = {n: torch.arange(float(t.numel)).reshape(t.shape) for n, t in plan.state.items()}
    for rank in range(4):
        mine = holdings(lowering, plan, rank)
        held = {part.name: part.region.copy(values[part.source]) for part in mine.held()}
        assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {n: mine.shape(n) for n in held}
        for parameter in plan.state:
            for piece in plan.pieces(parameter):
                expected = values[parameter].numpy()[np.ix_(*piece.index)]
                if rank in piece.owners:
                    assert (mine.region(piece).read(held[parameter]).numpy() == expected).all()
                elif plan.masking == "backward":
                    where, region = mine.place_of_unowned(piece)
                    assert (region.read(held[where]).numpy() == expected).all()


def test_unowned_parts_are_buffers_outside_of_the_state_dict() -> None:
    plan = plan_for(mlp(hidden=10, width=3), NeuronPolicy(masking="backward"), 4)
    added = holdings("sliced", plan, 0).buffers
    assert {name: tensor.shape for name, tensor in added.items()} == {
        "layers.0.up.weight_unowned0": (5, 3),
        "layers.0.up.bias_unowned0": (5,),
        "layers.0.down.weight_unowned1": (3, 5),
    }
    assert all(tensor.kind == "buffer" and not tensor.persistent for tensor in added.values())


@pytest.mark.parametrize("name", CASES)
def test_masks_multiply_to_the_elements_that_the_worker_owns(name: str) -> None:
    structure, policy = CASES[name]
    plan = plan_for(structure, policy, 4)
    for rank in range(4):
        mine = holdings("masked", plan, rank)
        for parameter, tensor in plan.state.items():
            product = torch.ones(tensor.shape, dtype=torch.bool)
            for dim in range(len(tensor.shape)):
                product &= mine.constants.get(mask_name(parameter, dim), product)
            assert torch.equal(product, plan.mask(parameter, rank))


def test_every_mask_has_a_name_of_its_own() -> None:
    assert len({mask_name(name, dim) for name in ("a.b", "a_b", "a__b", "a.b_0") for dim in (0, 1)}) == 8


@pytest.mark.parametrize("masking", ["forward", "backward"])
def test_the_masked_lowering_holds_zeros_where_nobody_reads(masking: str) -> None:
    plan = plan_for(mlp(), NeuronPolicy(masking=masking), 4)
    tensors = {name: torch.ones(tensor.shape) for name, tensor in plan.state.items()}
    holdings("masked", plan, 1).clear_unowned(tensors)
    for name, tensor in tensors.items():
        expected = plan.mask(name, 1).float() if masking == "forward" else torch.ones(tensor.shape)
        assert torch.equal(tensor, expected)


def test_a_lowering_that_does_not_exist_is_named() -> None:
    with pytest.raises(PlanError, match="'sliced' or 'masked', got 'other'"):
        holdings("other", plan_for(mlp(), NeuronPolicy(), 4), 0)  # type: ignore[arg-type]
