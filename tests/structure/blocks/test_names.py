"""What blocks are called, after the modules that hold their parameters."""

from __future__ import annotations

import torch

from sdp_compile.ir.program import StateTensor
from sdp_compile.structure.blocks.names import unique_names


def state(**numel: int) -> dict[str, StateTensor]:
    names = {name.replace("_", "."): count for name, count in numel.items()}
    return {name: StateTensor((count,), torch.float32, "parameter", True) for name, count in names.items()}


def test_units_of_one_module_are_called_after_their_heaviest_submodules() -> None:
    known = state(layer_attention_weight=16, layer_first_bias=4, layer_mlp_weight=32, layer_second_bias=4)
    units = [["layer.attention.weight", "layer.first.bias"], ["layer.mlp.weight", "layer.second.bias"]]
    assert unique_names(units, known) == ["layer.attention", "layer.mlp"]


def test_a_unit_that_has_a_module_of_its_own_is_called_after_that() -> None:
    known = state(a_attention_weight=16, a_first_bias=4, b_mlp_weight=32, b_second_bias=4)
    units = [["a.attention.weight", "a.first.bias"], ["b.mlp.weight", "b.second.bias"]]
    assert unique_names(units, known) == ["a", "b"]


def test_units_that_no_submodule_tells_apart_are_numbered() -> None:
    known = state(layer_a_weight=8, layer_b_weight=8, layer_c_weight=8, layer_d_weight=8, weight=3, bias=3)
    halves = [["layer.a.weight", "layer.b.weight"], ["layer.c.weight", "layer.d.weight"]]
    assert unique_names(halves, known) == ["layer#0", "layer#1"]
    assert unique_names([["weight"], ["bias"]], known) == ["#0", "#1"]
