"""Lowering: what each pass left, and what survives a pickle."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn

from sdp_compile import NeuronPolicy, PassError
from sdp_compile.capture import capture
from sdp_compile.lowering import Lowered, lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.making import make_plan
from sdp_compile.structure.analysis import Analysis, analyse


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Unflatten(1, (8, 2)), nn.Flatten())
    return analyse(capture(nn.Sequential(model, nn.Linear(16, 6)), (torch.randn(4, 6),)))


CASES = [("sliced", "forward"), ("sliced", "backward"), ("masked", "forward"), ("masked", "backward")]


def lowered_for(analysis: Analysis, lowering: LoweringKind, masking: Any) -> Lowered:
    plan = make_plan(analysis, NeuronPolicy(coverage=0.5, masking=masking), 2)
    return lower(analysis, plan, 1, pipeline(lowering, masking))


def text(graph: fx.Graph) -> list[str]:
    return [f"{node.name} = {node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]


def metadata(graph: fx.Graph) -> list[Any]:
    return [(node.name, node.meta.get("layouts"), node.meta.get("rewrites")) for node in graph.nodes]


@pytest.mark.parametrize(("lowering", "masking"), CASES)
def test_steps_are_the_programs_that_the_passes_leave(analysis: Analysis, lowering: Any, masking: Any) -> None:
    lowered = lowered_for(analysis, lowering, masking)
    for mode, program in lowered.programs.items():
        steps = lowered.steps(mode)
        assert [step.name for step in steps] == ["", *(one.name for one in lowered.passes)]
        assert steps[0].program is analysis.programs[mode] and steps[-1].program is program
        for step, before, one in zip(steps[1:], steps, lowered.passes, strict=False):
            assert text(step.program.graph) == text(one.run(before.program, lowered.context).graph)
        slices = [step.name for step in steps if step.is_sliced]
        is_sliced = lowering == "sliced" and masking == "forward"
        names = [one.name for one in lowered.passes]
        assert slices == (names[names.index("slice_parameters") :] if is_sliced else [])


@pytest.mark.parametrize(("lowering", "masking"), CASES)
def test_a_pickle_keeps_layouts_and_rewrites(analysis: Analysis, lowering: Any, masking: Any) -> None:
    lowered = lowered_for(analysis, lowering, masking)
    again = pickle.loads(pickle.dumps(lowered))
    assert again.passes == lowered.passes and again.plan == lowered.plan
    assert (again.rank, again.lowering) == (lowered.rank, lowered.lowering)
    for mode in lowered.programs:
        original = metadata(analysis.programs[mode].graph)
        assert any(layouts for _, layouts, _ in original) and any(rewrites for _, _, rewrites in original)
        assert metadata(again.analysis.programs[mode].graph) == original
        for mine, theirs in zip(again.steps(mode), lowered.steps(mode), strict=True):
            assert text(mine.program.graph) == text(theirs.program.graph)
            assert metadata(mine.program.graph) == metadata(theirs.program.graph)


def test_passes_for_another_masking_are_refused(analysis: Analysis) -> None:
    plan = make_plan(analysis, NeuronPolicy(coverage=0.5), 2)
    with pytest.raises(PassError, match="masking='backward', but the policy has masking='forward'"):
        lower(analysis, plan, 0, pipeline("sliced", "backward"))
