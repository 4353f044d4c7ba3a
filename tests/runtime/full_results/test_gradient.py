"""A gradient that knows its parameter is used like any tensor, on one process."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.full_results.norms import first_owned, norm_of_norms, norms_of
from sdp_compile.runtime.full_results.partial_norm import PartialNorm
from sdp_compile.runtime.full_results.statistic import SliceStatistic
from sdp_compile.runtime.gradients.owned import OwnedGradient, mark
from tests.runtime.connected import subnet
from tests.runtime.stub import SCATTERED, batch

OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD")


class Engine:
    """An engine that averages nothing."""

    def __init__(self, module: Any) -> None:
        self.holdings, self.groups, self.pending = module.holdings, SimpleNamespace(workers=4, raw_group=None), False


def trained() -> tuple[Any, Engine]:
    module = subnet(1, SCATTERED)
    engine = Engine(module)
    torch.nn.functional.cross_entropy(module(batch(0)[0]), batch(0)[1]).backward()
    for name, parameter in module.named_parameters():
        mark(parameter.grad, name, weakref.ref(engine))
    return module, engine


def test_accumulation_keeps_the_object_and_its_name() -> None:
    module, _engine = trained()
    gradient = module.up.weight.grad
    before = gradient.clone()
    torch.nn.functional.cross_entropy(module(batch(0)[0]), batch(0)[1]).backward()
    assert module.up.weight.grad is gradient and type(gradient) is OwnedGradient
    assert gradient.parameter_name == "up.weight" and torch.allclose(gradient, 2 * before)


def test_conversions_stay_gradients_and_other_results_do_not() -> None:
    module, _engine = trained()
    gradient = module.up.weight.grad
    kept = [gradient.detach(), gradient.data, gradient.float(), gradient.to(torch.float32), 2 * gradient, -gradient]
    kept += [gradient / 2, gradient + 1, gradient - gradient, torch.abs(gradient) * gradient, gradient.clamp(max=1)]
    assert all(type(one) is OwnedGradient and one.parameter_name == "up.weight" for one in kept)
    plain = [gradient.clone(), gradient[0], gradient.sum(dim=1), gradient * module.up.weight.grad[0:1]]
    plain += [copy.deepcopy(gradient), pickle.loads(pickle.dumps(gradient)), gradient.norm(dim=1)]
    assert [type(one) for one in plain if not isinstance(one, OwnedGradient)] == [Tensor] * (len(plain) - 1)
    assert torch.equal(copy.deepcopy(gradient), gradient)
    buffer = io.BytesIO()
    torch.save({"gradient": gradient}, buffer)
    buffer.seek(0)
    assert type(torch.load(buffer, weights_only=True)["gradient"]) is Tensor
    assert gradient.mul_(2) is gradient


def test_a_norm_looks_like_the_local_norm() -> None:
    module, _engine = trained()
    gradient = module.up.weight.grad
    values = gradient.clone()
    for order in (1.0, 2.0, 3.0, float("inf")):
        norm = torch.linalg.vector_norm(gradient, order)
        assert isinstance(norm, PartialNorm)
        torch.testing.assert_close(norm.item(), torch.linalg.vector_norm(values, order).item())
        for kept in (norm.detach(), norm.float(), norm.to("cpu"), norm.clone()):
            assert isinstance(kept, PartialNorm) and kept.shares == norm.shares
        assert (
            type(norm + 1) is (SliceStatistic if gradient.cut_dims() else Tensor)
            and type(copy.deepcopy(norm)) is Tensor
        )
        counted = torch.cat([part.reshape(-1) for part in first_owned(values, "up.weight", module.holdings)])
        assert 0 < counted.numel() < values.numel()
        torch.testing.assert_close(norm_of_norms(norm.shares[0].norms, order), torch.linalg.vector_norm(counted, order))
    for func in (torch.norm, torch.linalg.norm, Tensor.norm, torch.linalg.vector_norm):
        assert isinstance(func(gradient), PartialNorm)
    assert not isinstance(torch.linalg.norm(gradient, 2), PartialNorm)  # the largest singular value
    with pytest.raises(SDPError, match="positive"):
        gradient.norm(0)


def test_half_precision_is_added_in_single_precision() -> None:
    large = torch.full((4096,), 300.0, dtype=torch.float16)  # the sum of squares is beyond float16
    for tensors in ([large], [large, large.double()], [large] * 5):
        norm = norm_of_norms(norms_of(tensors, 2.0), 2.0)
        assert norm.item() == pytest.approx(300 * (4096 * len(tensors)) ** 0.5)
    assert norm_of_norms([], 2.0) == 0


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_gradient_can_be_differentiated() -> None:
    module, engine = trained()
    module.zero_grad()
    loss = torch.nn.functional.cross_entropy(module(batch(0)[0]), batch(0)[1])
    loss.backward(create_graph=True)
    gradient = module.up.weight.grad
    mark(gradient, "up.weight", weakref.ref(engine))
    gradient.norm().backward()
    module.zero_grad()  # breaks the circle of graph and gradients


def test_a_gradient_outlives_its_model() -> None:
    module, engine = trained()
    gradient = module.up.weight.grad
    del engine
    gc.collect()
    assert gradient.sum().isfinite()
    with pytest.raises(DistributedError, match=r"'up\.weight'.*deleted"):
        gradient.norm()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_step_as_with_plain_gradients(name: str) -> None:
    results = []
    for marked in (False, True):
        for options in ({"foreach": True}, {"foreach": False, "maximize": True}):
            module, _engine = trained()
            if not marked:
                for parameter in module.parameters():
                    parameter.grad = None if parameter.grad is None else parameter.grad.clone()
            more = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
            optimizer = getattr(torch.optim, name)(module.parameters(), lr=0.1, **options, **more)
            for _ in range(2):
                optimizer.step()
            states = [value for state in optimizer.state.values() for value in state.values()]
            assert not any(isinstance(value, OwnedGradient) for value in states)
            results.append([parameter.detach() for parameter in module.parameters()])
            optimizer.zero_grad(set_to_none=False)
            assert module.up.weight.grad.abs().sum() == 0 and isinstance(module.up.weight.grad, OwnedGradient) == marked
    for plain, own in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(plain, own, strict=True))


def test_compiled_code_reads_gradients() -> None:
    module, _engine = trained()
    parameters = [p for p in module.parameters() if p.grad is not None]

    def total() -> Tensor:
        return torch.stack([(2 * p.grad).abs().sum() for p in parameters if p.grad is not None]).sum()

    assert torch.equal(torch.compile(total, backend="eager", fullgraph=True)(), total())
    before, (other, _other_engine) = module.up.weight.detach().clone(), trained()
    for parameter in other.parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad.clone()
    for own in (module, other):
        torch.compile(torch.optim.AdamW(own.parameters(), lr=0.1).step, backend="eager")()
    assert torch.equal(module.up.weight, other.up.weight) and not torch.equal(before, module.up.weight)


def test_other_gradients_are_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(2))
    mark(parameter.grad, "a", weakref.ref(parameter))
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
    for gradient in (sparse, fake):
        kind = type(gradient)
        mark(gradient, "a", weakref.ref(parameter))
        assert type(gradient) is kind
