"""Models that cannot become subnetworks are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.capture.refuse import refuse, refuse_collectives
from sdp_compile.errors import CaptureError
from tests.graph_text import parse


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
