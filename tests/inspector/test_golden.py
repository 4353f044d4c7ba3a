"""Golden files: each view of a small model as text of a fixed width, and the structure of its JSON.

After an intended change, rewrite the files and read their diff:

    SDP_COMPILE_WRITE_GOLDEN=1 pytest tests/inspector/test_golden.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from sdp_compile.inspector import Subject, show
from sdp_compile.inspector.shown import text
from sdp_compile.policies import BlockPolicy, NeuronPolicy, Phase, Schedule
from tests.inspector.subjects import tiny

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"

TORCH_LINE = re.compile(r"(?<=\.py:)\d+(?=  return F\.)")
"""Line numbers in torch's own modules, which change with its version."""

VIEWS = ("structure", "owners", "graph", "diff", "cost", "phases")

OPTIONS: dict[str, dict[str, Any]] = {"phases": {"schedule": "growing"}}
"""Options that a view needs."""

ALTERNATING = Schedule(
    [
        Phase(NeuronPolicy(coverage=0.5), share=0.75, alternate=BlockPolicy(replicas=2), alternate_every=4),
        Phase(NeuronPolicy(coverage=1.0), share=0.25),
    ],
    steps=400,
    rate_by_owners=0.5,
)

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "structure": ("structure", {}, {}),
    "structure_block": ("structure", {"policy": "block"}, {}),
    "owners": ("owners", {}, {}),
    "owners_block": ("owners", {"policy": "block"}, {}),
    "owners_1000": ("owners", {"workers": 1000}, {}),
    "graph": ("graph", {}, {"rank": 1}),
    "graph_eval_layer": ("graph", {}, {"rank": 1, "mode": "eval", "module": "layers.1"}),
    "graph_masked_rescale": ("graph", {"rescale": True}, {"lowering": "masked"}),
    "diff": ("diff", {}, {"rank": 1}),
    "diff_block_rescale": ("diff", {"policy": "block", "rescale": True}, {"rank": 1}),
    "diff_pass_side_by_side": ("diff", {}, {"pass_name": "slice_parameters", "side_by_side": True}),
    "diff_block_masked": ("diff", {"policy": "block"}, {"rank": 1, "lowering": "masked", "unfold": True}),
    "diff_backward": ("diff", {"masking": "backward"}, {"rank": 1}),
    "graph_backward_block": ("graph", {"policy": "block", "masking": "backward"}, {"rank": 1}),
    "graph_backward_masked": (
        "graph",
        {"masking": "backward"},
        {"rank": 1, "lowering": "masked", "module": "layers.0"},
    ),
    "cost": ("cost", {}, {}),
    "cost_backward": ("cost", {"masking": "backward"}, {}),
    "cost_block": ("cost", {"policy": "block"}, {}),
    "phases": ("phases", {}, {"schedule": "rolling"}),
    "phases_steps": ("phases", {}, {"schedule": ALTERNATING}),
}


def compared(name: str, shown: str) -> None:
    path = GOLDEN / f"{name}.txt"
    shown = TORCH_LINE.sub("N", shown)
    if os.environ.get("SDP_COMPILE_WRITE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), f"{path} differs; see the top of {Path(__file__).name}"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source paths are relative to the working directory."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", CASES)
def test_view(name: str) -> None:
    view, model, options = CASES[name]
    compared(name, text(show(tiny(**model), view, **options), width=80))


def test_summary_of_a_plan() -> None:
    plan = tiny().plan
    compared("summary", text(plan, width=80))
    assert "owners" in plan._repr_html_()
    assert str(plan).splitlines()[:3] == text(plan, width=80).splitlines()[:3]


def test_json() -> None:
    """The names and types of all fields that ``--json`` writes."""
    views = {view: show(tiny(), view, **OPTIONS.get(view, {})).to_dict() for view in VIEWS}
    compared("json", "".join(f"{view}\n{described([data], 1)}" for view, data in views.items()))


def described(objects: list[dict[str, Any]], depth: int) -> str:
    """Keys and types of objects of one kind, one per line, with nested objects indented."""
    lines = []
    for key in objects[0]:
        values = [one[key] for one in objects]
        nested = [one for value in values for one in flat(value) if isinstance(one, dict)]
        kinds = sorted({kind(value) for value in values if value != []})
        lines.append(f"{'  ' * depth}{key}: {' or '.join(kinds) or 'list'}\n")
        if nested and key not in ("children", "counts"):
            lines.append(described([*nested, *descendants(nested)], depth + 1))
    return "".join(lines)


def flat(value: Any) -> list[Any]:
    return [one for item in value for one in flat(item)] if isinstance(value, list) else [value]


def kind(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {kind(value[0])}" if value else "list"
    return {"NoneType": "null", "dict": "object"}.get(type(value).__name__, type(value).__name__)


def descendants(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    below = [child for one in objects for child in one.get("children", ())]
    return [*below, *descendants(below)] if below else []


def test_views_fold_and_do_not_grow_with_depth() -> None:
    """A model with 5 layers takes no more lines than one with 3."""
    for view in VIEWS:
        deep, shallow = (lines(tiny(layers=layers), view) for layers in (5, 3))
        assert deep <= shallow + (2 if view == "structure" else 0), view


def lines(subject: Subject, view: str) -> int:
    return text(show(subject, view, **OPTIONS.get(view, {})), width=80).count("\n")
