"""The table of operators: what is found for a node's target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdp_compile
from sdp_compile.structure import operators
from sdp_compile.structure.operators.at_zero import keeps_zero
from sdp_compile.structure.operators.table import declare, declared_names, lookup, rule

aten = torch.ops.aten


def test_one_entry_holds_all_facts_about_an_operator() -> None:
    linear = lookup(aten.linear.default)
    assert None not in (linear.rule, linear.at_zero, linear.flops, linear.contractions, linear.narrow)
    assert lookup(aten.conv2d.padding) is not lookup(aten.conv2d.default)
    assert lookup(aten.conv2d.padding) == lookup(aten.conv2d.default)


def test_overloads_that_do_different_things_have_rules_of_their_own() -> None:
    rules = {lookup(overload).rule for overload in (aten.max.default, aten.max.dim, aten.max.other)}
    assert len(rules) == 3 and None not in rules
    assert lookup(aten.view.dtype).rule is None


def test_nothing_is_known_about_other_functions() -> None:
    assert lookup(len) == operators.Operator()
    assert lookup("output") == operators.Operator()


def test_a_packet_stands_for_its_overloads_on_tensors() -> None:
    assert lookup(aten.scatter.value).rule is lookup(aten.scatter.src).rule is not None
    assert lookup(aten.scatter.src_out).rule is None


def test_rules_are_not_inherited_by_in_place_variants() -> None:
    assert lookup(aten.cumprod.default).rule is not None
    assert lookup(aten.cumprod_.default).rule is None
    assert lookup(aten.cumprod_.default).at_zero is keeps_zero


def test_a_fact_is_declared_once() -> None:
    with pytest.raises(ValueError, match="at_zero of aten::linear"):
        declare("linear", at_zero=keeps_zero)


def test_a_rule_is_one_decorated_function() -> None:
    assert sdp_compile.rule is operators.rule is rule

    @rule("sdp_tests_table::twice", at_zero=keeps_zero)
    def twice(ctx: operators.Context, x: operators.Value, **_: Any) -> operators.Value:
        return x

    assert "sdp_tests_table::twice" in declared_names()
