"""The gradient engine of one worker: what it asks of its reduction and of the others, and when."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.agreement import Flags
from sdp_compile.runtime.gradients import engine as source
from sdp_compile.runtime.gradients.engine import engine_of
from tests.runtime.gradients.one_engine import AT_THE_END, AVERAGES, BY_A_HOOK, FINISHES, STARTS, Engine


def test_averages_take_the_place_of_gradients(engine: Engine) -> None:
    assert [slot.bucket.number for slot in engine.slots] == [2, 5, 9]  # an empty bucket is left out
    for _ in range(2):
        engine.step()
        assert engine.gradients() == AVERAGES
        assert engine.noted.taken() == [*STARTS, "started all", *FINISHES]
        assert engine.issued == [2, 5, 9] and not engine.pending


def test_buckets_are_issued_during_backward_once_the_workers_have_an_order(engine: Engine) -> None:
    assert engine.step() == [AT_THE_END] * 3
    assert engine.step() == [BY_A_HOOK] * 3


@pytest.mark.parametrize("number", [0, 1])
def test_no_backward_is_taken_for_one_that_the_engine_knows(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """PyTorch numbers backward passes from 0; outside of them it says -1."""
    with monkeypatch.context() as patched:
        patched.setattr(torch._C, "_current_graph_task_id", lambda: number)
        engine.step()
    assert engine.gradients() == AVERAGES


def test_workers_agree_at_the_first_second_fourth_and_eighth_reduction(engine: Engine, seen: list[Flags]) -> None:
    counts = []
    for _ in range(9):
        engine.step()
        counts.append(len(seen))
    assert counts == [1, 2, 2, 3, 3, 3, 3, 4, 4]
    code = sum(map(ord, "cpu"))
    assert seen[0] == Flags(False, True, code, -code)


def test_workers_agree_again_after_parameters_were_replaced(engine: Engine, seen: list[Flags]) -> None:
    for _ in range(2):
        engine.step()
    engine.three.a = nn.Parameter(torch.ones(2, dtype=torch.float64))
    for _ in range(2):
        engine.step()
        assert engine.gradients() == AVERAGES
    assert len(seen) == 4  # the fourth reduction is one at which they agree in any case
    engine.step()
    engine.rehook()
    engine.step()
    assert len(seen) == 5


@pytest.mark.parametrize(("minus", "unequal"), [(-5.0, False), (-4.0, True)])
def test_unequal_devices_are_known_after_the_first_reduction(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, minus: float, unequal: bool
) -> None:
    monkeypatch.setattr(source, "agree", lambda flags, groups: Flags(False, True, 5.0, minus))
    assert engine.unequal_devices is False
    engine.step()
    assert engine.unequal_devices is unequal


def test_without_synchronisation_gradients_are_pending(engine: Engine) -> None:
    engine.sync()
    assert not engine.pending and engine.noted.taken() == []
    with engine.no_sync():
        with engine.no_sync():
            engine.backward()
        engine.backward()
        assert engine.pending
    assert engine.gradients() == [[2, 2], [4, 4], [6, 6]] and engine.noted.taken() == []
    engine.sync()
    assert engine.gradients() == [[20, 2], [40, 40], [60, 60]] and not engine.pending
    engine.noted.taken()
    engine.sync()
    assert engine.noted.taken() == []
    with engine.no_sync():
        engine.backward()
    engine.three.zero_grad()
    assert not engine.pending
    assert engine.step() == [BY_A_HOOK] * 3


def test_a_failed_backward_is_brought_to_an_end(engine: Engine) -> None:
    def fail(gradient: Tensor) -> None:
        raise ValueError("the user's hook")

    for before in ([], [*STARTS, "started all", *FINISHES]):
        handle = engine.three.a.register_hook(fail)
        with pytest.raises(ValueError, match="the user's hook"):
            engine.step()
        handle.remove()
        engine._issuer.settle()
        calls = engine.noted.taken()
        assert [call[:2] for call in calls] == [call[:2] for call in before]
        engine.step()
        assert engine.gradients() == AVERAGES
        engine.noted.taken()


def test_what_was_frozen_must_stay_frozen(engine: Engine) -> None:
    engine.three.frozen.requires_grad_()
    with pytest.raises(SDPError, match=r"'frozen' did not require a gradient when the model was compiled"):
        engine.step()


def test_parameters_know_their_engine_and_their_names(engine: Engine) -> None:
    three = engine.three
    assert engine.names() == {three.a: "a", three.b: "b", three.c: "c", three.frozen: "frozen"}
    assert engine_of(three.a) is engine and engine_of(three.extra) is engine
    assert engine_of(three.frozen) is None and engine_of(torch.ones(1)) is None
    with pytest.raises(SDPError, match=r"comm_dtype must be a floating-point dtype .*, got torch\.int32"):
        Engine(comm_dtype=torch.int32)
    parameter = three.a
    del engine.three, three
    gc.collect()
    assert engine.names() == {} and not engine.pending
    parameter.sum().backward()


def test_gradients_that_are_not_finite_are_reported_before_anything_is_written(
    seen: list[Flags], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    def require_finite(local: str | None, average: str | None, groups: Any) -> None:
        reports.append((local, average))
        if local or average:
            raise SDPError("not finite")

    monkeypatch.setattr(source, "require_finite", require_finite)
    engine = Engine(check_finite=True)
    engine.step()
    assert reports == [(None, None)] and engine.gradients() == AVERAGES
    with pytest.raises(SDPError, match="not finite"):
        engine.step(engine.three.b * torch.tensor([1.0, torch.inf]))
    assert reports[1:] == [("b", "b")] and engine.gradients()[0] == [1, 1]
