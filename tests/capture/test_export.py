"""torch.export on one mode: what is tried in turn, and what stays as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.export import captured_device, export_mode, prepared
from sdp_compile.capture.inputs import Call, requiring
from sdp_compile.errors import CaptureError
from tests.capture.models import Residual, run

CPU = torch.device("cpu")


def test_swin_keeps_its_batch_size_free_and_says_that_its_image_size_is_not() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [7, 7], num_classes=4)
    captured = capture(model, torch.empty(1, 3, 64, 64))
    assert captured.programs["train"].inputs[0].dims == ("n0", 3, 64, 64)
    assert any("leading input size" in note for note in captured.notes)


class Padding(nn.Module):
    """Pads the rows to a multiple of 7: later sizes are formulas of remainders."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, 0, 0, (7 - x.shape[0] % 7) % 7)) * 2


def test_fixed_sizes_are_told() -> None:
    model, x = Padding(), torch.randn(3, 6)
    captured = capture(model, x)
    assert captured.programs["eval"].inputs[0].dims == (3, 6)
    assert any("eval graph captured by export with all input sizes fixed" in n for n in captured.notes)
    assert torch.equal(run(model, captured, "eval", x), model(x))


def test_fewer_sizes_are_free_where_capture_fails_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    export, seen = torch.export.export, []

    def only_fixed(*args: Any, dynamic_shapes: Any, **kwargs: Any) -> Any:
        seen.append(dynamic_shapes)
        if dynamic_shapes is not None:
            raise ValueError("not this way")
        return export(*args, dynamic_shapes=dynamic_shapes, **kwargs)

    monkeypatch.setattr(torch.export, "export", only_fixed)
    found = export_mode(nn.Linear(6, 6), Call((torch.randn(4, 6),), {}), "train", CPU)
    assert found.notes == (
        "train graph captured by export with all input sizes fixed, because: ValueError: not this way",
    )
    assert any(node.target is torch.ops.aten.linear.default for node in found.program.graph.nodes)
    assert [shapes and set(shapes["input"]) for shapes in seen] == [{0, 1}, {0}, None]


def test_what_depends_on_values_is_not_tried_with_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def refused(*args: Any, strict: bool, **kwargs: Any) -> Any:
        seen.append(strict)
        raise ValueError("a guard on data-dependent expression")

    monkeypatch.setattr(torch.export, "export", refused)
    with pytest.raises(CaptureError, match="depends on tensor values"):
        export_mode(nn.Linear(6, 6), Call((torch.randn(4, 6),), {}), "train", CPU)
    assert seen == [False]


def test_every_size_may_vary_also_in_nested_inputs() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[torch.Tensor, dict[str, Any]], *, flag: bool = True) -> torch.Tensor:
            return pair[0] + pair[1]["b"] if flag else pair[0]

    captured = capture(Nested(), {"pair": (torch.randn(4, 6), {"b": torch.randn(4, 6)}), "flag": True})
    program = captured.programs["train"]
    assert [program.inputs[index].dims for index in (0, 1)] == [("n0", "n1"), ("n0", "n1")]
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    found = run(Nested(), captured, "train", pair=(first, {"b": second}), flag=True)
    assert torch.equal(found, first + second)


def test_the_copy_to_export_is_in_the_mode_asked_for_and_shares_the_weights() -> None:
    model = Residual().eval()
    call = requiring(Call((torch.randn(4, 6, requires_grad=True),), {}), (True, False))
    subject, call = prepared(model, call, "train", CPU)
    assert subject.training and subject.inner[1].training and not model.training
    assert subject.outer.weight is model.outer.weight
    assert not call.args[0].requires_grad, "the graph does not train its inputs"


def test_tensors_on_the_meta_device_become_ones_that_a_graph_can_run_with() -> None:
    with torch.device("meta"):
        model = Residual()
    subject, call = prepared(model, Call((torch.empty(4, 6, device="meta"),), {}), "train", CPU)
    assert {tensor.device for tensor in (*subject.parameters(), *subject.buffers(), *call.tensors)} == {CPU}
    assert subject.outer.weight is subject.inner[0].weight and isinstance(subject.outer.weight, nn.Parameter)


def test_caches_for_generation_are_switched_off_in_the_copy() -> None:
    model = nn.Linear(6, 6)
    model.config = SimpleNamespace(use_cache=True)
    subject, _ = prepared(model, Call((torch.randn(4, 6),), {}), "eval", CPU)
    assert subject.config.use_cache is False and model.config.use_cache is True


def test_the_device_is_that_of_the_first_tensor_and_the_cpu_for_meta() -> None:
    call = Call((torch.ones(1),), {})
    assert captured_device(nn.Linear(2, 2), call) == captured_device(nn.Identity(), call) == CPU
    assert captured_device(nn.Linear(2, 2, device="meta"), call) == CPU
    assert captured_device(nn.Identity(), Call((), {})) == CPU
