"""Methods beside forward: captured as further entry points of one partition, or refused with the remedy."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile import BlockPolicy, CaptureError, NeuronPolicy, PlanError, SDPError
from tests.distributed import run_workers
from tests.oracle import assert_exact, randomise, scalar, tensors_of
from tests.runtime.module.method_models import Autoencoder, Block, DualEncoder, auto_inputs, dual_inputs

POLICIES: dict[str, Any] = {
    "neuron": NeuronPolicy(coverage=0.5),
    "block": BlockPolicy(coverage=0.5),
    "backward": NeuronPolicy(coverage=0.5, masking="backward"),
    "all": NeuronPolicy(axes="all", scope="all", coverage=0.5),
}
METHODS = ("encode_image", "encode_text", "similarity")


class Entry:
    """A method of a module in place of its forward."""

    def __init__(self, module: nn.Module, method: str) -> None:
        self._module, self._method = module, method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._module, self._method)(*args, **kwargs)


class Via(nn.Module):
    """The original, called by a method; its names stay as they are."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        vars(self).update(_parameters=model._parameters, _modules=model._modules, _buffers=model._buffers)
        vars(self)["held"], self.method = model, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.held.training = self.training
        return getattr(self.held, self.method)(*args, **kwargs)


def dual() -> DualEncoder:
    return randomise(DualEncoder().double())


def auto() -> Autoencoder:
    return randomise(Autoencoder().double())


@pytest.mark.parametrize("policy", POLICIES)
def test_every_entry_of_a_dual_encoder_is_exact(policy: str) -> None:
    model, (image, ids) = dual(), dual_inputs()
    methods = {"encode_image": (image,), "encode_text": {"ids": ids}, "similarity": (image, ids)}
    for rank in range(2):
        module = sdp.compile(model, POLICIES[policy], (image, ids), methods=methods, workers=2, rank=rank)
        assert any(module.plan.is_cut(name) for name in module.plan.state)
        calls: dict[str, tuple[Any, ...]] = {
            "forward": (image, ids),
            "encode_image": (image,),
            "encode_text": (ids,),
            "similarity": (image, ids),
        }
        for method, args in calls.items():
            assert_exact(Entry(module, method), Via(model, method), module.plan, rank, args, {})


@pytest.mark.parametrize("policy", POLICIES)
def test_every_entry_of_an_autoencoder_is_exact(policy: str) -> None:
    model, (image, latent) = auto(), auto_inputs()
    for rank in range(2):
        module = sdp.compile(model, POLICIES[policy], (image,), methods=("encode", "decode"), workers=2, rank=rank)
        for method, argument in (("forward", image), ("encode", image), ("decode", latent), ("decode", latent[:1])):
            assert_exact(Entry(module, method), Via(model, method), module.plan, rank, (argument,), {})


def test_a_block_that_only_one_entry_uses_is_cut_and_what_an_entry_returns_is_not() -> None:
    model, (image, ids) = dual(), dual_inputs()
    plan = sdp.plan(model, POLICIES["block"], (image, ids), methods=("encode_image", "encode_text"), workers=2)
    assert [(family.name, family.units) for family in plan.families] == [("blocks", 5)]
    alone = sdp.plan(model, POLICIES["all"], (image, ids), workers=2)
    both = sdp.plan(model, POLICIES["all"], (image, ids), methods=("encode_image",), workers=2)
    assert alone.is_cut("image_head.bias") and not both.is_cut("image_head.bias")
    assert not both.is_cut("text_head.bias")  # compared with the image's
    assert alone.digest != both.digest


def test_entries_keep_signature_modes_sizes_settings_and_copies() -> None:
    model, (image, ids) = dual(), dual_inputs()
    module = sdp.compile(model, "neuron", (image, ids), methods=("encode_image",), workers=2, rank=0)
    assert str(inspect.signature(module.encode_image)) == str(inspect.signature(model.encode_image))
    assert module.encode_image.__name__ == "encode_image"
    assert module.encode_image.__doc__ == "Returns the embedding of an image."
    assert module.encode_image(torch.randn(9, 10, dtype=torch.float64)).shape == (9, 8)
    module.eval()
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other.encode_image(image), module.encode_image(image))
    assert module.float().encode_image(image.float()).dtype == torch.float32  # captured again
    with pytest.raises(SDPError, match=r"DualEncoder\.encode_image was called differently.*methods=\{'encode_image'"):
        module.encode_image(image.float(), False)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled.encode_image(image.float()), module.encode_image(image.float()))


class WithSetting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head, self.factor = Block(6), nn.Linear(6, 3), 2.0

    def score(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)) * self.factor

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)


def test_a_setting_that_is_changed_counts_in_every_entry() -> None:
    model, x = WithSetting(), torch.randn(3, 6)
    module = sdp.compile(model, NeuronPolicy(coverage=1.0), (x,), methods=("score",), workers=2, rank=0)
    before = module.score(x)
    module.factor = 5.0
    torch.testing.assert_close(module.score(x), before * 2.5)
    torch.testing.assert_close(module(x), before * 2.5)


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = nn.Linear(4, 4), nn.Linear(4, 4)

    def extras(self, x: Tensor) -> Tensor:
        return self.extra(x)

    @property
    def wide(self) -> int:
        return 4

    def plan(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("extras", r"methods must be names.*got 'extras'"),
        (3, "methods must be names"),
        ((3,), "got 3 among them"),
        (("forward",), "always captured"),
        (("body.forward",), "Only methods of the model itself"),
        (("missing",), "no method that Loose defines"),
        (("wide",), "no method that Loose defines"),
        (("state_dict",), "compiled modules have themselves"),
        (("plan",), "compiled modules have themselves"),
        (("register_parametrization",), "no method"),
        (("extras",), r"forward of Loose does not call extras\(\).*methods=\{'extras': \(tensor, \.\.\.\)\}"),
        ({"extras": ()}, r"methods\['extras'\] do not fit Loose.extras\(x"),
        ({"extras": None}, r"without example inputs: extras\(x.*methods\['extras'\]=\(tensor"),
    ],
)
def test_methods_that_cannot_be_captured_are_refused(methods: Any, message: str) -> None:
    with pytest.raises((CaptureError, PlanError), match=message):
        sdp.compile(Loose(), "neuron", (torch.randn(2, 4),), methods=methods, workers=2, rank=0)


def test_a_method_that_was_not_compiled_names_both_remedies() -> None:
    model, (image, ids) = dual(), dual_inputs()
    module = sdp.compile(model, "neuron", (image, ids), workers=2, rank=0)
    message = (
        r"encode_text\(\) of DualEncoder needs the whole weights \(.*full_model\(\), or .*methods=\('encode_text',\)"
    )
    with pytest.raises(SDPError, match=message):
        module.encode_text(ids)


# -- several workers ---------------------------------------------------------------------------------------------------

STEPS: tuple[tuple[str, ...], ...] = (
    ("encode_image", "encode_text"),
    ("forward",),
    ("encode_image",),
    ("forward", "encode_text"),
    ("similarity",),
)


def _call(model: Any, method: str, seed: int) -> Tensor:
    image, ids = dual_inputs(seed)
    args = {"encode_image": (image,), "encode_text": (ids,)}.get(method, (image, ids))
    return scalar(tensors_of(model(*args) if method == "forward" else getattr(model, method)(*args)))


def _expected(model: DualEncoder, plan: Any, methods: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """Each element's mean over its owners of the masked original's gradients; zeros where a worker has none."""
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    owners = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for rank in range(plan.workers):
        masked = copy.deepcopy(model).requires_grad_()
        masked.zero_grad()
        masks = {name: plan.mask(name, rank).double() for name in total}
        if plan.masking == "forward":
            with torch.no_grad():
                for name, parameter in masked.named_parameters():
                    parameter.mul_(masks[name])
        sum(_call(masked, method, seed + rank) for method in methods).backward()  # type: ignore[union-attr]
        for name, parameter in masked.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad * masks[name]
            owners[name] += masks[name]
    return {name: total[name] / owners[name] for name in total}


def _train(rank: int, policy: str, compiled: bool) -> None:
    image, ids = dual_inputs()
    module = sdp.compile(
        dual(),
        POLICIES[policy],
        (image, ids),
        methods={**dict.fromkeys(("encode_image",), (image,)), "encode_text": (ids,), "similarity": (image, ids)},
    )
    run: Any = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    original = dual()
    original.load_state_dict(module.full_state_dict())
    for number, methods in enumerate(STEPS):
        expected = _expected(original, module.plan, methods, 100 * number)
        optimizer.zero_grad()
        sum(_call(run, method, 100 * number + rank) for method in methods).backward()  # type: ignore[union-attr]
        for name, parameter in module.named_parameters():
            wanted = expected[name][module.plan.mask(name, rank)]
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found.reshape(-1), wanted, rtol=1e-9, atol=1e-11, msg=f"{number} {name}")
        optimizer.step()
        with torch.no_grad():
            for name, parameter in original.named_parameters():
                parameter.sub_(0.05 * expected[name])
        for name, value in module.full_state_dict().items():
            torch.testing.assert_close(value, original.state_dict()[name], rtol=1e-9, atol=1e-11)


def _refuse(rank: int) -> str:
    image, ids = dual_inputs()
    try:
        sdp.compile(dual(), "neuron", (image, ids), methods=("encode_image",) if rank else ())
    except SDPError as error:
        return str(error)
    return ""


def _all(rank: int, policy: str, compiled: bool) -> str:
    _train(rank, policy, compiled)
    return _refuse(rank)


@pytest.mark.parametrize(
    ("workers", "policy", "compiled"), [(2, "backward", False), (3, "block", True), (4, "neuron", False)]
)
def test_workers_that_call_any_entries_in_a_step_train_together(workers: int, policy: str, compiled: bool) -> None:
    for message in run_workers(_all, workers, policy, compiled, limit=200):
        assert "different models or options" in message or "different plans" in message, message
