"""Pipelines that `sdp.compile` refuses, each with an error that says what is wrong where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdp_compile import NeuronPolicy, PassError, PlanError
from sdp_compile.ir.program import Program
from sdp_compile.passes import (
    DeadCode,
    MaskParameters,
    Pass,
    PassContext,
    SliceParameters,
    Verify,
    pipeline,
    register_pass,
    with_pass,
)
from sdp_compile.passes.pipelines import PASSES
from tests.passes.own_pass import Scale, compiled


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Scale` is registered, for one test."""
    monkeypatch.setattr(PASSES, "_registered", dict(PASSES._registered))
    register_pass("scale")(Scale)
    yield


@dataclass(frozen=True)
class Nameless(Pass):
    """A pass that was never given a name."""

    def run(self, program: Program, context: PassContext) -> Program:
        return program


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            "scael",
            r"Unknown pass 'scael'\. Did you mean 'scale'.* Known names: bypass_blocks, .*\.toml",
        ),
        ("scale, scale", r"has the pass 'scale' twice"),
        ("verify", r"has the pass 'verify' twice"),
        ((DeadCode(), Verify()), r"exactly one pass that reduces parameters \(mask_gradients.*this one has none"),
        ((), r"this one has none"),
        ((SliceParameters(), MaskParameters()), r"this one has slice_parameters and mask_parameters"),
        (["scale"], r"passes must be a sequence of Pass objects, names, or a TOML file, got \['scale'\]"),
        (3, r"passes must be a sequence of Pass objects, names, or a TOML file, got 3"),
        ((Nameless(), SliceParameters()), r"The pass Nameless.* has no name"),
    ],
)
def test_pipelines_that_cannot_be(passes: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        compiled(passes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('add = ["scael"]', r"Unknown pass 'scael'\. Did you mean 'scale'"),
        ('add = ["scale", "scale"]', r"has the pass 'scale' twice"),
        ('add = [{pass = "scale", before = "verfy"}]', r"'scale' goes before 'verfy'.*Did you mean 'verify'"),
        ('add = [{pass = "scale", before = 3}]', r"`before` of the pass 'scale' must be the name of a pass, got 3"),
        ('add = [{pass = "scale", facter = 3.0}]', r"The pass 'scale' cannot be made from .*facter"),
        ("add = [3]", r"An entry must be the name of a pass.*got 3"),
        ("add = [{factor = 3.0}]", r"An entry must be the name of a pass.*factor"),
        ('add = "scale"', r"must have one key: `add`, a list"),
        ('add = []\npasses = ["verify"]', r"must have one key.*It has add, passes"),
        ("", r"must have one key.*It has none"),
        ('passes = ["verify"]', r"this one has none"),
        (
            'passes = ["slice_parameters", {pass = "scale", before = "verify"}]',
            r"'scale' has `before`",
        ),
        ("add = = 3", r"is not valid TOML.*line 1"),
    ],
)
def test_files_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "passes.toml"
    path.write_text(text)
    with pytest.raises(PassError, match=rf"pass file '.*passes\.toml'.*{message}"):
        compiled(path)


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(PassError, match=r"The pass file 'missing\.toml' does not exist"):
        compiled("missing.toml")


def test_a_pass_whose_place_does_not_exist() -> None:
    with pytest.raises(PassError, match=r"'scale' goes before 'sync_gradients', which the pipeline does not have"):
        with_pass((SliceParameters(), Verify()), Scale())


def test_a_pass_that_refuses_its_fields(tmp_path: Path) -> None:
    @register_pass("positive")
    @dataclass(frozen=True)
    class Positive(Scale):
        def __post_init__(self) -> None:
            if self.factor <= 0:
                raise ValueError(f"factor must be positive, got {self.factor}")

    path = tmp_path / "passes.toml"
    path.write_text('add = [{pass = "positive", factor = -1.0}]')
    with pytest.raises(PassError, match=r"The pass 'positive' cannot be made .*factor must be positive, got -1"):
        compiled(path)


def test_a_class_without_run_cannot_be_made() -> None:
    @register_pass("abstract")
    class Abstract(Pass):
        pass

    with pytest.raises(PassError, match=r"The pass 'abstract' cannot be made.*run"):
        compiled("abstract")


def test_only_passes_can_be_registered() -> None:
    with pytest.raises(PassError, match="The pass 'number' must be a subclass of Pass, got <class 'int'>"):
        register_pass("number")(int)  # type: ignore[type-var]
    with pytest.raises(PassError, match=r"already a pass 'verify': sdp_compile\.passes\.verify\.Verify"):
        register_pass("verify")(Scale)


def test_a_pipeline_for_the_other_masking() -> None:
    with pytest.raises(PassError, match=r"'slice_parameters' is for masking='forward'.*policy has masking='backward'"):
        compiled(pipeline(), NeuronPolicy(masking="backward"))


def test_a_pipeline_for_the_other_lowering() -> None:
    with pytest.raises(PlanError, match=r"pipeline for lowering='masked', but lowering is 'sliced'"):
        compiled(pipeline("masked"))
