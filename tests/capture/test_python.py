"""What forward does besides computing with tensors is refused, with its line, before a graph could lose it."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from sdp_compile.ir.plain import MISSING, frozen
from sdp_compile.ir.reads import Read, changed_read
from sdp_compile.structure.analysis import analyse
from tests.capture import python_models as models
from tests.capture.models import run
from tests.runtime.module.small import compiled

REFUSED: dict[type[nn.Module], tuple[str, ...]] = {
    models.Counter: ("attribute 'calls' of the model", "self.calls += 1", "register_buffer"),
    models.ChildCounter: ("attribute 'calls' of module 'last'", "self.last.calls = self.last.calls + 1"),
    models.ClassCounter: ("attribute 'calls' of class ClassCounter", "self.calls[0] += 1"),
    models.ClassNumber: ("attribute 'calls' of class ClassNumber", "ClassNumber.calls += 1"),
    models.History: ("attribute 'history'", "self.history.append(h.shape[0])"),
    models.Table: ("attribute 'table'", 'self.table["seen"] ='),
    models.Stepper: ("attribute 'steps'", "next(self.steps)"),
    models.OwnRandom: ("attribute 'random'", "self.random.random() > 0.5"),
    models.LayerDrop: ("draws from Python's random", "random.random() > 0.5", "torch.rand"),
    models.Shuffled: ("draws from Python's random", "random.shuffle(order)"),
    models.NumpyNoise: ("draws from numpy.random", "np.random.normal()"),
    models.Clock: ("calls time.time()", "time.time() % 2"),
    models.Collecting: ("global variable 'COLLECTED'", "COLLECTED.append(h)", "Return what is collected"),
    models.GlobalTable: ("global variable 'COUNTS'", 'COUNTS["calls"] += 1'),
    models.GlobalNumber: ("global variable 'STEPS'", "STEPS += 1"),
    models.GlobalObject: ("global variable 'SETTINGS'", "SETTINGS.calls += 1"),
    models.CreatesLayer: ("creates 'extra' in the model", "self.extra = nn.Linear(16, 16)", "Run the model once"),
    models.CreatesParameter: ("creates 'scale' in the model", "self.scale = nn.Parameter"),
    models.TypeNumber: ("attribute 'total' of class TypeNumber", "type(self).total += 1"),
    models.Default: ("a default argument of remembering()", "seen.append(h.shape[0])"),
    models.Freezing: ("changes requires_grad of parameter 'first.weight'", "self.first.requires_grad_("),
    models.Adding: ("creates 'extra' in the model", 'self.add_module("extra"'),
    models.Cached: ("creates 'doubled' in the model", "self.doubled.sum()"),
    models.Stored: ("attribute 'stored' of the model", 'self.stored["h"] = h'),
    models.ClassCache: ("creates attribute 'scale' of class ClassCache", "type(self).scale = "),
    models.Lazy: ("creates 'ramp' in the model", "self.ramp = ", "Run the model once"),
    models.Carried: ("'states'", "self.states = ["),
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("meta", [False, True], ids=["real", "meta"])
def test_what_a_graph_would_lose_is_refused_with_its_line(kind: type[nn.Module], meta: bool) -> None:
    model, x = kind(), torch.randn(4, 5)
    states = random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr, index]
    with pytest.raises(CaptureError) as caught:
        capture(model.to("meta") if meta else model, x.to("meta") if meta else x)
    for words in REFUSED[kind]:
        assert words in str(caught.value)
    assert "python_models.py:" in str(caught.value)
    assert states == (random.getstate(), np.random.get_state()[1].tobytes())  # type: ignore[union-attr, index]
    assert models.COLLECTED == [] and models.COUNTS == {"calls": 0}, "nothing of the run stays behind"
    assert (
        models.STEPS == 0
        and models.SETTINGS.calls == 0
        and models.ClassCounter.calls == [0]
        and models.ClassNumber.calls == models.TypeNumber.total == 0
    )


@pytest.mark.parametrize(("kind", "name"), [(models.OtherMode, "size"), (models.OtherModeTensor, "mean")])
def test_what_training_leaves_for_evaluation_is_refused(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"carries attribute '{name}' of the model .*\(train assigns it, eval reads"
    ):
        capture(kind(), torch.randn(4, 5))


def test_plain_values_are_left_after_each_call() -> None:
    model, x = models.Telling(), torch.randn(4, 5)
    module = compiled(model, x)
    for training, rows in ((True, 4), (True, 3), (False, 6), (True, 6), (False, 4)):
        x = torch.randn(rows, 5)
        for one in (model, module):
            one.train(training)
        torch.testing.assert_close(module(x), model(x))
        assert (module.rows, module.shape, module.how) == (model.rows, model.shape, model.how)
        assert type(module.rows) is int
        torch.testing.assert_close(module.loss, model.loss)


@pytest.mark.parametrize("collect", ["list", "dictionary"])
def test_a_hook_that_collects_is_refused_and_leaves_no_tensor_behind(collect: str) -> None:
    features: Any = [] if collect == "list" else {}
    model = models.hooked(features.append if collect == "list" else lambda output: features.update(out=output))
    with pytest.raises(CaptureError, match=r"(test_python|python_models)\.py:\d+: .*(features|collect)"):
        capture(model, torch.randn(4, 5))
    assert not features


@pytest.mark.parametrize("way", ["clear", "slice", "key"])
def test_a_hook_that_puts_sizes_where_they_already_are_is_refused(way: str) -> None:
    """After a call in eager mode the list holds what a run of capture with the same sizes puts there again."""
    sizes: Any = {} if way == "key" else []

    def collect(output: torch.Tensor) -> None:
        if way == "clear":
            sizes.clear()
            sizes.append(output.shape[0])
        else:
            sizes["size" if way == "key" else slice(None)] = [output.shape[0]]

    model, x = models.hooked(collect), torch.randn(4, 5)
    model(x)
    before = copy.copy(sizes)
    with pytest.raises(CaptureError, match=r"(changes|clears) variable 'sizes'") as caught:
        capture(model, x)
    assert repr(sizes) == repr(before), "no symbolic size is left behind"
    if way == "clear":
        assert "sizes.clear()" in str(caught.value)


def test_what_forward_reads_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDP_TEST_SCALE", "3")
    x = torch.randn(4, 5)
    train = capture(models.Tempered(), x).programs["train"]
    read = {(one.owner, one.name): one.value for one in train.reads if one.kind == "attribute"}
    assert read["", "temperature"] == (float, 1.0) and read["first", "gain"] == (int, 1)
    scale = Read("global", models.__name__, "SCALE", (float, 2.0))
    assert scale in capture(models.ReadsGlobal(), x).programs["eval"].reads
    environment = Read("environment", "", "SDP_TEST_SCALE", "3")
    assert environment in capture(models.ReadsEnvironment(), x).programs["train"].reads


def test_a_read_sees_what_is_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.Tempered()
    gain = Read("attribute", "first", "gain", frozen(1))
    missing = Read("attribute", "last", "gain", MISSING)
    scale = Read("global", models.__name__, "SCALE", frozen(models.SCALE))
    variable = Read("environment", "", "SDP_TEST_SCALE", None)
    monkeypatch.delenv("SDP_TEST_SCALE", raising=False)
    assert changed_read((gain, missing, scale, variable), model) is None
    model.first.gain = True
    assert changed_read((missing, gain), model) is gain, "True is not 1"
    del model.first.gain
    assert gain.now(model) is MISSING and changed_read((gain,), model) is gain
    model.last.gain = None
    assert changed_read((missing,), model) is missing
    monkeypatch.setattr(models, "SCALE", 4.0)
    assert scale.now(model) == 4.0 and changed_read((scale,), model) is scale
    monkeypatch.setenv("SDP_TEST_SCALE", "3")
    assert changed_read((variable,), model) is variable


class Asking(models.Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h if torch.compiler.is_compiling() or torch.compiler.is_exporting() else h - h.mean(1, keepdim=True)


def test_code_for_compilers_is_not_taken() -> None:
    model, x = Asking(), torch.randn(4, 5)
    assert torch.equal(run(model, capture(model, x), "eval", x), model(x))
    assert not torch.compiler.is_compiling() and not torch.compiler.is_exporting()


@pytest.mark.parametrize("kind", [models.Local, models.Memo])
def test_what_one_call_collects_for_itself_and_caches_may_be(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.randn(4, 5)
    assert torch.allclose(run(model, capture(model, x), "train", x), model(x))


@pytest.mark.parametrize("make", [list, tuple, lambda tensors: {"weight": tensors[0]}])
def test_trained_tensors_outside_the_parameters_are_named(make: Any) -> None:
    model = models.Small()
    model.weights = make([torch.randn(16, 16, requires_grad=True)])
    with pytest.raises(CaptureError, match=r"\[16, 16\] that requires gradients in attribute 'weights'.*ParameterList"):
        capture(model, torch.randn(4, 5))


def test_a_trained_tensor_in_a_closure_is_refused() -> None:
    weight = torch.randn(16, requires_grad=True)

    class Closure(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            return h * weight

    with pytest.raises(CaptureError, match=r"\[16\] that requires gradients and is not one of its parameters"):
        capture(Closure(), torch.randn(4, 5))


@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.clamp_(-0.1, 0.1),
        lambda weight: weight.data.renorm_(2, 0, 1.0),
        lambda weight: weight.detach().mul_(0.5),
        lambda weight: setattr(weight, "data", weight.data * 0.5),
    ],
)
def test_writes_to_parameters_are_refused(write: Any) -> None:
    class Writing(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            write(self.last.weight)
            return h

    with pytest.raises(CaptureError, match=r"(test_python|python_models)\.py:\d+"):
        analyse(capture(Writing(), torch.randn(4, 5)))


def test_data_may_be_read() -> None:
    class Reading(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            return h * self.last.weight.data.norm()

    model, x = Reading(), torch.randn(4, 5)
    assert torch.allclose(run(model, capture(model, x), "train", x), model(x))
