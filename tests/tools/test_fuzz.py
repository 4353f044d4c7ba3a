"""The fuzzer: what it writes, and that it tells exact, refused, wrong and crashing compilers apart."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from sdp_compile.errors import CaptureError
from tools.fuzz.__main__ import main
from tools.fuzz.comparison import FAILURES, Verdict, compare
from tools.fuzz.fragments import FRAGMENTS
from tools.fuzz.grammar import Design, Gene, draw, write
from tools.fuzz.instance import Instance, world
from tools.fuzz.results import Results, summary
from tools.fuzz.shrinking import shrink
from tools.fuzz.side import Side
from tools.fuzz.trial import try_seed

MLP = """
import torch
from torch import nn
import torch.nn.functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 3)
        self.register_buffer("mean", torch.zeros(16))
        self.loss = None
        self.scale = 1.0

    def forward(self, x):
        h = F.relu(self.up(x))
        {line}
        return self.down(h)


def build():
    return Model(), (torch.randn(4, 5),)


POLICY = {{"policy": "neuron", "coverage": 0.5}}
READ = {read}
STEPS = {steps}
"""
STEPS = (("train",), ("call", "example"), ("sgd",), ("call", "example"), ("eval",), ("call", "example", "input_grad"))


def source(line: str = "pass", read: tuple[str, ...] = (), steps: tuple[Any, ...] = STEPS) -> str:
    return MLP.format(line=line, read=read, steps=steps)


def judge(text: str, folder: Path, compiler: Callable[..., Any] = sdp.compile) -> Verdict:
    return compare(text, folder, compiler)


def spoilt(change: Callable[[Any], None]) -> Callable[..., Any]:
    """Returns a compiler whose result is changed afterwards."""

    def compiler(*args: Any, **kwargs: Any) -> Any:
        module = sdp.compile(*args, **kwargs)
        change(module)
        return module

    return compiler


def test_a_seed_always_gives_the_same_module() -> None:
    assert [write(draw(seed)) for seed in range(50)] == [write(draw(seed)) for seed in range(50)]
    assert len({write(draw(seed)) for seed in range(50)}) == 50


def test_every_fragment_is_drawn_and_every_source_is_python() -> None:
    seen: set[str] = set()
    for seed in range(1000):
        design = draw(seed)
        seen.update(design.names)
        ast.parse(write(design))
    assert seen == {*FRAGMENTS, "child"}


@pytest.mark.parametrize("name", ["counter", "hook_on_model", "ring_buffer"])
def test_a_wanted_fragment_is_in_every_module(name: str) -> None:
    assert all(name in draw(seed, (name,)).names for seed in range(20))


def test_fragments_alone_come_in_turn() -> None:
    names = sorted(FRAGMENTS)
    for seed in range(len(names)):
        assert {names[seed]} <= {*draw(seed, alone=True).names} <= {names[seed], "residual"}
    assert draw(len(names), alone=True).names == draw(len(names), (names[0],), alone=True).names


def test_nearly_all_modules_run_in_eager_mode(tmp_path: Path) -> None:
    whole: Any = SimpleNamespace(masking="backward", state={})  # the part of a plan that a whole model needs
    failed = []
    for seed in range(60):
        with world("float64"):
            instance = Instance(write(draw(seed)), tmp_path)
            side = Side.of_original(instance, whole, 0)
            try:
                for number, step in enumerate(instance.namespace["STEPS"][:3]):
                    side.do(step, number)
            except RuntimeError:
                failed.append(seed)
            instance.close()
    assert len(failed) <= 3


def test_a_right_compiler_is_exact(tmp_path: Path) -> None:
    verdict = judge(source(), tmp_path)
    assert (verdict.outcome, verdict.calls, verdict.notes) == ("exact", 3, [])


def scale_output(module: Any) -> None:
    module.register_forward_hook(lambda _module, _args, output: output * (1 + 1e-6))


def scale_gradient(module: Any) -> None:
    next(module.parameters()).register_hook(lambda grad: grad * (1 + 1e-6))


def change_parameter(module: Any) -> None:
    next(module.parameters()).data.mul_(1.001)


@pytest.mark.parametrize(
    ("change", "kind"),
    [(scale_output, "output"), (scale_gradient, "gradient"), (change_parameter, "output")],
)
def test_a_wrong_compiler_is_found(change: Callable[[Any], None], kind: str, tmp_path: Path) -> None:
    verdict = judge(source(), tmp_path, spoilt(change))
    assert verdict.outcome == "wrong"
    assert verdict.detail.startswith(kind)
    assert verdict.step == "1 call example"


def test_a_buffer_that_is_not_updated_is_wrong(tmp_path: Path) -> None:
    def forget(module: Any) -> None:
        def hook(*_: Any) -> None:
            module.get_buffer("mean").zero_()

        module.register_forward_hook(hook)

    text = source("self.mean.add_(h.detach().mean(0))")
    assert judge(text, tmp_path).outcome == "exact"
    verdict = judge(text, tmp_path, spoilt(forget))
    assert (verdict.outcome, verdict.kinds) == ("wrong", ["buffer"])


def test_an_attribute_that_the_training_loop_reads_must_be_there(tmp_path: Path) -> None:
    def eager(model: Any, *_args: Any, **kwargs: Any) -> Any:
        module = sdp.compile(model, *_args, **kwargs)
        original = vars(module._programs.state.skeleton)  # an attribute that the module lacks is looked up there
        original.pop("loss")
        module.__dict__.pop("loss", None)
        module.register_forward_hook(lambda *_: module.__dict__.pop("loss", None))
        return module

    verdict = judge(source("self.loss = None", read=("loss",)), tmp_path, eager)
    assert verdict.outcome in ("wrong", "refused")
    if verdict.outcome == "wrong":
        assert verdict.kinds == ["missing attribute"]


def test_the_model_that_is_given_must_not_change(tmp_path: Path) -> None:
    def compiler(model: Any, *args: Any, **kwargs: Any) -> Any:
        module = sdp.compile(model, *args, **kwargs)
        model.scale = 2.0
        return module

    verdict = judge(source(), tmp_path, compiler)
    assert (verdict.outcome, verdict.step) == ("wrong", "compile")
    assert "scale" in verdict.detail


def test_a_refusal_must_name_a_line_or_an_argument(tmp_path: Path) -> None:
    refused = judge(source("h = h * 2 if h.sum() > 0 else h"), tmp_path)
    assert refused.outcome == "refused"
    assert ": h = h * 2 if h.sum() > 0" in refused.detail

    def vague(*_args: Any, **_kwargs: Any) -> Any:
        raise CaptureError("This cannot be captured.")

    assert judge(source(), tmp_path, vague).outcome == "vague"


def test_other_errors_are_crashes(tmp_path: Path) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyError("node")

    verdict = judge(source(), tmp_path, broken)
    assert (verdict.outcome, verdict.step) == ("crash", "compile")
    assert "KeyError" in verdict.detail


def test_a_module_that_eager_mode_cannot_run_is_invalid(tmp_path: Path) -> None:
    assert judge(source("h = h.view(7, 7, 7)"), tmp_path).outcome == "invalid"


def test_an_error_of_eager_mode_ends_the_comparison(tmp_path: Path) -> None:
    steps = (("train",), ("call", "example"), ("call", "long"))
    text = source(steps=steps) + "\n\ndef variants():\n    return {'long': (torch.randn(4, 6),)}\n"
    verdict = judge(text, tmp_path)
    assert verdict.outcome in ("exact", "refused")
    assert verdict.calls == 1


def test_shrinking_keeps_what_fails() -> None:
    design = draw(3)
    genes = tuple(Gene(name, 1, str(number)) for number, name in enumerate(("dense", "counter", "residual", "flag")))
    design = Design(3, "rows", False, genes, design.settings)

    def fails_with_counter(smaller: Design) -> Verdict:
        return Verdict("wrong", "output: x") if "counter" in smaller.names else Verdict()

    small, verdict = shrink(design, Verdict("wrong", "output: y"), fails_with_counter)
    assert small.names == ("counter",)
    assert dict(small.settings)["POLICY"]["policy"] == "neuron"
    assert verdict.detail == "output: x"


def test_a_failure_is_kept_as_a_small_module(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    row = try_seed(4, tmp_path, keep=keep, compiler=spoilt(scale_output))
    assert row["outcome"] == "wrong"
    (file,) = keep.iterdir()
    assert file.name == "seed_4_wrong.py"
    assert judge(file.read_text(), tmp_path, spoilt(scale_output)).outcome == "wrong"


def test_results_continue_and_a_lost_process_is_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.jsonl"
    first = Results(file)
    first.add({"seed": 0, "outcome": "exact", "detail": "", "fragments": ["dense"]})
    first.start(1)
    second = Results(file)
    assert second.done == {0, 1}
    assert second.rows[1]["outcome"] == "crash"
    assert "dense" in summary(second.rows)
    assert Results(file).done == {0, 1}


def test_the_command_writes_rows_and_says_by_its_exit_code_whether_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fuzz.jsonl"
    file.write_text(json.dumps({"seed": 0, "outcome": "refused", "detail": "", "fragments": []}) + "\n")
    assert main(["--modules", "1", "--out", str(file)]) == 0
    assert "1 modules" in capsys.readouterr().out
    with file.open("a") as stream:
        stream.write(json.dumps({"seed": 1, "outcome": "wrong", "detail": "", "fragments": []}) + "\n")
    assert main(["--modules", "2", "--out", str(file)]) == 1


def test_several_processes_try_all_seeds(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "tools.fuzz", "--modules", "2", "--jobs", "2", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {json.loads(line)["seed"] for line in out.read_text().splitlines()} == {0, 1}


def test_the_default_dtype_is_restored() -> None:
    with world("float64"):
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32


def failures_of(seeds: Iterable[int], folder: Path, **options: Any) -> Iterator[str]:
    for seed in seeds:
        row = try_seed(seed, folder, **options)
        if row["outcome"] in FAILURES:
            yield f"seed {seed}: {row['outcome']} at {row['step']}: {row['detail']}"


def test_random_modules_are_exact_or_refused(tmp_path: Path) -> None:
    assert not list(failures_of(range(20), tmp_path))


def test_every_fragment_alone_is_exact_or_refused(tmp_path: Path) -> None:
    assert not list(failures_of(range(len(FRAGMENTS)), tmp_path, alone=True))
