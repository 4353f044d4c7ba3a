"""Arguments by name, as the schemas of ATen name them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sdp_compile.ir import schema

aten = torch.ops.aten


def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    return fx.Graph().call_function(target, args, kwargs)


def test_bind_names_arguments_and_fills_in_defaults() -> None:
    node = call(aten.softmax.int, "x", dtype=torch.float64, dim=1)
    assert schema.bind(node) == {"self": "x", "dim": 1, "dtype": torch.float64}
    assert schema.bind(call(aten.add.Tensor, "x", "y")) == {"self": "x", "other": "y", "alpha": 1}
    assert schema.bind(call(len, "x")) == {}


def test_one_argument_is_read_wherever_it_stands() -> None:
    assert schema.get_argument(call(aten.add.Tensor, "x", "y", alpha=2), "alpha") == 2
    assert schema.get_argument(call(aten.add.Tensor, "x", "y"), "other") == "y"
    assert schema.get_argument(call(aten.add.Tensor, "x", "y"), "alpha") == 1


@pytest.mark.parametrize(
    ("node", "name", "args", "kwargs"),
    [
        (call(aten.flatten.using_ints, "x", 1), "start_dim", ("x", 2), {}),
        (call(aten.flatten.using_ints, "x", 1), "end_dim", ("x", 1), {"end_dim": 2}),
        (call(aten.flatten.using_ints, "x", start_dim=1), "start_dim", ("x",), {"start_dim": 2}),
    ],
)
def test_one_argument_is_changed_where_it_stands(node: fx.Node, name: str, args: Any, kwargs: Any) -> None:
    schema.set_argument(node, name, 2)
    assert (node.args, node.kwargs) == (args, kwargs)


def test_names_of_operators() -> None:
    assert schema.operator_name(call(aten.relu_.default, "x")) == "relu_"
    assert schema.operator_name(call(torch.ops.prims.neg.default, "x")) == "prims::neg"
    assert schema.operator_name(call(len, "x")) == ""
    assert schema.functional_name("relu_") == "relu"
    assert schema.functional_name("__and__") == "__and__"
    assert schema.functional_variant(aten.relu_.default) is aten.relu.default
    assert schema.functional_variant(aten.relu.default) is None


def test_what_a_call_writes() -> None:
    assert schema.written_argument(aten.add_.Tensor) == "self"
    assert schema.written_argument(aten.add.Tensor) is None
    assert schema.written_values(call(aten.add_.Tensor, "x", "y")) == ["x"]
    assert schema.written_values(call(aten.add.out, "x", "y", out="z")) == ["z"]


@pytest.mark.parametrize("operator", [aten.batch_norm.default, aten.instance_norm.default])
@pytest.mark.parametrize(("training", "written"), [(True, ["mean", "var"]), (False, [])])
def test_normalisations_write_their_statistics_in_training(operator: Any, training: bool, written: list[str]) -> None:
    node = call(operator, "x", None, None, "mean", "var", training, 0.1, 1e-5, False)
    assert schema.written_values(node) == written
    assert schema.written_statistics(call(operator, "x", None, None, None, None, training, 0.1, 1e-5, False)) == []


def test_what_a_result_may_share_its_storage_with() -> None:
    assert schema.aliased_values(call(aten.view.default, "x", [2])) == ["x"]
    assert schema.aliased_values(call(aten.relu.default, "x")) == []
    assert schema.aliased_values(call(aten.dropout.default, "x", 0.5, False)) == ["x"]


def test_arguments_that_a_call_leaves_out_are_not_given() -> None:
    given = [(parameter.name, value) for parameter, value in schema.given(aten.add.Tensor, ("x", "y"), {})]
    assert given == [("self", "x"), ("other", "y")]
