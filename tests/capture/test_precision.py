"""A captured model in other dtypes and another autocast state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.precision import autocast_dtype, autocast_of, call_in, skeleton_in
from sdp_compile.ir.program import Precision
from tests.capture.models import Residual

CPU = torch.device("cpu")


def test_autocast_is_off_or_has_a_dtype() -> None:
    assert autocast_dtype("cpu") is None
    with torch.autocast("cpu", torch.float16):
        assert autocast_dtype("cpu") == torch.float16
        with torch.autocast("cpu", enabled=False):
            assert autocast_dtype("cpu") is None


@pytest.mark.parametrize("ambient", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, torch.bfloat16])
def test_a_graph_runs_in_its_own_autocast_state(ambient: torch.dtype | None, wanted: torch.dtype | None) -> None:
    with torch.autocast("cpu", ambient, enabled=ambient is not None):
        with autocast_of(Precision(autocast=wanted), CPU):
            assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == (wanted or torch.float32)
        assert autocast_dtype("cpu") == ambient


def test_the_call_has_the_dtypes_asked_for_in_order() -> None:
    inputs = {"x": torch.randn(4, 6), "extra": {"a": {"b": torch.randn(4, 6)}}, "bias": 0.5}
    call = call_in(Precision((torch.bfloat16, torch.float64)), capture(Residual(), inputs))
    assert call.kwargs["x"].dtype == torch.bfloat16 and call.kwargs["extra"]["a"]["b"].dtype == torch.float64
    assert call.kwargs["bias"] == 0.5 and all(tensor.is_meta and tensor.shape == (4, 6) for tensor in call.tensors)


def test_the_skeleton_is_cast_by_dtype_and_by_name() -> None:
    model = Residual()
    captured = capture(model, torch.randn(4, 6))
    casts = ((torch.float32, torch.bfloat16), ("seen", torch.float64))
    bones = skeleton_in(Precision(casts=casts), captured, CPU)
    assert bones.outer.weight is bones.inner[0].weight and isinstance(bones.outer.weight, nn.Parameter)
    assert bones.outer.weight.dtype == bones.scale.dtype == torch.bfloat16 and bones.outer.weight.is_meta
    assert bones.seen.dtype == torch.float64
    assert bones.inner[1].num_batches_tracked.dtype == torch.int64, "other dtypes stay"
    assert torch.equal(bones.scale, model.scale.bfloat16()), "buffers on the device keep their values"
    assert captured.skeleton.outer.weight.dtype == torch.float32, "the captured skeleton is not changed"
    assert skeleton_in(Precision(), captured, torch.device("meta")).scale.is_meta


def test_precisions_are_told_in_words() -> None:
    precision = Precision((torch.int64,), torch.bfloat16, ((torch.float32, torch.float16), ("norm", torch.float32)))
    assert str(precision) == "float32 as float16, 'norm' as float32, autocast to bfloat16, inputs of int64"
    assert str(Precision()) == "inputs of no dtype"
