"""The oracle of dropped blocks: the original model with the parameters of those blocks multiplied by 0."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from sdp_compile.capture import capture
from sdp_compile.ir.program import Capture, Mode, Program
from sdp_compile.passes import BypassBlocks, DeadCode, PassContext, ZeroBlocks
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.blocks.finding import find_blocks
from tests import residual_models as models
from tests.oracle import Run, randomise, relative_error, run_original, scalar, tensors_of, without_randomness

TOLERANCE = 1e-9

CASES = [
    models.resnet18,
    models.gpt2,
    models.llama,
    models.small_swin,
    models.small_convnext,
    models.bert,
    models.gpt_neox,
    models.albert,
]


def lowered(captured: Capture, mode: Mode, context: PassContext) -> Program:
    """Returns the program without the dropped blocks."""
    program = captured.programs[mode]
    drop = ZeroBlocks() if context.holdings.lowering == "masked" else BypassBlocks()
    for one in (drop, DeadCode()):
        program = one.run(program, context)
    return program


class Prepared:
    """A model in float64 with random weights and without randomness, captured."""

    def __init__(self, case: models.Case) -> None:
        model, inputs = case()
        self.model = randomise(without_randomness(model).double())
        as_double = {torch.float32: torch.float64}
        leaves = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
        converted = {key: value.to(as_double.get(value.dtype, value.dtype)) for key, value in leaves}
        self.inputs: models.Inputs = converted if isinstance(inputs, dict) else tuple(converted.values())
        self.capture = capture(self.model, self.inputs)
        self.blocks: Blocks = find_blocks(self.capture)

    def assert_equals_oracle(self, units: Collection[int], lowering: LoweringKind, family: str = "blocks") -> None:
        """Outputs, gradients and running statistics without the units equal the oracle's, in both modes."""
        context = models.context_without(self.blocks, self.capture, units, lowering, family)
        numbers = [number for unit in units for number in self.blocks.units(family)[unit]]
        gone = {name for number in numbers for name in self.blocks.blocks[number].parameters}
        args, kwargs = ((), self.inputs) if isinstance(self.inputs, dict) else (self.inputs, {})
        for mode in self.capture.programs:
            self.model.train(mode == "train")
            expected = run_original(self.model, args, kwargs, lambda name: torch.tensor(float(name not in gone)))
            program = lowered(self.capture, mode, context)
            self._compare(program, context, gone, expected)

    def _compare(self, program: Program, context: PassContext, gone: set[str], expected: Run) -> None:
        parameters = {n: p.detach().clone().requires_grad_() for n, p in self.model.named_parameters()}
        # What is not kept must not be read: it is not even given.
        parameters = {name: parameter for name, parameter in parameters.items() if context.holdings.keeps(name)}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers() if context.holdings.keeps(name)}
        runner = models.Runner(program, {**self.capture.constants, **parameters, **buffers})
        outputs = tensors_of(runner(self.inputs))
        for found, wanted in zip(outputs, expected.outputs, strict=True):
            assert relative_error(found, wanted) < TOLERANCE
        gradients = torch.autograd.grad(scalar(outputs), list(parameters.values()), allow_unused=True)
        floor = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.gradients.values())
        for name, gradient in zip(parameters, gradients, strict=True):
            if name in gone:  # masked: the branch is computed, and its gradient is exactly 0
                assert gradient is not None and not gradient.any(), name
            elif gradient is None:
                assert not expected.gradients.get(name, torch.zeros(())).any(), name
            else:
                assert relative_error(gradient, expected.gradients[name], floor) < TOLERANCE, name
        for name in (name for name, buffer in buffers.items() if _is_compared(name, buffer, context)):
            assert relative_error(buffers[name], expected.buffers[name]) < TOLERANCE, name


def _is_compared(name: str, buffer: torch.Tensor, context: PassContext) -> bool:
    """Statistics inside of dropped blocks are those of the full weights when masked: they are merged away."""
    dropped = context.plan.dropped_blocks(0)
    blocks = context.analysis.blocks
    numbers = [number for unit in dropped for number in blocks.units(str(context.plan.block_family))[unit]]
    return buffer.is_floating_point() and not any(name in blocks.blocks[number].buffers for number in numbers)


def outputs_without(prepared: Prepared, units: Collection[int]) -> tuple[Any, Any]:
    """Returns what the program without the units computes in evaluation, and what the oracle does."""
    context = models.context_without(prepared.blocks, prepared.capture, units, "sliced")
    gone = {name for unit in units for name in prepared.blocks.blocks[unit].parameters}
    state = {name: tensor * (name not in gone) for name, tensor in prepared.model.named_parameters()}
    kept = {name: tensor for name, tensor in state.items() if name not in gone}
    with torch.no_grad():
        expected = torch.func.functional_call(prepared.model, state, prepared.inputs)
        found = models.Runner(lowered(prepared.capture, "eval", context), kept)(prepared.inputs)
    return found, expected
