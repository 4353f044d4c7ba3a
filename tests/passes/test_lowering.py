"""Small programs before and after the passes, as text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sdp_compile import BlockPolicy, LoweringError, NeuronPolicy, PlanError, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.passes import PassContext, SliceParameters, SyncGradients, Verify
from sdp_compile.planning.holdings import SlicedHoldings
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Policy
from sdp_compile.structure.analysis import analyse
from tests.oracle import assert_exact, randomise


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))


class Attention(nn.Module):
    """Four heads of size 2, with the implied scale and a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, 8))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = MLP()
        self.second = MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(x)


def lowering(model: nn.Module, inputs: tuple[Any, ...], policy: Policy, workers: int = 2, rank: int = 0) -> PassContext:
    analysis = analyse(capture(model, inputs))
    return PassContext(analysis, plan := make_plan(analysis, policy, workers), SlicedHoldings(plan, rank))


def text(graph: fx.Graph) -> str:
    """One line per node that computes on tensors: name, target and arguments."""

    def line(node: fx.Node) -> str:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        arguments = [repr(a) for a in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
        return f"{node.name} = {target}({', '.join(arguments)})"

    lines = [line(node) for node in graph.nodes if node.op not in {"placeholder", "get_attr", "output"}]
    sizes = {node.name: "batch" if node.args[1] == 0 else "length" for node in graph.nodes if "sym_size" in node.name}
    result = "\n".join(line for line in lines if not line.startswith("sym_size"))
    for name, meaning in sizes.items():
        result = re.sub(rf"\b{name}\b", meaning, result)
    return result


def sliced(context: PassContext) -> str:
    return text(SliceParameters().run(context.analysis.programs["train"], context).graph)


def test_an_mlp_needs_no_rewrite_but_smaller_parameters() -> None:
    context = lowering(MLP(), (torch.randn(2, 4),), NeuronPolicy(replicas=1))
    before = text(context.analysis.programs["train"].graph)
    assert sliced(context) == before
    assert context.plan.local_shape("up.weight", 0) == (4, 4)
    assert context.plan.local_shape("down.weight", 0) == (4, 4)
    assert context.plan.local_shape("down.bias", 0) == (4,)


def test_attention_over_half_of_the_heads() -> None:
    context = lowering(Attention(), (torch.randn(2, 3, 8),), NeuronPolicy(replicas=1))
    before = text(context.analysis.programs["train"].graph).splitlines()
    after = sliced(context).splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [
        (
            "view = view.default(linear, [batch, length, 3, 4, 2])",
            "view = view.default(linear, [batch, length, 3, 2, 2])",
        ),
        (
            "scaled_dot_product_attention = scaled_dot_product_attention.default(getitem, getitem_1, getitem_2)",
            "scaled_dot_product_attention = scaled_dot_product_attention.default(getitem, getitem_1, getitem_2, "
            "scale=0.7071067811865476)",
        ),
        (
            "reshape = reshape.default(transpose, [batch, length, 8])",
            "reshape = reshape.default(transpose, [batch, length, 4])",
        ),
    ]


def test_one_synchronisation_node_per_bucket_before_its_first_use() -> None:
    context = lowering(MLP(), (torch.randn(2, 4),), NeuronPolicy(replicas=2), workers=4)
    program = SyncGradients().run(context.analysis.programs["train"], context)
    assert text(program.graph).splitlines() == [
        "all_reduce_mean = all_reduce_mean(down_weight, up_bias, up_weight, bucket=4, owners=(0, 3))",
        "getitem = getitem(all_reduce_mean, 0)",
        "getitem_1 = getitem(all_reduce_mean, 1)",
        "getitem_2 = getitem(all_reduce_mean, 2)",
        "all_reduce_mean_1 = all_reduce_mean(getitem, getitem_1, getitem_2, bucket=1, owners=(0, 1))",
        "getitem_3 = getitem(all_reduce_mean_1, 0)",
        "getitem_4 = getitem(all_reduce_mean_1, 1)",
        "getitem_5 = getitem(all_reduce_mean_1, 2)",
        "linear = linear.default(x, getitem_5, getitem_4)",
        "relu = relu.default(linear)",
        "all_reduce_mean_2 = all_reduce_mean(down_bias, bucket=0, owners=(0, 1, 2, 3))",
        "getitem_6 = getitem(all_reduce_mean_2, 0)",
        "linear_1 = linear.default(relu, getitem_3, getitem_6)",
    ]


def test_a_dropped_block_leaves_no_trace() -> None:
    model = Residual().double()
    randomise(model)
    x = torch.randn(2, 4, dtype=torch.double)
    module = sdp_compile(model, BlockPolicy(replicas=1), (x,), workers=2, rank=0)
    kept = "first" if "first.up.weight" in dict(module.named_parameters()) else "second"
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {kept}
    assert sum("linear" in node.name for node in module.graph.nodes) == 2
    assert torch.equal(module(x), x + getattr(model, kept)(x))


def test_verify_names_the_node_of_a_wrong_rewrite() -> None:
    context = lowering(Attention(), (torch.randn(2, 3, 8),), NeuronPolicy(replicas=1))
    program = SliceParameters().run(context.analysis.programs["train"], context)
    view = next(node for node in program.graph.nodes if node.name == "view")
    view.args = (view.args[0], [*view.args[1][:3], 1, 4])
    with pytest.raises(LoweringError, match=r"view.*analysis says"):
        Verify().run(program, context)


@pytest.mark.parametrize("policy", [NeuronPolicy(replicas=1, rescale=True), BlockPolicy(replicas=1, rescale=True)])
def test_rescale_equals_hooks_on_the_eager_model(policy: Policy) -> None:
    """N / owners = 2 on what enters a contraction with a cut parameter, or on a kept block's output (DESIGN 2.6)."""
    model = Residual().double()
    randomise(model)
    x = torch.randn(2, 4, dtype=torch.double)
    module = sdp_compile(model, policy, (x,), workers=2, rank=0)
    handles = []
    for branch in (model.first, model.second):
        if isinstance(policy, NeuronPolicy):
            handles.append(branch.down.register_forward_pre_hook(lambda _, args: (args[0] * 2,)))
        else:
            handles.append(branch.register_forward_hook(lambda _, __, output: output * 2))
    model.train()
    masked = {name: p * module.plan.mask(name, 0) for name, p in model.named_parameters()}
    expected = torch.func.functional_call(model, masked, (x,))
    assert torch.allclose(module.train()(x), expected, rtol=1e-12, atol=1e-12)
    for handle in handles:
        handle.remove()
    expected = torch.func.functional_call(model.eval(), masked, (x,))
    assert torch.allclose(module.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert {entry.factors[0] for entry in module.plan.rescales(0)} == {2.0}


class Sizes(nn.Module):
    """Merges the batch with the heads, and asks a sliced tensor for its size."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 12, bias=False)
        self.merge = nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(x).view(x.shape[0] * 4, 3)
        y = torch.tanh(heads)
        return self.merge(y.view(y.shape[0] // 4, 12)) * heads.shape[0]


def test_sizes_that_hold_a_cut_dimension() -> None:
    model = Sizes().double()
    randomise(model)
    x = torch.randn(3, 6, dtype=torch.double)
    for rank in range(2):
        module = sdp_compile(model, NeuronPolicy(replicas=1), (x,), workers=2, rank=rank)
        if module.plan.families:
            assert module.plan.local_shape("project.weight", rank) == (6, 6)
        for batch in (3, 5):
            assert_exact(module, model, module.plan, rank, (torch.randn(batch, 6, dtype=torch.double),), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "torchrun"),
        ({"workers": 0}, "workers must be"),
        ({"workers": 2, "rank": 2}, "0 to 1"),
        ({"workers": 2, "rank": 0, "lowering": "full"}, "lowering must be"),
        ({"workers": 2, "rank": 0, "bucket_bytes": 0}, "bucket_bytes must be"),
        ({"workers": 2, "rank": 0, "comm_dtype": torch.int8}, "comm_dtype"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sdp_compile(MLP(), "neuron", (torch.randn(2, 4),), **arguments)
