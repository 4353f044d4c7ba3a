"""Tensors, classes and functions outside of the model are compared at each call, and forward does not write to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdp_compile.errors import CaptureError, SDPError
from sdp_compile.ir.reads import owner_of_class, scope_of, with_versions
from tests.capture import outside_models as models
from tests.runtime.module.small import compiled


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    models.reset()
    yield
    models.reset()


@pytest.mark.parametrize("kind", models.CHANGES, ids=lambda kind: kind.__name__)
def test_changes_count_from_the_next_call_on(kind: type[models.Small]) -> None:
    torch.manual_seed(0)
    model, four, six = kind(), torch.randn(4, 5), torch.randn(6, 5)
    module = compiled(model, four)
    for change in (models.nothing, *models.CHANGES[kind]):
        change()
        for x in (four, six, four):
            torch.testing.assert_close(module(x), model(x))


def test_the_default_dtype_counts() -> None:
    torch.manual_seed(0)
    model, x = models.OfDefault(), torch.randn(4, 5)
    module = compiled(model, x)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            got, wanted = module(x), model(x)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_writes_outside_of_the_state_are_refused() -> None:
    model, x = models.Counting(), torch.randn(4, 5)
    with pytest.raises(CaptureError, match=r"neither a parameter nor a buffer at .*outside_models.py:\d+"):
        compiled(model, x)


def test_constants_made_in_forward_are_no_tensors_outside() -> None:
    class Constant(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            scale = torch.tensor([1.0, 2, 3, 4, 5, 6]).unsqueeze_(0)
            return h.clone().index_add_(0, torch.tensor([1, 0]), h[:2] * 3) * scale.squeeze_(0)

    torch.manual_seed(0)
    model, x = Constant(), torch.randn(4, 5)
    module = compiled(model, x)
    for one in (x, torch.randn(4, 5)):
        torch.testing.assert_close(module(one), model(one))


def test_tensors_that_a_setting_holds_are_not_handed_out() -> None:
    class Holding(models.Small):
        def __init__(self) -> None:
            super().__init__()
            self.tables = [torch.ones(6)]

        def between(self, h: torch.Tensor) -> torch.Tensor:
            return h * self.tables[0]

    module = compiled(Holding(), torch.randn(4, 5))
    assert not hasattr(module, "tables")
    with pytest.raises(SDPError, match=r"'tables' of Holding holds tensors.*buffers"):
        module.tables  # noqa: B018
    with pytest.raises(SDPError, match="'tables' cannot become a list with tensors"):
        module.tables = [torch.zeros(6)]
    module.tables = []
    with pytest.raises(IndexError):
        module(torch.randn(4, 5))


def test_what_a_property_computed_once_is_a_constant() -> None:
    class Lazy(models.Small):
        table = None

        def between(self, h: torch.Tensor) -> torch.Tensor:
            return h if self.table is None else h * self.table

    model, x = Lazy(), torch.randn(4, 5)
    model.table = torch.arange(6.0)
    torch.testing.assert_close(compiled(model, x)(x), model(x))


def test_owners_and_versions() -> None:
    class Local(models.Small):
        pass

    assert scope_of(owner_of_class(Local)).holder() is Local and owner_of_class(Local) == owner_of_class(Local)
    assert owner_of_class(models.Small) == "tests.capture.outside_models:Small"
    tensor = torch.zeros(2)
    first = with_versions([tensor], mark=True)[1]
    assert first == with_versions([tensor])[1]
    tensor.add_(1)
    assert first != with_versions([tensor])[1] and first != with_versions([torch.zeros(2)])[1]
