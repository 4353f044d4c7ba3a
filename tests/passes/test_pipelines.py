"""``passes=``: a pass of one's own by name, from a file or in a whole pipeline, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile import NeuronPolicy, PassError, PlanError
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes import (
    BypassBlocks,
    DeadCode,
    MaskParameters,
    Pass,
    PassContext,
    Rescale,
    SliceParameters,
    SyncGradients,
    Verify,
    inherited,
    pipeline,
    register_pass,
    resolve_pipeline,
    with_pass,
)
from sdp_compile.passes.pipelines import PASSES
from tests.graph_text import text_of
from tests.passes.programs import lines

aten = torch.ops.aten

X = torch.ones(3, 4)


class MLP(nn.Module):
    """Two linear layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


MODEL = MLP()


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the output by a number."""

    name: ClassVar[str] = "scale"
    factor: float = 2.0

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        output = program.graph.output_node()
        (value,) = output.args[0]  # type: ignore[misc, union-attr]
        with program.graph.inserting_before(output):
            scaled = program.graph.call_function(aten.mul.Tensor, (value, self.factor))
        scaled.meta = inherited(value)  # type: ignore[arg-type]
        output.replace_input_with(value, scaled)  # type: ignore[arg-type]
        return program


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`Scale` is registered, for one test."""
    monkeypatch.setattr(PASSES, "_registered", dict(PASSES._registered))
    register_pass("scale")(Scale)
    yield


def compiled(passes: Any = None, policy: NeuronPolicy | None = None, **options: Any) -> Any:
    policy = policy or NeuronPolicy(replicas=1)
    return sdp.compile(MODEL, policy, (X,), workers=2, rank=0, passes=passes, **options)


def names(passes: Any) -> list[str]:
    return [one.name for one in resolve_pipeline(passes)]


# -- the default ---------------------------------------------------------------------------------------------------


def test_the_default_pipeline_makes_a_worker_s_program() -> None:
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
            EntryPoint("theirs", f"{__name__}:Scale", "sdp_compile.passes"),
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


# -- what is refused -----------------------------------------------------------------------------------------------


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
    with pytest.raises(PlanError, match=r"pipeline for lowering='masked', but lowering='sliced'"):
        compiled(pipeline("masked"))
