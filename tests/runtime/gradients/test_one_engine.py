"""The gradient engine of one worker: what it asks of its reduction and of the others, and when."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.agreement import Flags
from sdp_compile.runtime.gradients import engine as source
from sdp_compile.runtime.gradients.engine import GradientEngine, engine_of
from tests.runtime.gradients.alone import Launch, Noted, bucket, groups

BUCKETS = [bucket(2, a=([0],), b=([0],)), bucket(4, a=([],)), bucket(5, b=([1],)), bucket(9, c=([0, 1],))]
STARTS: list[Any] = [("start", 2, [1, 2, 0]), ("start", 5, [2, 0]), ("start", 9, [3, 3, 0])]
FINISHES = [("finish", 2), ("finish", 5), ("finish", 9)]


AT_THE_END, BY_A_HOOK, BY_A_GRAPH = "NoneType", "AccumulateGrad", "LaunchBackward"
"""Where in a backward a bucket is issued."""


class Three(nn.Module):
    """Parameters whose gradients are 1, 2 and 3, one that is frozen, and one that is not of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.extra = nn.Parameter(torch.zeros(2))


class Engine(GradientEngine):
    """An engine of one worker that notes its calls, and where in backward it issues buckets."""

    def __init__(self, **options: Any) -> None:
        self.three = Three()
        state = {
            name: SimpleNamespace(kind="parameter", requires_grad=name != "frozen")
            for name in ("a", "b", "c", "frozen")
        }
        holdings: Any = SimpleNamespace(plan=SimpleNamespace(state=state), region=lambda piece: Region(piece.index))
        super().__init__(self.three, holdings, groups(), BUCKETS, **options)
        self.reduction = self.noted = Noted()
        self.during: list[str] = []
        start = self.noted.start

        def recorded(bucket: Any, flat: Tensor) -> None:
            self.during.append(type(torch._C._current_autograd_node()).__name__)
            start(bucket, flat)

        self.noted.start = recorded

    def backward(self, more: Any = 0) -> None:
        three = self.three
        (three.a + 2 * three.b + 3 * three.c + more).sum().backward()

    def step(self, more: Any = 0) -> list[str]:
        """One backward on fresh gradients; where each bucket was issued."""
        self.three.zero_grad()
        self.during.clear()
        self.backward(more)
        return list(self.during)

    def gradients(self) -> list[Any]:
        return [None if p.grad is None else p.grad.tolist() for p in (self.three.a, self.three.b, self.three.c)]


AVERAGES = [[10, 1], [20, 20], [30, 30]]
"""The second element of ``a`` has no other owner, so it is in no bucket."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Flags]:
    """What the worker tells the others, who say the same."""
    result: list[Flags] = []

    def agree(flags: Flags, groups: Any) -> Flags:
        result.append(flags)
        return flags

    monkeypatch.setattr(source, "agree", agree)
    return result


@pytest.fixture
def engine(seen: list[Flags]) -> Engine:
    return Engine()


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


# -- compiled graphs ---------------------------------------------------------------------------------------------------


def launching(engine: Engine, number: int, *names: str, times: int = 1) -> Any:
    """A term of the loss: in backward, a graph with these parameters launches a bucket."""
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(times):
        parameters = [engine.three.get_parameter(name) for name in names]
        for parameter in Launch.apply(lambda *gradients: engine.launch(number, gradients), *parameters):
            total = total + parameter
    return total


def only(engine: Engine, loss: Tensor) -> None:
    """A backward of this loss alone, on fresh gradients."""
    engine.three.zero_grad()
    engine.during.clear()
    engine.noted.taken()
    loss.sum().backward()


def test_a_graph_launches_after_the_workers_have_agreed(engine: Engine, seen: list[Flags]) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during == [AT_THE_END] * 3 and not seen[0].no_graph_asked
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during == [BY_A_GRAPH, BY_A_HOOK, AT_THE_END]
    assert engine.noted.taken()[0] == ("start", 2, [1, 1, 0])
    assert engine.gradients() == [[10, 1], [10, 10], [0, 0]]
    for _ in range(3):
        only(engine, launching(engine, 2, "a", "b"))
    assert len(seen) == 5  # where graphs launch, the workers agree each time
    assert not any(flags.launch_was_incomplete for flags in seen)


def test_launches_that_are_not_of_a_whole_bucket_are_left_to_the_end(engine: Engine, seen: list[Flags]) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    for number, names in ((2, ("a",)), (4, ("a",)), (9, ("a", "b"))):
        only(engine, launching(engine, number, *names))
        assert not engine._progress.is_launched(0) and engine.gradients()[0] == [10, 1]
    engine.three.zero_grad()
    engine.noted.taken()
    with engine.no_sync():
        launching(engine, 2, "a", "b").sum().backward()
    assert engine.noted.taken() == [] and engine.gradients() == [[1, 1], [1, 1], None]


def test_a_frozen_parameter_does_not_keep_a_bucket_from_its_launch(engine: Engine, seen: list[Flags]) -> None:
    engine.three.b.requires_grad_(False)
    for expected in (AT_THE_END, BY_A_GRAPH):
        only(engine, launching(engine, 2, "a", "b"))
        assert engine.during[0] == expected and engine.gradients() == [[10, 1], None, [0, 0]]


@pytest.mark.parametrize("other_use", ["a second call", "a penalty"])
def test_an_incomplete_launch_is_reduced_again(engine: Engine, seen: list[Flags], other_use: str) -> None:
    only(engine, launching(engine, 2, "a", "b"))
    twice = other_use == "a second call"
    loss = launching(engine, 2, "a", "b", times=2 if twice else 1)
    with pytest.warns(UserWarning, match="other uses"):
        only(engine, loss if twice else loss + engine.three.a + engine.three.b)
    assert seen[1].launch_was_incomplete
    assert engine.gradients() == [[20, 2], [20, 20], [0, 0]]
    calls = engine.noted.taken()
    again: list[Any] = [("start", 2, [2, 2, 0]), ("start", 5, [2, 0]), ("start", 9, [0, 0, 0]), "started all"]
    assert calls[-10:] == [*FINISHES, *again, *FINISHES]
    only(engine, launching(engine, 2, "a", "b"))
    assert engine.during[0] == BY_A_HOOK and engine.gradients() == [[10, 1], [10, 10], [0, 0]]
