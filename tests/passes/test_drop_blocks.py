"""Dropped blocks: golden graphs, and the original model with the block's parameters multiplied by 0 as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import LoweringError
from sdp_compile.ir.program import Capture, Mode, Program, copy_program
from sdp_compile.passes import BypassBlocks, PassContext, ZeroBlocks
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.blocks.finding import find_blocks
from tests import residual_models as models
from tests.oracle import randomise, relative_error, run_original, scalar, tensors_of, without_randomness

TOLERANCE = 1e-9


def lowered(captured: Capture, mode: Mode, context: PassContext) -> Program:
    program = captured.programs[mode]
    drop = ZeroBlocks() if context.holdings.lowering == "masked" else BypassBlocks()
    for step in (drop, DeadCode()):
        program = step.run(program, context)
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

    def assert_equals_oracle(self, units: set[int], lowering: LoweringKind, family: str = "blocks") -> None:
        context = models.context_without(self.blocks, self.capture, units, lowering, family)
        numbers = [number for unit in units for number in self.blocks.units(family)[unit]]
        gone = {name for number in numbers for name in self.blocks.blocks[number].parameters}
        args, kwargs = ((), self.inputs) if isinstance(self.inputs, dict) else (self.inputs, {})
        for mode in self.capture.programs:
            self.model.train(mode == "train")
            expected = run_original(self.model, args, kwargs, lambda name: torch.tensor(float(name not in gone)))
            program = lowered(self.capture, mode, context)
            self._compare(program, context, gone, expected)

    def _compare(self, program: Program, context: PassContext, gone: set[str], expected: Any) -> None:
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
            if name in gone:
                assert gradient is not None and not gradient.any(), name
            elif gradient is not None:
                assert relative_error(gradient, expected.gradients[name], floor) < TOLERANCE, name
            else:
                assert not expected.gradients.get(name, torch.zeros(())).any(), name
        for name, buffer in buffers.items():
            if buffer.is_floating_point() and is_outside(name, context):
                assert relative_error(buffer, expected.buffers[name]) < TOLERANCE, name


def is_outside(name: str, context: PassContext) -> bool:
    """Statistics inside of dropped blocks are those of the full weights when masked: they are merged away."""
    dropped = context.plan.dropped_blocks(0)
    numbers = [
        number for unit in dropped for number in context.analysis.blocks.units(str(context.plan.block_family))[unit]
    ]
    return not any(name in context.analysis.blocks.blocks[number].buffers for number in numbers)


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_dropping_a_block_equals_multiplying_its_parameters_by_zero(case: models.Case) -> None:
    prepared = Prepared(case)
    count = len(prepared.blocks.blocks)
    for units in ({0}, set(range(0, count, 2)), set(range(1, count)), set(range(count))):
        prepared.assert_equals_oracle(units, "sliced")
    prepared.assert_equals_oracle(set(range(0, count, 2)), "masked")
    prepared.assert_equals_oracle({0}, "sliced", "layers")


class Residual(nn.Module):
    """x + tail(b(relu(a(x)))), then a last layer."""

    def __init__(self, tail: Any = None, after: Any = None) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tail, self.after = tail or nn.Identity(), after or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.after(x + self.tail(self.b(torch.relu(self.a(x)))))  # type: ignore[no-any-return]


def rewritten(model: nn.Module, lowering: LoweringKind, mode: Mode = "train") -> str:
    captured = capture(model, (torch.randn(3, 4),))
    blocks = find_blocks(captured)
    assert len(blocks.blocks) == 1
    before = models.text(captured.programs[mode])
    after = lowered(captured, mode, models.context_without(blocks, captured, {0}, lowering))
    assert models.text(captured.programs[mode]) == before, "the given program was changed"
    assert all("val" in node.meta for node in after.graph.nodes if node.op == "call_function")
    return models.text(after)


@pytest.mark.timeout(120)
def test_sliced_leaves_the_skip_path() -> None:
    model = Residual(after=nn.Tanh())
    captured = capture(model, (torch.randn(3, 4),))
    assert models.text(captured.programs["train"]) == (
        "first_weight = first.weight\n"
        "first_bias = first.bias\n"
        "a_weight = a.weight\n"
        "a_bias = a.bias\n"
        "b_weight = b.weight\n"
        "b_bias = b.bias\n"
        "linear = linear.default(x, first_weight, first_bias)\n"
        "linear_1 = linear.default(linear, a_weight, a_bias)\n"
        "relu = relu.default(linear_1)\n"
        "linear_2 = linear.default(relu, b_weight, b_bias)\n"
        "add = add.Tensor(linear, linear_2)\n"
        "tanh = tanh.default(add)\n"
        "return tanh"
    )
    assert rewritten(model, "sliced") == (
        "first_weight = first.weight\n"
        "first_bias = first.bias\n"
        "linear = linear.default(x, first_weight, first_bias)\n"
        "tanh = tanh.default(linear)\n"
        "return tanh"
    )


@pytest.mark.timeout(120)
def test_masked_feeds_zeros_to_the_add() -> None:
    assert rewritten(Residual(), "masked").splitlines()[-5:] == [
        "linear_2 = linear.default(relu, b_weight, b_bias)",
        "new_zeros = new_zeros.default(linear_2, [], dtype=torch.bool)",
        "where = where.ScalarOther(new_zeros, linear_2, 0)",
        "add = add.Tensor(linear, where)",
        "return add",
    ]


@pytest.mark.timeout(120)
def test_an_activation_in_place_on_the_sum_leaves_the_skip_path_alone() -> None:
    assert rewritten(Residual(after=nn.ReLU(inplace=True)), "sliced").splitlines()[2:] == [
        "linear = linear.default(x, first_weight, first_bias)",
        "relu_ = relu.default(linear)",
        "return relu_",
    ]


class Branching(nn.Module):
    """The skip path, the sum or a view of either is overwritten later."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.first, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
        self.variant = variant

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x)
        if self.variant == "sum on the skip path":
            x = x.tanh()
            x += self.a(x.detach())
            return x.mul_(2), x
        y = x + self.a(x)
        if self.variant == "skip path overwritten":
            z = x.mul_(3)
            return y + 1, z
        if self.variant == "view of the sum overwritten":
            y[:, 0].mul_(3)
            return y, x
        y.mul_(2)
        return y, x + 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "variant",
    ["sum on the skip path", "skip path overwritten", "view of the sum overwritten", "sum overwritten, skip used"],
)
def test_aliases_of_skip_path_and_sum(variant: str) -> None:
    prepared = Prepared(lambda: (Branching(variant), (torch.randn(3, 4),)))
    assert len(prepared.blocks.blocks) == 1
    for units in (set[int](), {0}):
        context = models.context_without(prepared.blocks, prepared.capture, units, "sliced")
        gone = {name for unit in units for name in prepared.blocks.blocks[unit].parameters}
        state = {name: tensor * (name not in gone) for name, tensor in prepared.model.named_parameters()}
        with torch.no_grad():
            expected = torch.func.functional_call(prepared.model, state, prepared.inputs)
            kept = {name: tensor for name, tensor in state.items() if name not in gone}
            found = models.Runner(lowered(prepared.capture, "eval", context), kept)(prepared.inputs)
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < TOLERANCE


@pytest.mark.timeout(120)
def test_the_skip_path_takes_the_dtype_of_the_sum() -> None:
    class Promoting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half = x.bfloat16()
            return half + self.a(half.float())

    assert rewritten(Promoting(), "sliced").splitlines()[-2:] == ["to_2 = to.dtype(to, torch.float32)", "return to_2"]


@pytest.mark.timeout(120)
def test_infinite_branches_leave_nothing_behind_when_masked() -> None:
    model = Residual().double()
    captured = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    context = models.context_without(find_blocks(captured), captured, {0}, "masked")
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    state["b.weight"].fill_(float("inf"))
    output = models.Runner(lowered(captured, "train", context), state)((torch.randn(3, 4, dtype=torch.float64),))
    assert output.isfinite().all()


@pytest.mark.timeout(120)
def test_nothing_to_drop_returns_the_program_itself() -> None:
    captured = capture(Residual(), (torch.randn(3, 4),))
    context = models.context_without(find_blocks(captured), captured, (), "sliced")
    assert BypassBlocks().run(captured.programs["train"], context) is captured.programs["train"]


@pytest.mark.timeout(120)
def test_a_graph_without_the_block_is_an_error_that_names_the_node() -> None:
    captured = capture(Residual(), (torch.randn(3, 4),))
    context = models.context_without(find_blocks(captured), captured, {0}, "sliced")
    with pytest.raises(LoweringError, match="'add'"):
        BypassBlocks().run(lowered(captured, "train", context), context)


@pytest.mark.timeout(120)
def test_copies_keep_names_and_metadata_and_are_separate() -> None:
    program = capture(*models.gpt2()).programs["train"]
    copy = copy_program(program)
    assert models.text(copy) == models.text(program)
    assert [node.meta.keys() for node in copy.graph.nodes] == [node.meta.keys() for node in program.graph.nodes]
    next(iter(copy.graph.nodes)).meta["mark"] = True
    assert not any("mark" in node.meta for node in program.graph.nodes)
