"""torch.compile follows numbers outside of the model, and raises once where it cannot see a change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sdp_compile import sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.outside import is_compared, readers_of
from tests.capture import outside_models as models
from tests.runtime.module.small import compiled

GUARDED = (models.OfNumbers, models.OfClass)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    models.reset()
    torch._dynamo.reset()
    yield
    models.reset()


@pytest.mark.parametrize("kind", models.CHANGES, ids=lambda kind: kind.__name__)
def test_changes_are_exact_or_raise_once(kind: type[models.Small]) -> None:
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4, 5)
    module = compiled(model, x)
    fast: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    for number, change in enumerate((models.nothing, *models.CHANGES[kind])):
        change()
        if number and kind not in GUARDED:
            with pytest.raises(SDPError, match=r"since torch.compile compiled .* Call it again"):
                fast(x)
        for _ in range(2):
            got, wanted = fast(x), model(x)
            torch.testing.assert_close(got, wanted)
        got.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(module.get_parameter("first.weight").grad, model.first.weight.grad)


def test_without_variables_outside_nothing_is_compared() -> None:
    module = compiled(models.Small(), torch.randn(4, 5))
    reads = module.programs["train"].reads
    assert not is_compared(reads)
    assert {read() for read in readers_of(reads)} <= {torch.float32, 2.0}


def test_a_refusal_names_the_setting_and_not_the_buffer_that_calls_changed() -> None:
    class Ring(models.Small):
        def __init__(self) -> None:
            super().__init__()
            self.extra, self.on = torch.nn.Linear(6, 6), False
            self.register_buffer("at", torch.zeros((), dtype=torch.long))
            self.register_buffer("ring", torch.zeros(3, 6))

        def between(self, h: torch.Tensor) -> torch.Tensor:
            self.ring[int(self.at)] = h.detach()[0]
            self.at.copy_((self.at + 1) % 3)
            return self.extra(h) if self.on else h

    x = torch.randn(4, 5)
    module = sdp_compile(Ring(), "neuron", x, workers=2, rank=0)
    module(x), module(x)
    module.on = True
    with pytest.raises(SDPError, match=r"differently than captured: attribute 'on' has changed\. .*'extra"):
        module(x)
