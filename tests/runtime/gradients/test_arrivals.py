"""A gradient that was launched early is recognised when it arrives; a sum with others is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.runtime.gradients.arrivals import Arrivals
from tests.runtime.gradients.alone import Launch


@pytest.fixture
def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0]))


@pytest.fixture
def arrivals(parameter: nn.Parameter) -> Arrivals:
    result = Arrivals()
    result.follow([parameter, nn.Parameter(torch.ones(1), requires_grad=False)])
    return result


def run(arrivals: Arrivals, parameter: nn.Parameter, penalty: float = 0.0) -> None:
    """One backward that launches; with a penalty, the parameter has another use."""
    (result,) = Launch.apply(lambda gradient: arrivals.expect({parameter: gradient}), parameter)
    loss = (result * torch.tensor([3.0, 4.0])).sum()
    (loss + penalty * parameter.square().sum() if penalty else loss).backward()


def test_the_only_use_of_a_parameter_completes_its_gradient(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    for _ in range(2):
        run(arrivals, parameter)
        assert not arrivals.differ()


def test_another_use_makes_another_gradient(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    run(arrivals, parameter, penalty=0.5)
    assert arrivals.differ()
    assert not arrivals.differ()  # it forgot
    run(arrivals, parameter)
    assert not arrivals.differ()


def test_a_tensor_hook_makes_another_gradient(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    def in_place(gradient: Tensor) -> None:
        gradient.mul_(2)

    for hook in (lambda gradient: gradient * 2, in_place):
        handle = parameter.register_hook(hook)
        run(arrivals, parameter)
        handle.remove()
        assert arrivals.differ()


def test_a_gradient_that_never_arrives_differs(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    def launched(gradient: Tensor) -> str:
        arrivals.expect({parameter: gradient})
        return "lost"

    Launch.apply(launched, parameter)[0].sum().backward()
    assert arrivals.differ()
    arrivals.expect({parameter: torch.ones(2)})
    assert arrivals.differ()


def test_what_is_forgotten_is_watched_no_more(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    arrivals.expect({parameter: torch.ones(2)})
    arrivals.reject()
    arrivals.forget()
    assert not arrivals.differ()
    parameter.sum().backward()
    assert not arrivals.differ() and arrivals._handles == []


def test_the_first_launch_of_a_parameter_counts(arrivals: Arrivals, parameter: nn.Parameter) -> None:
    """A parameter in two buckets is launched twice, with the same gradient."""

    def launched(gradient: Tensor) -> None:
        arrivals.expect({parameter: gradient})
        arrivals.expect({parameter: gradient.clone()})

    (Launch.apply(launched, parameter)[0] * 2).sum().backward()
    assert not arrivals.differ()


def test_a_rejected_launch_differs(arrivals: Arrivals) -> None:
    arrivals.reject()
    assert arrivals.differ() and not arrivals.differ()


def test_a_backward_is_certain_of_the_gradients_that_it_accumulates(
    arrivals: Arrivals, parameter: nn.Parameter
) -> None:
    idle, stranger = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    arrivals.follow([parameter, idle])
    found: list[bool] = []

    def launched(gradient: Tensor) -> None:
        found.append(arrivals.are_certain([parameter]))
        found.append(arrivals.are_certain([parameter, idle]))
        found.append(arrivals.are_certain([parameter, stranger]))

    (Launch.apply(launched, parameter)[0] + stranger).sum().backward()
    assert found == [True, False, False]
    found.clear()
    torch.autograd.grad(Launch.apply(launched, parameter)[0].sum(), [parameter])
    assert found == [False, False, False]
