"""What the fuzzer accepts as rounding, and that faults of the same size are still found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdp_compile as sdp
from tools.fuzz.comparison import Verdict, compare
from tools.fuzz.differences import Difference, differences, largest
from tools.fuzz.rounding import Moved

MODEL = """
import torch
from torch import nn
import torch.nn.functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 3)
        {parts}

    def forward(self, x):
        h = self.up(x)
        {line}
        return self.down(h)


def build():
    return Model(), (torch.randn(8, 5),)


DTYPE = '{dtype}'
POLICY = {{"policy": "neuron", "coverage": 0.5}}
READ = {read}
STEPS = (("train",), ("call", "example"), ("sgd",), ("call", "example"))
"""


def module_of(line: str, dtype: str = "float64", parts: str = "pass", read: tuple[str, ...] = ()) -> str:
    return MODEL.format(line=line, dtype=dtype, parts=parts, read=read)


def noisy(scale: float, dtype: str) -> str:
    """A module with a gradient that is zero but for rounding, which a small deviation makes large."""
    return module_of(f"h = F.gelu(self.norm(self.up(x * {scale})))", dtype, "self.norm = nn.BatchNorm1d(16, eps=1e-30)")


def judge(text: str, folder: Path, change: Callable[[Any], None] = lambda module: None) -> Verdict:
    """Compares a compiled module, changed after it was compiled, with its original."""

    def compiler(*args: Any, **kwargs: Any) -> Any:
        module = sdp.compile(*args, **kwargs)
        change(module)
        return module

    return compare(text, folder, compiler)


def scale_gradient(name: str, factor: float) -> Callable[[Any], None]:
    return lambda module: module.get_parameter(name).register_hook(lambda grad: grad * factor)


def add_to_gradient(name: str, size: float) -> Callable[[Any], None]:
    return lambda module: module.get_parameter(name).register_hook(lambda grad: grad + size)


def change_output(function: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    return lambda module: module.register_forward_hook(lambda _module, _args, output: function(output))


def last_infinite(output: Tensor) -> Tensor:
    return torch.cat([output[..., :-1], torch.full_like(output[..., -1:], math.inf)], -1)


@pytest.mark.parametrize(("scale", "dtype"), [(1e-3, "float64"), (1e-2, "float32")])
def test_a_gradient_that_is_only_rounding_may_deviate_as_far_as_the_originals(
    scale: float, dtype: str, tmp_path: Path
) -> None:
    # Kernels of some processors round a slice as they round the whole: the deviation is planted.
    verdict = judge(noisy(scale, dtype), tmp_path, scale_gradient("up.bias", 2))
    assert (verdict.outcome, verdict.calls) == ("exact", 2)
    assert verdict.notes
    assert all("gradient: of up.bias" in note and note.endswith("by rounding") for note in verdict.notes)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (scale_gradient("up.weight", 1 + 1e-8), "gradient: of up.weight"),
        (scale_gradient("norm.weight", 1 + 1e-8), "gradient: of norm.weight"),
        (add_to_gradient("up.bias", 1e-9), "gradient: of up.bias"),
        (change_output(lambda output: output * (1 + 1e-8)), "output"),
    ],
)
def test_a_small_fault_is_found_beside_a_gradient_that_is_only_rounding(
    change: Callable[[Any], None], kind: str, tmp_path: Path
) -> None:
    verdict = judge(noisy(1e-3, "float64"), tmp_path, change)
    assert (verdict.outcome, verdict.step) == ("wrong", "1 call example")
    assert verdict.detail.startswith(kind)


def test_a_small_fault_is_found_in_a_stable_module(tmp_path: Path) -> None:
    for change in (scale_gradient("up.weight", 1 + 3e-9), change_output(lambda output: output * (1 + 3e-9))):
        assert judge(module_of("h = F.gelu(h)"), tmp_path, change).outcome == "wrong"


def test_a_flipped_choice_is_no_rounding(tmp_path: Path) -> None:
    """Equal maxima: each changed original takes others, and its gradient jumps. A small fault must still be found."""
    parts = 'self.register_buffer("one", torch.ones(1))'
    text = module_of("h = torch.stack([h, h.detach() * self.one]).max(0).values", parts=parts)
    assert judge(text, tmp_path).outcome == "exact"
    verdict = judge(text, tmp_path, scale_gradient("up.weight", 1 + 1e-7))
    assert verdict.outcome == "wrong"
    assert verdict.detail.startswith("gradient: of up.weight")


def limit(value: float) -> str:
    parts = f'self.register_buffer("limit", torch.full((3,), {value}))'
    return module_of("return self.down(h) * 0 + self.limit", "float32", parts)


def test_a_module_in_which_rounding_decides_whether_it_overflows_is_invalid(tmp_path: Path) -> None:
    text = limit(torch.finfo(torch.float32).max)
    assert judge(text, tmp_path).outcome == "exact"
    verdict = judge(text, tmp_path, change_output(last_infinite))
    assert (verdict.outcome, verdict.step) == ("invalid", "1 call example")
    assert "overflows" in verdict.detail


def test_an_infinity_that_rounding_cannot_make_is_wrong(tmp_path: Path) -> None:
    for value in (1.0, 1e38, math.inf):
        text = limit(value).replace("inf", "math.inf").replace("import torch\n", "import math\nimport torch\n", 1)
        change = change_output(last_infinite if value < math.inf else lambda output: output.nan_to_num(posinf=1e38))
        assert judge(text, tmp_path, change).outcome == "wrong", value


def test_an_infinite_gradient_does_not_hide_a_fault_in_another(tmp_path: Path) -> None:
    line = "return self.down(F.relu(h)) + (self.root - self.root.detach()).sqrt()"
    text = module_of(line, parts="self.root = nn.Parameter(torch.ones(3))")
    assert judge(text, tmp_path).outcome == "exact"
    verdict = judge(text, tmp_path, scale_gradient("up.weight", 1 + 1e-6))
    assert (verdict.outcome, verdict.kinds[0]) == ("wrong", "gradient")


def test_nan_and_infinities_are_equal_only_in_the_same_places() -> None:
    nan, inf = math.nan, math.inf
    expected = torch.tensor([nan, inf, -inf, 2.0])
    assert not differences("output", expected.clone(), expected, 0.0)
    for other in ([nan, inf, inf, 2.0], [1.0, inf, -inf, 2.0], [nan, inf, -inf, nan], [nan, 3e38, -inf, 2.0]):
        (found,) = differences("output", torch.tensor(other), expected, 0.2)
        assert found.error == inf
    (found,) = differences("output", torch.tensor([nan, inf, -inf, 2.2]), expected, 0.01)
    assert found.error == pytest.approx(0.1)
    assert largest([expected, torch.tensor([inf])]) == 2.0


def test_rounding_explains_what_most_draws_show_and_no_more() -> None:
    def explains(error: float | None, errors: list[float], limit: float = 1e-6) -> bool:
        return Moved({("output", "value"): errors}, limit).explains(Difference("output", "value", "", error))

    noise = [1e-8] * 8
    assert explains(2e-8, noise) and not explains(1e-7, noise)
    assert not explains(2e-8, [1e-8] * 4 + [1e-15] * 4)  # a rare jump
    assert not explains(2e-8, [1e-8] * 4)  # the other draws raised
    assert not explains(2e-6, [5e-6] * 8)  # too large for rounding, whatever the original does
    assert not explains(2e-8, [1.0] * 8)  # a jump
    assert not explains(None, noise)  # another shape
    assert not explains(2e-8, [])
    assert explains(math.inf, [1e-8] * 7 + [math.inf]) and not explains(math.inf, noise)


def test_an_attribute_is_compared_with_its_slice(tmp_path: Path) -> None:
    line = "self.average.copy_(h.detach().mean(0)); h = h - self.average"
    text = module_of(line, parts="self.average = torch.zeros(16)", read=("average",))

    def spoil(module: Any) -> None:
        def hook(*_: Any) -> None:
            module.average.mul_(1 + 1e-6)

        module.register_forward_hook(hook)

    def shorten(module: Any) -> None:
        def hook(*_: Any) -> None:
            module.average.resize_(5)

        module.register_forward_hook(hook)

    for lowering in ("sliced", "masked"):
        setting = f"{text}LOWERING = '{lowering}'\n"
        assert judge(setting, tmp_path).outcome == "exact"
        verdict = judge(setting, tmp_path, spoil)
        assert (verdict.outcome, verdict.kinds[0]) == ("wrong", "attribute")
    assert "attribute: average value has shape [5]" in judge(text, tmp_path, shorten).detail
