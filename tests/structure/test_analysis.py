"""The analysis of a whole program: axes with the work that depends on them."""

from __future__ import annotations

from sdp_compile import NeuronPolicy
from sdp_compile.structure.layout import Leaf, Product
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


GROUPED_HEADS = """
    x: f32[2, 5, 8] = placeholder
    query: f32[16, 8] = get_attr[query.weight]
    key: f32[8, 8] = get_attr[key.weight]
    value: f32[8, 8] = get_attr[value.weight]
    out: f32[8, 16] = get_attr[out.weight]
    linear: f32[2, 5, 16] = aten.linear(x, query)
    view: f32[2, 5, 4, 4] = aten.view(linear, [2, 5, 4, 4])
    q: f32[2, 4, 5, 4] = aten.transpose.int(view, 1, 2)
    linear_1: f32[2, 5, 8] = aten.linear(x, key)
    view_1: f32[2, 5, 2, 4] = aten.view(linear_1, [2, 5, 2, 4])
    k: f32[2, 2, 5, 4] = aten.transpose.int(view_1, 1, 2)
    linear_2: f32[2, 5, 8] = aten.linear(x, value)
    view_2: f32[2, 5, 2, 4] = aten.view(linear_2, [2, 5, 2, 4])
    v: f32[2, 2, 5, 4] = aten.transpose.int(view_2, 1, 2)
    attention: f32[2, 4, 5, 4] = aten.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    transpose: f32[2, 5, 4, 4] = aten.transpose.int(attention, 1, 2)
    view_3: f32[2, 5, 16] = aten.view(transpose, [2, 5, 16])
    linear_3: f32[2, 5, 8] = aten.linear(view_3, out)
    return linear_3"""


def test_query_heads_that_share_keys_and_values_are_cut_with_them() -> None:
    """Two heads of keys and values, each for two of the four query heads; a head has four numbers."""
    layouts = context_of(GROUPED_HEADS, NeuronPolicy()).analysis.structure.layouts
    heads, group = Leaf(2, "query.weight[0].0"), Leaf(2, "query.weight[0].1")
    scores, values = Leaf(4, "query.weight[0].2"), Leaf(4, "value.weight[0].1")
    assert layouts["query.weight"][0] == Product((heads, group, scores))
    assert layouts["key.weight"][0] == Product((heads, scores))
    assert layouts["value.weight"][0] == Product((heads, values))
    assert layouts["out.weight"][1] == Product((heads, group, values))


EXPERTS = """
    x: bf16[6, 8] = placeholder
    ends: i32[2] = placeholder
    up: bf16[2, 8, 16] = get_attr[up.weight]
    down: bf16[2, 16, 8] = get_attr[down.weight]
    hidden: bf16[6, 16] = aten._grouped_mm(x, up, ends)
    relu: bf16[6, 16] = aten.relu(hidden)
    output: bf16[6, 8] = aten._grouped_mm(relu, down, ends)
    return output"""


def test_experts_share_their_hidden_units_and_their_rows_are_counted() -> None:
    structure = context_of(EXPERTS, NeuronPolicy()).analysis.structure
    hidden = Leaf(16, "up.weight[2]")
    assert structure.layouts["up.weight"] == (Leaf(2), Leaf(8), hidden)
    assert structure.layouts["down.weight"] == (Leaf(2), hidden, Leaf(8))
    assert any("counts tokens per expert" in str(frozen) for frozen in structure.frozen)
