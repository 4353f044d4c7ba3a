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
from functools import partial
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

BITS = Extent(((161,), (7,), (5121,), (40, 1024), (33, 37), (15, 16, 3, 3)), steps=10, drift=1.0, size=0.01)
"""Kernels treat the last elements of a tensor, of a vector register or of a thread's part in a way of their own. The
squares of these gradients are finite in float16."""

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


def depends_on_position(optimizer: Optimizer, group: Mapping[str, Any], dtype: torch.dtype, setting: Setting) -> bool:
    """Whether an element-wise optimizer may step an element to other bits if it stands elsewhere in a tensor.

    Then two owners, which hold the same elements in different places, would drift apart. The optimizer and all random
    number generators stay as they are.

    Args:
        optimizer: The optimizer; others like it are tried.
        group: One of its parameter groups.
        dtype: The dtype of the parameters.
        setting: Under what circumstances.
    """
    with _undisturbed(setting.device):
        try:
            replicate, dtype, dimensions = _workable(optimizer, group, setting, [dtype])
            return not steps_slices_to_the_bit(Trial(replicate, BITS.only(dimensions), dtype, setting))
        except Exception:  # whatever the code of others raises: nothing is known then
            return True


def steps_slices_to_the_bit(trial: Trial) -> bool:
    """Whether slices of any length, from any place, are stepped to the bits of the whole."""
    generator = torch.Generator().manual_seed(2)
    whole = trial.everything(_everything)
    for cut in SLICES:
        for portion in (0.3, 0.8):
            kept = [_some_of(value, cut, generator, portion) for value in trial.values]
            part = partial(_slice, kept, trial.setting.flat)
            for (number, key), after in trial.everything(part).items():
                expected = part(number, whole[number, key])
                if not bool(((after == expected) | (after.isnan() & expected.isnan())).all()):
                    return False
    return bool(torch.cat([value.isfinite().flatten() for value in whole.values()]).double().mean() > 0.5)


def _workable(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    setting: Setting,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
) -> tuple[Replicate, torch.dtype, Sequence[int]]:
    """Returns the first way to try it that raises nothing: how to build it, a dtype and numbers of dimensions."""
    failure: Exception | None = None
    for dimensions in DIMENSIONS:
        for dtype in dtypes:
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
        part = partial(_slice, [_some_of(value, cut, generator) for value in trial.values], trial.setting.flat)
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


def _slice(kept: Sequence[Sequence[Tensor]], flat: bool, number: int, tensor: Tensor) -> Tensor:
    """Returns the kept indices of a tensor, given by its number, as a flat run of elements if wanted."""
    for dim, indices in enumerate(kept[number]):
        tensor = tensor.index_select(dim, indices)
    return tensor.reshape(-1)[1:] if flat else tensor


def _some_of(
    tensor: Tensor, cut: tuple[int, ...], generator: torch.Generator, portion: float | None = None
) -> list[Tensor]:
    """Returns which indices are kept in each dimension: half of them at random where it is cut, or about a portion."""
    result = []
    for dim, size in enumerate(tensor.shape):
        kept = torch.arange(size)
        if dim in cut:
            # An odd number of elements fills no vector register.
            count = size // 2 if portion is None else int(size * portion) | 1
            kept = torch.randperm(size, generator=generator)[:count].sort().values
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
