"""The analysis of a whole program: axes with the work that depends on them."""

from __future__ import annotations

from sdp_compile import NeuronPolicy
from tests.passes.programs import context_of

MLP = """
    x: f32[3, 4] = placeholder
    up: f32[8, 4] = get_attr[up.weight]
    down: f32[5, 8] = get_attr[down.weight]
    linear: f32[3, 8] = aten.linear(x, up)
    relu: f32[3, 8] = aten.relu(linear)
    linear_1: f32[3, 5] = aten.linear(relu, down)
    return linear_1"""


def test_a_unit_s_work_is_that_of_all_layers_that_it_runs_through() -> None:
    """Of each hidden unit, 2 x 3 x 4 operations in the first layer, and 2 x 3 x 5 in the second."""
    structure = context_of(MLP, NeuronPolicy()).analysis.structure
    assert {family.name: family.unit_flops for family in structure.axes} == {"up.weight[0]": (54.0,) * 8}
    assert [term.flops for term in structure.flops] == [192.0, 240.0]
