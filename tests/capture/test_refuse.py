"""Models that cannot become subnetworks are refused by name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch._higher_order_ops.associative_scan import associative_scan
from torch.autograd import forward_ad

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.capture.refuse import refuse, refuse_collectives, refuse_transforms
from sdp_compile.errors import CaptureError
from tests.capture.models import Then
from tests.graph_text import parse


class Doubled(torch.Tensor):
    """Changes what operators mean."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {}) * 2


def with_backward_hook(model: nn.Sequential) -> None:
    model[0].register_full_backward_hook(lambda *_: None)


def with_backward_pre_hook(model: nn.Sequential) -> None:
    model[0].register_full_backward_pre_hook(lambda *_: None)


def with_gradient_hook(model: nn.Sequential) -> None:
    model[0].weight.register_hook(lambda gradient: gradient)


def with_hook_after_accumulation(model: nn.Sequential) -> None:
    model[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_backward_hook, r"Module '0' \(Linear\) has a backward hook"),
        (with_backward_pre_hook, r"Module '0' \(Linear\) has a backward hook"),
        (with_gradient_hook, r"Parameter '0.weight' has a gradient hook"),
        (with_hook_after_accumulation, r"Parameter '0.weight' has a gradient hook"),
        (lambda model: model.append(nn.SyncBatchNorm(6)), r"Module '1' is a SyncBatchNorm.*BatchNorm"),
        (lambda model: model.append(nn.LazyLinear(6)), r"Parameter '1.weight' has no shape yet"),
        (lambda model: model.append(nn.LazyBatchNorm1d(affine=False)), r"Buffer '1.running_mean' has no shape yet"),
        (lambda model: model.append(torch.jit.script(nn.Linear(6, 6))), "Module '1' was scripted or traced.*Pass the"),
        (lambda model: model.append(torch.jit.trace(nn.ReLU(), torch.ones(6))), "Module '1' was scripted or traced"),
        (lambda model: setattr(model[0], "training", nn.Linear(6, 6)), "Module '0' has a part named 'training'"),
        (
            lambda model: model[0].register_buffer("adjacency", torch.eye(6).to_sparse()),
            "'0.adjacency' is a sparse_coo",
        ),
        (lambda model: model[0].register_buffer("links", torch.eye(6).to_sparse_csr()), "'0.links' is a sparse_csr"),
        (
            lambda model: setattr(model[0], "weight", nn.Parameter(torch.eye(6).to_sparse())),
            "'0.weight' is a sparse_coo",
        ),
        (
            lambda model: setattr(model, "links", torch.eye(6).to_sparse_csc()),
            "'links' is a sparse_csc tensor.*indices",
        ),
        (lambda model: setattr(model, "scale", Doubled(torch.ones(6))), "'scale' is a tensor of the class .*Doubled"),
        (lambda model: model.append(nn.DataParallel(nn.Linear(6, 6))), r"Module '1' is a DataParallel.*bare model"),
    ],
)
def test_parts_that_a_subnetwork_cannot_have(change: Callable[[nn.Sequential], object], message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    refuse(model)
    change(model)
    with pytest.raises(CaptureError, match=message):
        refuse(model)


def test_wrapped_models_are_told_from_bare_ones() -> None:
    with pytest.raises(CaptureError, match=r"The model is a OptimizedModule.*torch\.compile\(sdp\.compile\(model"):
        refuse(torch.compile(nn.Linear(6, 6)))  # type: ignore[arg-type]
    small = sdp_compile(
        nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), NeuronPolicy(), torch.ones(2, 4), workers=2, rank=0
    )
    with pytest.raises(CaptureError, match="The model is a SDPModule: it is already a subnetwork"):
        refuse(small)

    class DistributedDataParallel(nn.Linear):
        """Stands for torch's, which needs a process group."""

    class Subclass(DistributedDataParallel):
        pass

    with pytest.raises(CaptureError, match="is a DistributedDataParallel"):
        refuse(nn.Sequential(Subclass(2, 2)))


def test_forward_hooks_are_no_obstacle() -> None:
    model = nn.Linear(6, 6)
    model.register_forward_hook(lambda *_: None)
    refuse(model)


def test_collectives_in_a_graph_are_named_with_their_line() -> None:
    graph = parse("""
        x: f32[4] = placeholder
        total: f32[4] = _c10d_functional.all_reduce(x, 'sum', '0')
        y: f32[4] = aten.relu(x)
        return y""")
    node = next(node for node in graph.nodes if node.name == "total")
    with pytest.raises(CaptureError, match=r"collective of its own \(_c10d_functional.all_reduce.default\)\. "):
        refuse_collectives(graph)
    node.meta["stack_trace"] = 'File "/home/user/model.py", line 7, in forward\n    dist.all_reduce(x)'
    with pytest.raises(CaptureError, match=r" at /home/user/model\.py:7: dist\.all_reduce\(x\)\. "):
        refuse_collectives(graph)
    graph.erase_node(node)
    refuse_collectives(graph)


def mapped(y: torch.Tensor) -> torch.Tensor:
    return torch.vmap(torch.dot)(y, y)


def mapped_without_use(y: torch.Tensor) -> torch.Tensor:
    torch.vmap(torch.sin)(y)
    return y


def mapped_over_indices(y: torch.Tensor) -> torch.Tensor:
    """As masks of transformers are made."""
    with TransformGetItemToIndex():
        return y * torch.vmap(lambda index: y[index, 0])(torch.arange(4))[:, None]


def scanned(y: torch.Tensor) -> torch.Tensor:
    return associative_scan(torch.add, y, 0, combine_mode="generic")


def tangent(y: torch.Tensor) -> torch.Tensor:
    return torch.func.jvp(torch.sin, (y,), (torch.ones_like(y),))[1]


def tangent_by_level(y: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(forward_ad.make_dual(y, torch.ones_like(y)).sin()).tangent


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (mapped, r"uses torch\.func\.vmap.*models\.py.*torch\.bmm"),
        (mapped_without_use, r"uses torch\.func\.vmap.*models\.py.*torch\.bmm"),
        (
            mapped_over_indices,
            r"uses (a transform of torch\.func|torch\.func\.vmap).*test_refuse\.py.*batched operators",
        ),
        (scanned, r"uses torch\.func\.vmap, or an operator that is built on it.*torch\.bmm"),
        (tangent, "derivatives in forward mode .*Write the derivative"),
        (tangent_by_level, "derivatives in forward mode .*Write the derivative"),
    ],
)
def test_transforms_are_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(Then(function), torch.randn(4, 6))


def test_only_operators_and_arithmetic_may_be_called() -> None:
    graph = parse("""
        x: f32[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y""")
    refuse_transforms(graph)
    with graph.inserting_before(graph.output_node()):
        for harmless in (operator.getitem, math.floor, torch.sym_max):
            graph.call_function(harmless, (1, 2))
        refuse_transforms(graph)
        graph.call_function(torch._C._set_grad_enabled, (False,))
    with pytest.raises(CaptureError, match="_set_grad_enabled, which a graph of tensor operators cannot hold"):
        refuse_transforms(graph)
