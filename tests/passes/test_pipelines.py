"""``passes=``: a pass of one's own by name, from a file, or in a whole pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sdp_compile import PassError
from sdp_compile.capture import capture
from sdp_compile.passes import (
    BypassBlocks,
    DeadCode,
    Rescale,
    SliceParameters,
    SyncGradients,
    Verify,
    pipeline,
    register_pass,
    resolve_pipeline,
    with_pass,
)
from sdp_compile.passes.pipelines import PASSES
from tests.graph_text import text_of
from tests.passes.own_pass import MODEL, Scale, X, compiled
from tests.passes.programs import lines


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Scale` is registered, for one test."""
    monkeypatch.setattr(PASSES, "_registered", dict(PASSES._registered))
    register_pass("scale")(Scale)
    yield


def names(passes: Any) -> list[str]:
    return [one.name for one in resolve_pipeline(passes)]


# -- the default ---------------------------------------------------------------------------------------------------


def test_the_default_pipeline_makes_a_worker_s_program() -> None:
    assert text_of(capture(MODEL, (X,)).programs["train"].graph) == lines("""
        x: f32[n0, 4] = placeholder
        up_weight: f32[8, 4] = get_attr[up.weight]
        down_weight: f32[4, 8] = get_attr[down.weight]
        linear: f32[n0, 8] = aten.linear(x, up_weight)
        relu: f32[n0, 8] = aten.relu(linear)
        linear_1: f32[n0, 4] = aten.linear(relu, down_weight)
        return linear_1""")
    assert text_of(compiled().graph) == lines("""
        x: f32[3, 4] = placeholder
        up_weight: f32[4, 4] = get_attr[up.weight]
        down_weight: f32[4, 4] = get_attr[down.weight]
        linear: f32[3, 4] = aten.linear(x, up_weight)
        relu: f32[3, 4] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, down_weight)
        return linear_1""")


@pytest.mark.parametrize(
    ("lowering", "masking", "reducers"),
    [
        ("sliced", "forward", ["rescale", "bypass_blocks", "slice_parameters"]),
        ("masked", "forward", ["rescale", "zero_blocks", "mask_parameters"]),
        ("sliced", "backward", ["split_parameters"]),
        ("masked", "backward", ["mask_gradients"]),
    ],
)
def test_the_default_pipelines(lowering: Any, masking: Any, reducers: list[str]) -> None:
    passes = pipeline(lowering, masking)
    assert [one.name for one in passes] == [*reducers, "dead_code", "sync_gradients", "verify"]


# -- a pass of one's own -------------------------------------------------------------------------------------------

BY_NAME = ["rescale", "bypass_blocks", "slice_parameters", "dead_code", "scale", "sync_gradients", "verify"]


def test_a_registered_pass_is_added_by_name_before_gradients_are_marked() -> None:
    assert names("scale") == BY_NAME
    assert torch.equal(compiled("scale")(X), 2 * compiled()(X))
    assert text_of(compiled("scale").graph).splitlines()[-3:] == [
        "linear_1: f32[3, 4] = aten.linear(relu, down_weight)",
        "mul_tensor: f32[3, 4] = aten.mul.Tensor(linear_1, 2.0)",
        "return mul_tensor",
    ]


def test_a_pass_says_where_it_goes() -> None:
    @register_pass("early")
    @dataclass(frozen=True)
    class Early(Scale):
        before: ClassVar[str] = "slice_parameters"

    assert Early.name == "early"
    assert names("early, scale")[2:6] == ["early", "slice_parameters", "dead_code", "scale"]
    assert torch.equal(compiled("early, scale")(X), 4 * compiled()(X))


def test_an_installed_package_offers_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        [
            EntryPoint("theirs", "tests.passes.own_pass:Scale", "sdp_compile.passes"),
            EntryPoint("broken", "no_such_module:Pass", "sdp_compile.passes"),
        ]
    )
    monkeypatch.setattr("sdp_compile.registry.entry_points", lambda **which: points.select(**which))
    assert names("theirs") == BY_NAME
    with pytest.raises(PassError, match="The pass 'broken' of 'no_such_module:Pass' cannot be loaded"):
        compiled("broken")


ADDED = {
    'add = ["scale"]': ("scale", "sync_gradients", 2.0),
    'add = [{pass = "scale", factor = 3.0}]': ("scale", "sync_gradients", 3.0),
    '[[add]]\npass = "scale"\nbefore = "verify"\nfactor = 0.5': ("scale", "verify", 0.5),
}


@pytest.mark.parametrize("text", ADDED)
def test_a_file_adds_passes_with_fields_and_places(text: str, tmp_path: Path) -> None:
    name, before, factor = ADDED[text]
    path = tmp_path / "passes.toml"
    path.write_text(text)
    passes = resolve_pipeline(path)
    place = names(path).index(name)
    assert passes[place] == Scale(factor) and passes[place + 1].name == before
    assert torch.equal(compiled(str(path))(X), factor * compiled()(X))


def test_a_file_has_a_whole_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "passes.toml"
    path.write_text('passes = ["slice_parameters", {pass = "sync_gradients", bucket_bytes = 64}, "verify"]\n')
    assert resolve_pipeline(path) == (SliceParameters(), SyncGradients(64), Verify())
    assert torch.equal(compiled(path)(X), compiled()(X))


def test_a_sequence_of_passes_is_the_whole_pipeline() -> None:
    whole = (Rescale(), BypassBlocks(), SliceParameters(), Scale(3.0), DeadCode(), SyncGradients(), Verify())
    assert resolve_pipeline(whole) == whole
    assert torch.equal(compiled(whole)(X), 3 * compiled()(X))
    assert torch.equal(compiled([*whole])(X), 3 * compiled()(X))


def test_the_pipeline_of_the_other_lowering() -> None:
    masked = with_pass(pipeline("masked"), Scale())
    torch.testing.assert_close(compiled(masked, lowering="masked")(X), compiled("scale")(X))
