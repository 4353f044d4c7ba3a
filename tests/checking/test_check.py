"""``check`` tells exact models from wrong, refused and failed ones, and does not raise because of the model."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sdp_compile import CheckResult, NeuronPolicy, check
from sdp_compile.capture import capture
from sdp_compile.checking import check as module
from sdp_compile.checking.precision import InFloat64
from sdp_compile.checking.sweep import Row, sweep
from sdp_compile.checking.verification import reference
from sdp_compile.ir.reads import changed_read
from sdp_compile.structure import operators as rules
from sdp_compile.structure.operators import Context, Value

pytestmark = pytest.mark.timeout(120)
Tensor = torch.Tensor


class MLP(nn.Module):
    """A residual MLP with dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 6)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.tanh(self.norm(self.up(x)))))


class Soft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).softmax(-1))


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def test_an_exact_model() -> None:
    model = MLP().eval()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    result = check(model, "neuron", (X,))
    assert (result.verdict, result.exit_code, result.reason) == ("exact", 0, "")
    assert {(one.rank, one.mode) for one in result.comparisons} == {(r, m) for r in range(4) for m in ("train", "eval")}
    assert all(one.statistics < 1e-9 and one.gradients < 1e-9 for one in result.comparisons)
    assert (result.axes, result.axes_cut, result.coverage) == (1, 1, 0.5)
    cut = 16 * 6 + 16 + 16 + 16 + 6 * 16
    assert result.share_cut == pytest.approx(cut / (cut + 6))
    assert [(reason.times, reason.reason) for reason in result.frozen] == [(3, "it is an input of the model")]
    # The model, its mode, its dropout and the random state are unchanged.
    assert model.drop.p == 0.3 and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_result_is_plain_data() -> None:
    result = check(nn.Sequential(MLP(), MLP()), "block", (X,), workers=2, ranks=[1])
    assert result.ranks == (1,) and result.blocks_cut == 2
    again = CheckResult.from_dict(json.loads(result.to_json()))
    assert again == result


@pytest.fixture
def wrong_rule() -> Iterator[None]:
    """Replaces softmax's rule with one that treats every unit as independent."""
    operator = torch.ops.aten.softmax.int
    before = rules.lookup(operator).rule
    assert before is not None

    @rules.rule(operator)
    def softmax(ctx: Context, self: Value, dim: int, dtype: torch.dtype | None) -> Value:
        return Value(self.dims, self.zero)

    yield
    rules.rule(operator)(before)


def test_a_wrong_rule_is_found(wrong_rule: None) -> None:
    result = check(Soft(), "neuron", (X,))
    assert (result.verdict, result.exit_code) == ("not exact", 1)
    assert "do not train" in result.reason
    assert max(one.gradients for one in result.comparisons) > 1e-3


@pytest.mark.parametrize(
    ("policy", "inputs", "options", "stage", "words"),
    [
        ("neuron", (X,), {}, "plan", ["axis"]),
        ("newron", (X,), {}, "arguments", ["newron", "neuron"]),
        ("neuron", None, {}, "arguments", ["example"]),
        ("neuron", (X[:, :3],), {}, "capture", ["Soft"]),
        ("neuron", (X,), {"ranks": [4]}, "arguments", ["rank must be an integer from 0 to 3, got 4"]),
        ("neuron", (X,), {"workers": 0}, "arguments", ["workers must be a positive integer, got 0"]),
    ],
)
def test_a_refusal_says_where_and_why(
    policy: str, inputs: tuple[Tensor, ...] | None, options: dict[str, object], stage: str, words: list[str]
) -> None:
    result = check(Soft(), policy, inputs, **options)  # type: ignore[arg-type]
    assert (result.verdict, result.stage, result.exit_code) == ("refused", stage, 2)
    assert all(word in result.reason for word in words)


def test_an_unexpected_error_gives_a_verdict_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(module, "make_plan", broken)
    result = check(MLP(), "neuron", (X,))
    assert (result.verdict, result.stage, result.exit_code) == ("failed", "plan", 1)
    assert "plan: KeyError" in result.reason and "surprise" in result.details
    assert result.captured and result.axes == 1


def test_a_model_that_is_random_without_dropout_is_unverified() -> None:
    result = check(nn.Sequential(nn.Linear(6, 16), nn.RReLU(), nn.Linear(16, 6)), "neuron", (X,))
    assert (result.verdict, result.exit_code) == ("unverified", 2)
    assert "random" in result.reason and "train" in result.reason
    assert {one.mode for one in result.comparisons if one.status == "exact"} == {"eval"}


def test_lower_precision_in_the_model_does_not_limit_the_comparison() -> None:
    class Half(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).float().bfloat16().to(x.dtype))

    result = check(Half(), "neuron", (X,))
    assert result.is_exact and max(one.gradients for one in result.comparisons) < 1e-12


def test_what_a_model_keeps_until_its_mode_changes_is_that_of_the_compared_call() -> None:
    class Keeping(MLP):
        """As timm's LeViT."""

        def __init__(self) -> None:
            super().__init__()
            self.bias, self.kept = nn.Parameter(torch.randn(2, 6)), dict[str, Tensor]()

        def train(self, mode: bool = True) -> Keeping:
            self.kept = {} if mode else self.kept
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return super().forward(x) + self.bias.sum(0)
            if "sum" not in self.kept:
                self.kept["sum"] = self.bias.sum(0)
            return super().forward(x) + self.kept["sum"]

    result = check(Keeping(), "neuron", (X,), ranks=(0, 1))
    assert result.is_exact, result.reason
    assert {(one.mode, one.trial) for one in result.comparisons} >= {("eval", "second call"), ("train", "second call")}


def test_meta_models_get_weights_and_large_ones_only_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        model = MLP().bfloat16()
    inputs = (torch.empty(5, 6, dtype=torch.bfloat16, device="meta"),)
    assert check(model, "neuron", inputs).verdict == "exact"
    monkeypatch.setattr(module, "MOST_PARAMETERS", 100)
    result = check(model, "neuron", inputs)
    assert (result.verdict, result.axes_cut) == ("unverified", 1)
    assert "fewer layers" in result.reason


def test_a_batch_of_one_is_checked_as_two_unlike_samples() -> None:
    assert check(MLP(), "neuron", (X[:1],)).is_exact


def test_parameters_that_are_not_trained_have_no_gradient_to_compare() -> None:
    model = MLP()
    model.up.weight.requires_grad_(False)
    assert check(model, "neuron", (X,)).is_exact
    assert check(MLP().requires_grad_(False), "neuron", (X,)).is_exact


def test_what_is_captured_in_float64_knows_the_default_dtype_of_the_process() -> None:
    """A call of the comparison may need another graph, such as one of a library that keeps functions by their sizes."""
    model, x = nn.Linear(4, 4).double(), torch.randn(2, 4, dtype=torch.float64)
    with InFloat64():
        programs = capture(model, x).programs
        assert all(changed_read(program.reads, model) is None for program in programs.values())
    assert all(program.reads for program in programs.values())
    assert all(changed_read(program.reads, model) is None for program in programs.values())


@functools.lru_cache(maxsize=8)
def angles(count: int, dtype: torch.dtype) -> Tensor:
    """Angles in a dtype of the code's own, as DINOv3's positions of patches."""
    return torch.arange(1, count + 1, dtype=dtype) / 7


class Rotating(nn.Module):
    """Adds the cosine of angles that are kept, and were computed in float32 when it was called before."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.cos(angles(x.shape[-1], torch.float32)).to(x.dtype)
        return x + self.down(torch.tanh(self.up(x)))


def test_what_a_cache_kept_in_lower_precision_is_no_deviation() -> None:
    model = Rotating()
    model(X)
    assert angles.cache_info().currsize
    result = check(model, "neuron", (X,))
    assert result.is_exact, result.reason
    assert angles(6, torch.float32).dtype == torch.float32, "the user's cache is as it was"


def test_the_reference_is_a_random_copy_in_float64() -> None:
    model = MLP()
    copied = reference(model, seed=3)
    for name, parameter in copied.named_parameters():
        assert parameter.dtype == torch.float64
        assert not torch.equal(parameter.float(), model.get_parameter(name))
    assert torch.equal(reference(model, 3).get_parameter("up.weight"), copied.get_parameter("up.weight"))


def test_a_sweep_goes_on_after_failures() -> None:
    rows: list[Row] = list(sweep(["transformers:no-such", "timm:nothing"], NeuronPolicy(), 4))
    assert [row.name for row in rows] == ["transformers:no-such", "timm:nothing"]
    assert all(row.is_failure and row.result.stage == "build" and "has no model" in row.result.reason for row in rows)


def test_a_process_that_hangs_fails_only_its_own_row() -> None:
    rows = list(sweep(["transformers:gpt2"], NeuronPolicy(), 4, timeout=0.01))
    assert rows[0].result.verdict == "failed" and "no verdict within" in rows[0].result.reason
