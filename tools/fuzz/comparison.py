"""Runs a subnetwork and the eager original with masked parameters side by side."""

from __future__ import annotations

import math
import os
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import sdp_compile as sdp
from sdp_compile.errors import NothingToPartition, SDPError, StructureError
from tools.fuzz.differences import Difference, differences
from tools.fuzz.instance import Instance, fingerprint, moment, reseed, world
from tools.fuzz.rounding import Rounding
from tools.fuzz.side import Side
from tools.fuzz.steps import Step

Outcome = Literal["exact", "refused", "vague", "wrong", "crash", "invalid"]
"""``vague`` is a refusal that names neither a line nor an argument, ``invalid`` a module that eager mode cannot run, or
in which rounding decides what overflows."""

FAILURES: tuple[Outcome, ...] = ("wrong", "crash", "vague")

Compile = Callable[..., Any]
"""`sdp_compile.sdp_compile`, or what a test plants in its place."""

TIME_LIMIT = 90
"""Seconds for one module."""

_NAMED = re.compile(
    r"\b(argument|attribute|buffer|field|input|module|parameter|policy)s? '|environment variable |L\['|\b\w+\.shape\[",
    re.IGNORECASE,
)
"""What a refusal names: a part of the model or an argument."""

_DEFECT = re.compile(r"left a wrong graph|graph cannot run")
"""What an error says that blames the package and not the model."""

_TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "autocast": 0.2}


@dataclass
class Verdict:
    """The outcome of one module.

    Attributes:
        outcome: What happened.
        detail: The first difference, or the message of the error.
        kinds: What differed: outputs, gradients, buffers, parameters, attributes, inputs, the original.
        step: The number and the words of the step at which it happened; ``compile`` before the first.
        calls: The number of calls that were compared.
        notes: What was not compared, or was compared in another way.
    """

    outcome: Outcome = "exact"
    detail: str = ""
    kinds: list[str] = field(default_factory=list)
    step: str = ""
    calls: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_failure(self) -> bool:
        """Whether the outcome is a defect of the package."""
        return self.outcome in FAILURES

    def differs(self, where: str, found: Iterable[Difference]) -> None:
        """Notes differences."""
        for one in found:
            if self.outcome == "exact":
                self.outcome, self.detail, self.step = "wrong", str(one), where
            if one.kind not in self.kinds:
                self.kinds.append(one.kind)


class TimeIsUp(BaseException):
    """A module took longer than the limit; nothing but the comparison catches it."""


def compare(source: str, folder: Path, compiler: Compile = sdp.compile, time_limit: int = TIME_LIMIT) -> Verdict:
    """Compiles a written module and compares it with its original, step by step.

    Args:
        source: The source, as ``grammar.write`` returns it.
        folder: Where the source is written, so that errors can name its lines.
        compiler: What compiles.
        time_limit: Seconds after which the module counts as a crash.
    """
    verdict = Verdict()
    instances: list[Instance] = []
    try:
        with warnings.catch_warnings(), _limited(time_limit):
            warnings.simplefilter("ignore")
            dtype = _constant(source, folder, "DTYPE")
            with world(dtype):
                _compare(source, folder, compiler, verdict, instances, dtype)
    except TimeIsUp:
        verdict.outcome, verdict.detail = "crash", f"no result within {time_limit} s"
    finally:
        for instance in instances:
            instance.close()
    return verdict


def _compare(
    source: str, folder: Path, compiler: Compile, verdict: Verdict, instances: list[Instance], dtype: str
) -> None:
    try:
        given, eager, trial = (Instance(source, folder) for _ in range(3))
        instances += [given, eager, trial]
        reseed(1)
        with moment(0, dtype):
            trial.model.train()(*trial.inputs)
    except Exception as error:
        verdict.outcome, verdict.detail, verdict.step = "invalid", _text(error), "eager"
        return
    before = fingerprint(given)
    settings = {name: given.namespace[name.upper()] for name in ("policy", "workers", "rank", "lowering")}
    try:
        with moment(None, dtype):
            compiled = _compiled(given, settings, compiler, verdict)
    except SDPError as error:
        _refused(verdict, error, given, "compile")
        return
    except Exception as error:
        verdict.outcome, verdict.detail, verdict.step = "crash", _text(error), "compile"
        return
    changed = differences("original", fingerprint(given), before, 0.0)
    verdict.differs("compile", changed)
    original = Side.of_original(eager, compiled.plan, compiled.rank)
    subnetwork = Side.of_subnetwork(given, compiled)
    rounding = Rounding(source, folder, compiled.plan, compiled.rank, dtype)
    for number, step in enumerate(given.namespace["STEPS"]):
        where = f"{number} {' '.join(map(str, step))}"
        if not _step(step, number, where, original, subnetwork, verdict, rounding):
            return


def _compiled(given: Instance, settings: dict[str, Any], compiler: Compile, verdict: Verdict) -> Any:
    try:
        return compiler(given.model, settings.pop("policy"), given.inputs, **settings)
    except NothingToPartition:
        verdict.notes.append("nothing to cut")
        return compiler(given.model, "auto", given.inputs, workers=1, rank=0)


def _step(
    step: Step, number: int, where: str, original: Side, subnetwork: Side, verdict: Verdict, rounding: Rounding
) -> bool:
    """Does one step on both sides. Returns whether the next one can follow."""
    errors: list[Exception | None] = []
    results: list[Any] = []
    states: list[torch.Tensor] = []
    for side in (original, subnetwork):
        os.environ.setdefault("FUZZ_FLAG", "0")
        reseed(number + 2)
        error = None
        try:
            with moment(number, rounding.dtype):
                results.append(side.do(step, number))
        except Exception as caught:
            error = caught
        errors.append(error)
        states.append(torch.get_rng_state())
    expected, actual = errors
    if isinstance(actual, SDPError):
        if verdict.outcome == "exact":
            _refused(verdict, actual, subnetwork.instance, where)
        return False
    if expected is not None:
        if actual is None:
            verdict.notes.append(f"{where}: only eager mode raises {_text(expected)}")
        return False
    if actual is not None:
        if verdict.outcome == "exact":
            verdict.outcome, verdict.detail, verdict.step = "crash", _text(actual), where
        return False
    if step[0] != "call":
        return True
    if original.instance.namespace["IS_RANDOM"] and not torch.equal(*states):
        verdict.notes.append(f"{where}: not compared, other random numbers")
        return False
    verdict.calls += 1
    tolerance = max(_TOLERANCES[rounding.dtype], _TOLERANCES["float32"] if original.is_cast else 0.0)
    found = list(subnetwork.compared(results[1], results[0], original, tolerance))
    if verdict.outcome == "exact" and any(one.error is not None for one in found):
        moved = rounding.moved(number, results[0], original, tolerance)
        explained = [one for one in found if moved.explains(one)]
        found = [one for one in found if one not in explained]
        verdict.notes += [f"{where}: {one}, by rounding" for one in explained]
        if not found and (overflow := next((one for one in explained if one.error == math.inf), None)):
            verdict.outcome, verdict.detail, verdict.step = "invalid", f"overflows: {overflow}", where
            return False
    verdict.differs(where, found)
    return True


def _refused(verdict: Verdict, error: SDPError, given: Instance, where: str) -> None:
    text = str(error)
    is_defect = isinstance(error, StructureError) or _DEFECT.search(text) is not None
    named = f"{given.file}:" in text or _NAMED.search(text) is not None
    verdict.outcome = "crash" if is_defect else "refused" if named else "vague"
    verdict.detail, verdict.step = f"{type(error).__name__}: {text}", where


def _constant(source: str, folder: Path, name: str) -> str:
    line = next((one for one in source.splitlines() if one.startswith(f"{name} = ")), f"{name} = 'float64'")
    return line.partition("'")[2].partition("'")[0]


def _text(error: BaseException) -> str:
    """The type and first line of an error, and the innermost line of the package or module that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/sdp_compile/" in frame.filename or "module_" in frame.filename]
    place = f" (at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {ours[-1].line})" if ours else ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}{place}"


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise TimeIsUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
