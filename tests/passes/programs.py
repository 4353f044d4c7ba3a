"""Programs written as text, and what a pass is told of a worker of such a program."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.program import Capture, Mode, Program, StateTensor
from sdp_compile.passes import Pass, PassContext
from sdp_compile.planning.holdings import LoweringKind, holdings
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Policy
from sdp_compile.structure.analysis import analyse
from tests.graph_text import parse, text_of


def context_of(
    text: str,
    policy: Policy,
    workers: int = 2,
    rank: int = 0,
    lowering: LoweringKind = "sliced",
    mode: Mode = "train",
    buffers: Collection[str] = (),
) -> PassContext:
    """Returns what passes are told of one worker of the program ``text``, analysed and planned like a captured model.

    Args:
        text: The program; see `tests.graph_text`.
        policy: What is cut.
        workers: Number of workers.
        rank: The worker.
        lowering: Whether the worker holds slices, or masks.
        mode: Which mode of the model the program is. There is a program for training in any case.
        buffers: The tensors that are buffers; the others are trained parameters.
    """
    graph = parse(text)
    state = {
        str(node.target): StateTensor(
            tuple(node.meta["val"].shape),
            node.meta["val"].dtype,
            "buffer" if node.target in buffers else "parameter",
            requires_grad=node.target not in buffers,
        )
        for node in graph.nodes
        if node.op == "get_attr"
    }
    inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
    outputs = graph.output_node().args[0]
    assert isinstance(outputs, Sequence)
    specs = pytree.tree_structure((inputs, {})), pytree.tree_structure([0] * len(outputs))
    modes: tuple[Mode, ...] = ("train", "eval") if mode == "eval" else ("train",)
    programs = {one: Program(one, parse(text), *specs, {}) for one in modes}
    with torch.device("meta"):
        analysis = analyse(Capture(programs, state, {name: name for name in state}, {}, nn.Module(), True))
    plan = make_plan(analysis, policy, workers)
    return PassContext(analysis, plan, holdings(lowering, plan, rank))


def rewritten(context: PassContext, *passes: Pass, mode: Mode = "train") -> str:
    """Returns the text of the program after the passes; each must leave the program that it was given as it is."""
    program = context.analysis.programs[mode]
    for one in passes:
        before = text_of(program.graph)
        result = one.run(program, context)
        assert text_of(program.graph) == before, f"{one.name} changed the program that it was given"
        program = result
    return text_of(program.graph)


def lines(text: str) -> str:
    """Returns a text as `rewritten` returns it: without its indentation."""
    return inspect.cleandoc(text)
