"""``diff`` shows every rewrite and nothing else, compared with the two graphs themselves."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from torch import fx

from sdp_compile import ops
from sdp_compile.errors import PlanError
from sdp_compile.inspector import DiffView, Subject, diff_view
from sdp_compile.inspector.replay import replay
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes import Pass, PassContext, pipeline, with_pass
from tests.inspector.subjects import library, tiny

pytestmark = pytest.mark.timeout(120)

CASES = [
    ("gpt2", "neuron", "sliced", "train", {}),
    ("gpt2", "block", "sliced", "train", {"rescale": True}),
    ("gpt2", "neuron", "masked", "train", {"rescale": True}),
    ("resnet18", "neuron", "sliced", "train", {}),
    ("resnet18", "block", "sliced", "eval", {}),
    ("resnet18", "block", "masked", "train", {}),
]


@pytest.mark.parametrize(("name", "policy", "lowering", "mode", "fields"), CASES)
def test_every_rewrite_and_nothing_else(name: str, policy: str, lowering: Any, mode: Any, fields: Any) -> None:
    subject = library(name, policy, **fields)
    steps = replay(subject, 1, mode, lowering)
    before, after = Plainly(steps[0].program.graph), Plainly(steps[-1].program.graph)
    view = diff_view(subject, 1, mode, lowering)
    assert named(view, "insert") == {name for name in after.calls if name not in before.calls}
    assert named(view, "remove") == {name for name in before.calls if name not in after.calls}
    common = before.calls.keys() & after.calls.keys()
    assert named(view, "change") == {name for name in common if before.calls[name] != after.calls[name]}
    assert named(view, "slice") == {name for name in common if local_shape(after, name) != local_shape(before, name)}
    assert named(view, "change") or named(view, "insert") or named(view, "remove")
    # Nothing is left out, and computing rows keep the order of both graphs, with the all-reduces first.
    assert [line.before.name for line in view.lines if line.before and line.before.kind != "state"] == before.computing
    computing = [line.after.name for line in view.lines if line.after and line.after.kind not in ("state", "mask")]
    assert computing == after.computing


class Plainly:
    """A graph by names, to compare by hand. It looks through all-reduces and masks, which pass tensors on."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.calls = {
            node.name: str((node.target, self.plain(node.args), self.plain(node.kwargs)))
            for node in graph.nodes
            if not self.hidden(node)
        }
        order = [node for node in graph.nodes if node.name in self.calls and node.target is not ops.mask_parameter]
        order = [node for node in order if node.op != "get_attr"]
        inputs = [node.name for node in order if node.op == "placeholder"]
        marks = [node for node in order if node.target is ops.all_reduce_mean]
        reductions = [node.name for node in sorted(marks, key=lambda node: node.kwargs["bucket"])]
        rest = [node.name for node in order if node.name not in {*inputs, *reductions}]
        self.computing = inputs + reductions + rest

    def hidden(self, node: fx.Node) -> bool:
        mark = node.target is operator.getitem and node.args[0].target is ops.all_reduce_mean  # type: ignore[union-attr]
        return mark or str(node.target).startswith("_sdp_mask_")

    def plain(self, value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: f"%{self.source(node)}")

    def source(self, node: fx.Node) -> Any:
        while True:
            if node.target is operator.getitem and node.args[0].target is ops.all_reduce_mean:  # type: ignore[union-attr]
                node = node.args[0].args[node.args[1]]  # type: ignore
            elif node.target is ops.mask_parameter:
                node = node.args[0]  # type: ignore[assignment]
            else:
                return node.target if node.op == "get_attr" else node.name


def local_shape(graph: Plainly, name: str) -> tuple[int, ...] | None:
    node = graph.nodes[name]
    return tuple(node.meta["val"].shape) if node.op == "get_attr" else None


def named(view: DiffView, change: str) -> set[str]:
    return {line.row.name for line in view.lines if line.change == change}


def test_one_worker_rewrites_nothing() -> None:
    view = diff_view(library("resnet18", "neuron", workers=1))
    assert {line.change for line in view.lines} == {"same"}
    assert (view.inserted, view.removed, view.changed, view.sliced) == (0, 0, 0, 0)


@pytest.mark.parametrize("policy", ["neuron", "block"])
def test_passes_add_up_to_the_whole(policy: str) -> None:
    subject = tiny(policy, rescale=True)
    whole = diff_view(subject, 1)
    assert [step.pass_ for step in whole.steps] == [one.name for one in pipeline()]
    for step in whole.steps:
        view = diff_view(subject, 1, pass_name=step.pass_)
        counted = view.inserted, view.removed, view.changed, view.sliced
        assert counted == (step.inserted, step.removed, step.changed, step.sliced), step
    nodes = len(subject.capture.programs["train"].graph.nodes)
    assert whole.steps[0].nodes_before == nodes
    assert all(a.nodes_after == b.nodes_before for a, b in zip(whole.steps, whole.steps[1:], strict=False))


@dataclass(frozen=True)
class Negate(Pass):
    """A user's pass that negates the result."""

    name: ClassVar[str] = "negate"

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        output = program.graph.output_node()
        (result,) = output.args[0]  # type: ignore[misc]
        with program.graph.inserting_before(output):
            negated = program.graph.call_function(operator.neg, (result,))
        output.args = ([negated],)
        return program


def test_a_custom_pass_is_shown() -> None:
    view = diff_view(tiny(), pass_name="negate", passes=with_pass(pipeline(), Negate(), before="verify"))
    assert [line.change for line in view.lines if line.change != "same"] == ["insert", "change"]
    inserted = next(line.after for line in view.lines if line.change == "insert")
    assert inserted is not None and inserted.code.startswith("neg(") and inserted.inputs


def test_unknown_options_are_refused() -> None:
    subject: Subject = tiny()
    for options, words in (
        ({"pass_name": "slice_parameter"}, "slice_parameters"),
        ({"rank": 4}, "0 to 3"),
        ({"mode": "test"}, "train"),
        ({"lowering": "slized"}, "sliced"),
        ({"module": "layer.*"}, "layers.0"),
    ):
        with pytest.raises(PlanError, match=words):
            diff_view(subject, **options)  # type: ignore[arg-type]
