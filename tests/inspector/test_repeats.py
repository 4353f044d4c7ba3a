"""Which stretches fold: layers that differ in names only, also if two kinds of layers alternate."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sdp_compile.inspector.graph import GraphView
from sdp_compile.inspector.repeats import Fold, folds
from sdp_compile.inspector.rows import Row
from sdp_compile.inspector.shown import render, text


def row(module: str, code: str, inputs: tuple[str, ...] = (), name: str = "", state: tuple[str, ...] = ()) -> Row:
    return Row(
        name=name,
        module=module,
        module_type="Layer",
        kind="compute",
        target=code.partition("(")[0],
        code=code,
        inputs=inputs,
        state=state,
        full_shape=(2, 4),
        shape=(2, 4),
        dtype="float32",
        resized=False,
        source="",
        line="",
    )


def layer(number: int, operators: str, last: str, container: str = "h") -> list[Row]:
    """A chain of operators, each of which reads the previous one and a weight of the layer."""
    rows = []
    for position, operator in enumerate(operators.split()):
        path, name = f"{container}.{number}", f"{operator}_{number}_{position}"
        weight = f"{path}.w"
        rows.append(row(path, f"{operator}({last}, self.{weight})", (last,), name, (weight,)))
        last = name
    return rows


def model(kinds: list[str], container: str = "h") -> list[Row]:
    rows = [row("", "input", (), "linear")]  # named like an operator
    for number, operators in enumerate(kinds):
        rows += layer(number, operators, rows[-1].name, container)
    return rows


LONG, SHORT, OTHER = "linear gelu linear add norm", "to norm", "linear relu linear add norm"


def test_equal_layers_are_one_fold() -> None:
    assert folds(model([LONG] * 4)) == (Fold(6, 15, ("h.1", "h.2", "h.3"), "h.0"),)


def test_another_operator_makes_another_layer() -> None:
    assert folds(model([LONG, OTHER, LONG])) == (Fold(11, 5, ("h.2",), "h.0"),)


def test_other_wiring_makes_another_layer() -> None:
    rows = model([LONG, LONG])
    skipping = replace(rows[8], code=f"linear({rows[6].name}, self.h.1.w)", inputs=(rows[6].name,))
    assert folds([*rows[:8], skipping, *rows[9:]]) == ()


def test_marks_keep_layers_apart() -> None:
    rows = model([LONG, LONG])
    marks = ["same"] * 10 + ["changed"]
    assert folds(rows, marks) == ()


def test_short_layers_fold_only_beside_others() -> None:
    assert folds(model([SHORT] * 4)) == ()
    result = folds(model([LONG, SHORT] * 3))
    assert [fold.layers for fold in result] == [("h.2",), ("h.3",), ("h.4",), ("h.5",)]


def test_inner_layers_fold_within_a_stage() -> None:
    result = folds(model([LONG] * 3, container="stages.0.blocks"))
    assert [fold.layers for fold in result] == [("stages.0.blocks.1", "stages.0.blocks.2")]


def test_alternating_layers_take_one_line() -> None:
    rows = model([LONG, SHORT] * 6)
    view = GraphView(
        model="M",
        workers=2,
        rank=0,
        mode="train",
        lowering="sliced",
        module=None,
        nodes=len(rows),
        counts=Counter(one.kind for one in rows),
        rows=tuple(rows),
        folds=folds(rows),
        edges=(),
    )
    lines = [line for line in text(render(view), width=80).splitlines() if "alike" in line]
    assert lines == ["  h.2 to h.11: x 10, alike h.0 or h.1  (35 rows)"]
