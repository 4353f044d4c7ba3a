"""The table of operators: what is found for a node's target, and how the files that declare it hang together."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
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


def imports_of(path: Path) -> Iterator[str]:
    """The modules that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_files_import_each_other_without_a_circle() -> None:
    package = operators.__name__
    files = [path for path in Path(operators.__file__).parent.glob("*.py") if path.stem != "__init__"]
    graph = {f"{package}.{path.stem}": set(imports_of(path)) for path in files}
    assert not [name for name, imported in graph.items() if package in imported]
    TopologicalSorter({name: imported & graph.keys() for name, imported in graph.items()}).prepare()
