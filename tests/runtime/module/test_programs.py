"""A compiled module in other dtypes than it was captured for: indistinguishable from the original model in them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.library_models import MODELS
from tests.oracle import randomise


class Casting(nn.Module):
    """Reads dtypes in its code, in three of the ways that models do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
        self.register_buffer("scale", torch.rand(16))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.up(x)
        hidden = F.softmax(hidden, dim=-1, dtype=torch.float32).to(hidden.dtype) * self.scale
        hidden = hidden + torch.tensor([1.0, 2.0]).sum().to(hidden.dtype) * torch.finfo(hidden.dtype).eps
        if mask is not None:
            weight = mask if mask.dtype == torch.bool else mask > 3  # another meaning for another dtype
            hidden = hidden.masked_fill(weight[:, None], 0)
        return self.down(hidden)


def compiled(model: nn.Module, inputs: Any, **options: Any) -> SDPModule:
    return sdp_compile(model, NeuronPolicy(coverage=1.0), inputs, workers=1, rank=0, **options)


def assert_same(module: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Outputs equal to the bit, the same operators on the same values; gradients but for the order of their sums."""
    for one in (module, model):
        one.zero_grad()
    got, wanted = module(*args, **kwargs), model(*args, **kwargs)
    got, wanted = getattr(got, "logits", got), getattr(wanted, "logits", wanted)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    got.float().square().sum().backward()
    wanted.float().square().sum().backward()
    parameters = dict(module.named_parameters())
    rounding = 2e-2 if wanted.dtype in (torch.bfloat16, torch.float16) else 1e-5
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameters[name].grad.dtype == parameter.grad.dtype
        scale = rounding * float(parameter.grad.abs().max())
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=0, atol=scale, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moving_to_another_dtype(dtype: torch.dtype) -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, x).to(dtype)
    model.to(dtype)
    assert_same(module, model, x.to(dtype))
    assert_same(module.eval(), model.eval(), x.to(dtype))
    module.float(), model.float()
    assert_same(module, model, x)
    assert len(module._programs.programs) == 4  # the way back needs no new capture


class Telling(nn.Module):
    """Has properties that tell what its tensors are, as Hugging Face's models have, and uses them in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter.dtype for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.up.weight.device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.ones(6, dtype=torch.float64, device=self.device).to(self.dtype)
        out: torch.Tensor = self.down(torch.relu(self.up(x))) * scale
        return out * 2 if self.dtype == torch.float16 else out


@pytest.mark.parametrize("nested", [False, True])
def test_properties_that_tell_the_dtype_of_the_weights(nested: bool) -> None:
    model, x = Telling() if not nested else nn.Sequential(Telling(), nn.Linear(6, 6)), torch.randn(4, 6)
    module = compiled(model, x)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32):
        module.to(dtype), model.to(dtype)
        assert_same(module, model, x.to(dtype))
        assert_same(module.eval(), model.eval(), x.to(dtype))
        module.train(), model.train()


def test_a_property_that_tells_a_dtype_by_a_setting_follows_the_setting() -> None:
    class Set(Telling):
        wide = False

        @property
        def dtype(self) -> torch.dtype:
            return torch.float64 if self.wide else torch.float32

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).to(self.dtype)

    model, x = Set(), torch.randn(4, 6)
    module = compiled(model, x)
    assert_same(module, model, x)
    module.wide = model.wide = True
    assert_same(module, model, x)


def test_transformers_under_autocast_and_in_bfloat16() -> None:
    model, _, inputs = MODELS["llama"]()
    module = compiled(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(module, model, **inputs)
    assert_same(module, model, **inputs)
    module.bfloat16(), model.bfloat16()
    assert_same(module, model, **inputs)


def test_compiled_under_autocast() -> None:
    model, x = Casting(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module = compiled(model, x)
        assert_same(module, model, x)
        assert len(module._programs.programs) == 2
    assert_same(module, model, x)


def test_the_mode_of_the_caller_is_not_captured() -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(module, model, x)


def test_inputs_of_another_dtype_take_their_own_path() -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, {"x": x, "mask": torch.tensor([1, 9, 2, 5])})
    assert_same(module, model, x=x, mask=torch.tensor([1, 9, 2, 5]))
    assert_same(module, model, x=x, mask=torch.tensor([True, False, True, False]))


def test_parts_of_a_model_in_other_dtypes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x.to(self.a.weight.dtype)).to(self.b.weight.dtype))

    model, x = Mixed(), torch.randn(4, 6)
    module = compiled(model, x)
    module.b.bfloat16(), model.b.bfloat16()
    module._follow_dtypes()
    assert_same(module, model, x)


def test_weights_of_another_dtype_may_be_assigned() -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, x)
    model.double()
    module.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert_same(module, model, x.double())


@pytest.mark.parametrize("policy", [NeuronPolicy(coverage=0.5), BlockPolicy(coverage=0.5)])
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_a_worker_in_another_dtype(policy: Any, lowering: Any) -> None:
    """The same subnetwork as one that is compiled in that dtype from the start, whose exactness other tests hold."""
    model, _, inputs = MODELS["llama"]()
    randomise(model)
    moved = sdp_compile(model, policy, inputs, workers=2, rank=1, lowering=lowering).double()
    straight = sdp_compile(model.double(), policy, inputs, workers=2, rank=1, lowering=lowering)
    assert moved.plan.digest != "" and moved.state_dict().keys() == straight.state_dict().keys()
    got, wanted = moved(**inputs).logits, straight(**inputs).logits
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_copies_and_pickles_keep_what_was_captured() -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, x).double()
    model.double()
    module(x.double())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert list(other._programs.programs) == ["train", "eval", "train_1"]
        assert_same(other, model, x.double())
        assert len(other._programs.programs) == 3


def test_torch_compile_captures_while_it_traces() -> None:
    model, x = Casting(), torch.randn(4, 6)
    module = compiled(model, x)
    fast = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(x), model(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fast(x), model(x))
    module.double(), model.double()
    torch.testing.assert_close(fast(x.double()), model(x.double()))
    assert len(module._programs.programs) == 4


def test_a_model_that_does_not_run_in_a_dtype_says_so() -> None:
    class Picky(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only, please")
            return super().forward(x)

    module = compiled(Picky(6, 6), torch.randn(4, 6)).double()
    with pytest.raises(SDPError, match=r"float32 as float64.*float32 only, please") as error:
        module(torch.randn(4, 6).double())
    assert "test_programs.py" in str(error.value)


def test_a_graph_that_contradicts_the_plan_is_refused() -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.up(x)
            return self.down(hidden.sort(dim=-1).values if x.dtype == torch.float64 else hidden)

    module = sdp_compile(Sorting(), NeuronPolicy(coverage=0.5), torch.randn(4, 6), workers=2, rank=0).double()
    with pytest.raises(SDPError, match=r"needs all of 'up\.weight', which the plan cuts"):
        module(torch.randn(4, 6).double())


@pytest.mark.parametrize("dim", [0, 1])
def test_a_cut_convolution_is_one_graph(dim: int) -> None:
    """Under backward masking, where the gradient of the owned part needs all inputs, or only some."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    policy = NeuronPolicy(coverage=0.5, masking="backward")
    module = sdp_compile(model, policy, x, workers=2, rank=dim)
    module(x).square().sum().backward()
    wanted = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    torch.compile(module, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


def test_a_compiled_graph_that_breaks() -> None:
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)), torch.randn(4, 6)
    module = compiled(model, x)
    with module.graph.inserting_before(module.graph.output_node()):
        module.graph.call_function(torch._dynamo.graph_break)
    module.recompile()
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(x), model(x))
