"""Verifies a plan: compares each rank's subnetwork with the original model run with ``mask * theta``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.capture.clone import clone
from sdp_compile.capture.diagnosis import first_line, user_line
from sdp_compile.capture.inputs import Call, with_batch
from sdp_compile.capture.memos import Memos
from sdp_compile.checking.compare import Deviation, deviations, gradient_floor, relative_error
from sdp_compile.checking.oracle import Run, randomise, run_compiled, run_original
from sdp_compile.checking.precision import CastsOfFloat32, InFloat64, widened
from sdp_compile.checking.trials import Trial, trials
from sdp_compile.checking.verdict import Comparison
from sdp_compile.ir.program import InputSpec
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.module.sdp_module import SDPModule

_ROUNDING = 2.0**-52
_MOST_ROUNDING = 1e-4
"""Largest rounding error to accept; a more sensitive model cannot be compared."""


def reference(model: nn.Module, seed: int) -> nn.Module:
    """Returns a copy of the model on the CPU in float64 with random weights, also for parameters on the meta device."""

    def copied(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            value: Tensor = torch.zeros(tensor.shape, dtype=widened(torch.empty(0, dtype=tensor.dtype)).dtype)
        else:
            value = widened(tensor).clone()
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value

    return randomise(clone(model, copied), seed)


def comparable_call(call: Call) -> Call:
    """Returns the call in float64; a batch of 1 is repeated to 2 different samples, as capture repeats it."""
    generator = torch.Generator().manual_seed(0)

    def real(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return _draw(tensor.shape, generator) if tensor.is_floating_point() else torch.zeros_like(tensor, device="cpu")

    call = call.map_tensors(real)
    batched = with_batch(call)
    if batched is None:
        return Call(*widened((call.args, call.kwargs)))

    def perturbed(tensor: Tensor) -> Tensor:
        tensor = widened(tensor)
        if not tensor.is_floating_point():
            return tensor
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return Call(*widened((batched.args, batched.kwargs))).map_tensors(perturbed)


class NotComparable(Exception):
    """The original model does not run in float64 on the CPU."""


@dataclass
class Verification:
    """Compares the workers of a plan with the original model.

    Args:
        model: The `reference` model, which the oracle runs and the workers' weights come from.
        call: The `comparable_call`.
        inputs: The captured tensor inputs.
        plan: The plan to verify.
        seed: Random seed for each run.
    """

    model: nn.Module
    call: Call
    plan: Plan
    inputs: Sequence[InputSpec]
    seed: int = 0

    @cached_property
    def persistent(self) -> frozenset[str]:
        """The names in the original's ``state_dict()``."""
        return frozenset(self.model.state_dict())

    @cached_property
    def _memos(self) -> Memos:
        """Leaves out what functions with a cache keep: it may have been computed in lower precision before."""
        return Memos(self.model)

    @property
    def _casts(self) -> AbstractContextManager[Any]:
        dtypes = {tensor.dtype for tensor in self.plan.state.values() if tensor.dtype.is_floating_point}
        return CastsOfFloat32() if dtypes == {torch.float32} else nullcontext()

    def compare(self, module: SDPModule, rank: int, only_example: bool = False) -> Iterator[Comparison]:
        """Yields the comparisons of one rank's subnetwork in each mode.

        Args:
            module: The subnetwork.
            rank: The rank.
            only_example: Whether to leave out second calls and other sizes.
        """
        held = {name for name, _ in module.named_parameters()}
        for mode in ("train", "eval"):
            self.model.train(mode == "train")
            module.train(mode == "train")
            for trial in trials(self.call, self.inputs)[: 1 if only_example else None]:
                try:
                    expected = self._original(rank, trial)
                except NotComparable:
                    if trial.is_optional:
                        continue
                    raise
                actual = self._run(module, trial)
                compared = list(deviations(actual, expected, self.plan, rank, held, self.persistent))
                yield self._comparison(compared, expected, rank, mode, trial)

    def _run(self, module: nn.Module, trial: Trial) -> Run:
        torch.manual_seed(self.seed)
        with InFloat64():
            return run_compiled(module, trial.call.args, trial.call.kwargs, trial.calls)

    def _original(self, rank: int | None, trial: Trial, noise: float = 0.0, seed: int | None = None) -> Run:
        """Runs the oracle (the full model for None), its weights and inputs changed by the relative ``noise``."""
        generator = torch.Generator().manual_seed(0)

        def mask(name: str) -> Tensor:
            whole = self.plan.state[self.plan.canonical(name)].shape
            if rank is None or self.plan.masking == "backward":
                kept = torch.ones(whole, dtype=torch.bool)
            else:
                kept = self.plan.mask(name, rank)
            return kept if not noise else kept * (1 + noise * _draw(torch.Size(whole), generator))

        call = trial.call
        if noise:
            call = call.map_tensors(
                lambda t: t * (1 + noise * _draw(t.shape, generator)) if t.is_floating_point() else t
            )
        is_training = self.model.training
        self.model.train(not is_training)
        self.model.train(is_training)  # drops what the model keeps between two calls until its mode changes
        torch.manual_seed(self.seed if seed is None else seed)
        try:
            self._memos.begin(self.model)
            with self._memos, self._casts, InFloat64():
                return run_original(self.model, call.args, call.kwargs, mask, trial.calls)
        except Exception as error:
            raise NotComparable(
                f"the original model does not run in float64 on the CPU: {first_line(error)} (at "
                f"{user_line(error.__traceback__)}). It was only captured and partitioned."
            ) from error

    def _comparison(self, compared: list[Deviation], expected: Run, rank: int, mode: str, trial: Trial) -> Comparison:
        inexact = [one for one in compared if not one.is_exact]
        status = self._status(inexact, expected, rank, trial) if inexact else "exact"
        worst = max(compared, key=lambda one: math.inf if math.isnan(one.error) else one.error, default="")
        outputs, gradients, statistics = (_largest(compared, kind) for kind in ("output", "gradient", "statistic"))
        return Comparison(rank, mode, status, outputs, gradients, statistics, str(worst), trial.name)

    def _status(self, inexact: list[Deviation], expected: Run, rank: int, trial: Trial) -> str:
        """Returns why a correct subnetwork may deviate; "not exact" if nothing explains it."""
        whole = self._original(None, trial)
        if any(torch.isnan(tensor).any() for tensor in (*whole.outputs, *whole.gradients.values())):
            return "not finite"
        if any(
            error > 1e-9 for error in _distances(self._original(rank, trial, seed=self.seed + 1), expected).values()
        ):
            return "random"
        sensitivity = _distances(self._original(rank, trial, noise=_ROUNDING), expected)
        for one in inexact:
            allowed = 30 * sensitivity.get((one.kind, one.name), 0.0)
            if not one.error <= min(allowed, _MOST_ROUNDING):
                return "not exact"
        return "rounding"


def _draw(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _distances(actual: Run, expected: Run) -> dict[tuple[str, str], float]:
    """Relative deviations of outputs, gradients and statistics between two runs of the original model."""
    floor = gradient_floor(expected)
    result = {
        ("output", str(number)): relative_error(a, b)
        for number, (a, b) in enumerate(zip(actual.outputs, expected.outputs, strict=False))
    }
    for name, gradient in expected.gradients.items():
        result["gradient", name] = relative_error(actual.gradients.get(name, gradient), gradient, floor)
    for name, buffer in expected.buffers.items():
        if buffer.is_floating_point():
            result["statistic", name] = relative_error(actual.buffers[name], buffer)
    return result


def _largest(compared: list[Deviation], kind: str) -> float:
    """The largest error of a kind, or NaN if there is one."""
    errors = [one.error for one in compared if one.kind == kind]
    return next(filter(math.isnan, errors), max(errors, default=0.0))
