"""Finds out by trying what an optimizer does: whether it steps a slice of a parameter as it steps the whole.

A question takes a `Trial` and returns what it saw that speaks against the optimizer, or None. To ask another one, write
such a function and add it to `QUESTIONS`.
"""

from __future__ import annotations

import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.runtime.probing.replica import Replicate, replicas
from sdp_compile.runtime.probing.trial import Extent, Setting, Trial

SMALL = Extent(
    ((9,), (7,), (12, 10), (8, 6), (6, 5, 4), (5, 4, 6), (8, 4, 3, 3), (4, 6, 3, 2)), steps=40, drift=2.0
)  # two of each, as every other one is disturbed
LARGE = Extent(((160,), (5120,), (144, 160), (32, 16, 3, 3)), steps=20, drift=0.0)
"""Some optimizers do something else after 25 steps, with gradients that keep a direction or do not, or to parameters of
at least 4096 elements or 128 rows. What fails on small parameters can take minutes on large ones."""

DIMENSIONS = ((1, 2, 3, 4), (2,), (1, 2))
"""Numbers of dimensions of the parameters that an optimizer is tried on: some optimizers refuse others."""

SLICES = (0,), (1,), (0, 1)
"""The dimensions in which a worker's slices of parameters lack elements, at random."""


def problem_of(optimizer: Optimizer, group: Mapping[str, Any], setting: Setting) -> str | None:
    """Returns what an optimizer with the options of a group does that no element-wise optimizer does; None if nothing.

    The optimizer and all random number generators stay as they are.

    Args:
        optimizer: The optimizer; others like it are tried.
        group: One of its parameter groups.
        setting: Under what circumstances.

    Raises:
        SDPError: If it cannot be tried.
    """
    with _undisturbed(setting.device):
        replicate, dtype, dimensions = _workable(optimizer, group, setting)
        for extent in (SMALL, LARGE):
            trial = Trial(replicate, extent.only(dimensions), dtype, setting)
            _check_that_it_moves(trial)
            try:
                for question in QUESTIONS:
                    if seen := question(trial):
                        return seen
            except Exception as error:  # whatever the code of others raises
                return f"fails on slices or subsets of parameters that it can step ({type(error).__name__}: {error})"
    return None


def _workable(
    optimizer: Optimizer, group: Mapping[str, Any], setting: Setting
) -> tuple[Replicate, torch.dtype, Sequence[int]]:
    """Returns the first way to try it that raises nothing: how to build it, a dtype and numbers of dimensions."""
    failure: Exception | None = None
    for dimensions in DIMENSIONS:
        for dtype in (torch.float64, torch.float32):
            for replicate in replicas(optimizer, group):
                try:
                    Trial(replicate, SMALL.only(dimensions), dtype, setting).stepped(_everything)
                except Exception as error:  # whatever the code of others raises
                    failure = failure or error
                else:
                    return replicate, dtype, dimensions
    raise SDPError(f"{type(failure).__name__}: {failure}") from failure


def draws_no_random_numbers(trial: Trial) -> str | None:
    """Whether it does the same whatever the random number generators return."""
    return _compared(
        trial,
        trial.stepped(_everything, seed=1),
        _everything,
        "depends on random numbers, which workers draw differently",
    )


def parameters_do_not_interact(trial: Trial) -> str | None:
    """Whether a parameter is stepped the same whatever the others are, and whether they are there."""
    odd = [number for number in trial.whole if number % 2]

    def even(number: int, tensor: Tensor) -> Tensor | None:
        return None if number in odd else tensor

    what = "steps {} differently if other parameters have other gradients"
    if seen := _compared(trial, trial.stepped(_everything, disturbed=odd), even, what):
        return seen
    what = "steps {} differently if other parameters are absent"
    if seen := _compared(trial, trial.stepped(even), even, what):
        return seen
    what = "steps {} differently if other parameters have no gradient"
    return _compared(trial, trial.stepped(_everything, without_gradient=odd), even, what)


def steps_slices_as_the_whole(trial: Trial) -> str | None:
    """Whether a slice of a parameter is stepped as that slice of the whole parameter."""
    generator = torch.Generator().manual_seed(1)
    for cut in SLICES:
        kept = [_some_of(value, cut, generator) for value in trial.values]

        def part(number: int, tensor: Tensor, kept: list[list[Tensor]] = kept) -> Tensor:
            for dim, indices in enumerate(kept[number]):
                tensor = tensor.index_select(dim, indices)
            return tensor.reshape(-1)[1:] if trial.setting.flat else tensor

        shape = "a flat run of elements" if trial.setting.flat else "a slice"
        if seen := _compared(trial, trial.stepped(part), part, f"steps {shape} of {{}} differently from the whole"):
            return seen
    return None


QUESTIONS: tuple[Callable[[Trial], str | None], ...] = (
    draws_no_random_numbers,
    parameters_do_not_interact,
    steps_slices_as_the_whole,
)
"""All questions, in order. A question can rely on the answers to those before it."""


def _check_that_it_moves(trial: Trial) -> None:
    """Raises `SDPError` unless every parameter changes, to finite values: else the questions find nothing."""
    try:
        stepped = trial.whole
    except Exception as error:  # whatever the code of others raises
        raise SDPError(f"{type(error).__name__}: {error}") from error
    for number, after in stepped.items():
        what = f"{_parameter(after)} in {trial.extent.steps} steps on random gradients"
        if not bool(after.isfinite().all()):
            raise SDPError(f"it made infinite values of {what}")
        if torch.equal(after, trial.values[number]):
            raise SDPError(f"it did not change {what}")


def _everything(number: int, tensor: Tensor) -> Tensor | None:
    return tensor


def _some_of(tensor: Tensor, cut: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
    """Returns which indices are kept in each dimension: half of them where it is cut."""
    result = []
    for dim, size in enumerate(tensor.shape):
        kept = torch.arange(size)
        if dim in cut:
            kept = torch.randperm(size, generator=generator)[: size // 2].sort().values
        result.append(kept.to(tensor.device))
    return result


def _compared(
    trial: Trial, found: dict[int, Tensor], part: Callable[[int, Tensor], Tensor | None], what: str
) -> str | None:
    """Returns where values differ most from those parts of the whole, in words; None if they do not."""
    worst, where = 0.0, None
    for number, after in found.items():
        expected, start = part(number, trial.whole[number]), part(number, trial.values[number])
        if expected is not None and start is not None:
            apart = trial.difference(after, expected, start)
            if apart > worst:
                worst, where = apart, trial.values[number]
    if where is None:
        return None
    return f"{what.format(_parameter(where))}, by {worst:.1g} after {trial.extent.steps} steps"


def _parameter(tensor: Tensor) -> str:
    return f"a {tensor.dim()}-dimensional parameter"


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Restores the random number generators; calls no global hooks, compiles nothing and warns of nothing within."""
    python, numpy = random.getstate(), np.random.get_state()
    hooks = "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"
    before = {name: getattr(torch_optimizer, name) for name in hooks}
    kind = device.type if device.type in ("cuda", "xpu") else "cuda"  # others keep no state by device
    accelerators = [device] if device.type == kind else []
    try:
        for name in hooks:
            setattr(torch_optimizer, name, OrderedDict())
        with (
            torch.random.fork_rng(accelerators, device_type=kind),
            torch.compiler.set_stance("force_eager"),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            setattr(torch_optimizer, name, value)
        random.setstate(python)
        np.random.set_state(numpy)
