"""Says which optimizers can step slices of parameters: those whose update of an element depends on no other element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, optim
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.runtime.probing.probe import depends_on_position, problem_of
from sdp_compile.runtime.probing.replica import NOT_OPTIONS, plain_attributes
from sdp_compile.runtime.probing.trial import Setting

_ROWS_AND_COLUMNS = "factors its state over whole rows and columns"
_MATRICES = "orthogonalises whole matrices"
_PRECONDITIONS = "preconditions whole matrices"
_NORMS = "scales by the norm of whole parameters"
_STEP_SIZE = "estimates its step size from all elements of all parameters"
_PROJECTS = "projects updates by scalar products of whole parameters"
_BLOCKS = "quantises its state in blocks of neighbouring elements"
_SHARPNESS = "perturbs weights by the norm of all gradients"
_CURVATURE = "estimates second derivatives, which are not averaged over the workers"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(["Adafactor", "AdaFactor", "AdafactorBigVision", "CAME", "Adalite"], _ROWS_AND_COLUMNS),
    **dict.fromkeys(["Muon", "AdaMuon", "DistributedMuon", "MuonClip", "NorMuon", "MuonWithAuxAdam"], _MATRICES),
    **dict.fromkeys(["SingleDeviceMuon", "SingleDeviceMuonWithAuxAdam", "SCION"], _MATRICES),
    **dict.fromkeys(["Shampoo", "ScalableShampoo", "DistributedShampoo", "SOAP", "Kron"], _PRECONDITIONS),
    **dict.fromkeys(["Lamb", "LAMB", "NovoGrad", "NvNovoGrad", "StableAdamW"], _NORMS),
    **dict.fromkeys(["Prodigy", "DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD"], _STEP_SIZE),
    **dict.fromkeys(["AdamP", "SGDP"], _PROJECTS),
    **dict.fromkeys(["Adam8bit", "AdamW8bit", "Lion8bit", "SGD8bit", "Adagrad8bit", "RMSprop8bit"], _BLOCKS),
    **dict.fromkeys(["PagedAdam8bit", "PagedAdamW8bit", "PagedLion8bit", "AdEMAMix8bit"], _BLOCKS),
    **dict.fromkeys(["Adam4bit", "AdamW4bit", "AdamFp8", "AdamWFp8"], _BLOCKS),
    **dict.fromkeys(["SAM", "ASAM", "GSAM", "WSAM", "LookSAM", "FriendlySAM", "BSAM"], _SHARPNESS),
    **dict.fromkeys(["Adahessian", "AdaHessian", "SophiaH"], _CURVATURE),
    "SWATS": "switches to SGD by scalar products of whole parameters",
    "LBFGS": "uses scalar products over all parameters",
    "ZeroRedundancyOptimizer": "sends whole parameters from one rank to all others (use sdp.ShardedOptimizer)",
}
"""Why optimizers are refused, by class name: their update of an element depends on others that a worker may not own."""

ELEMENTWISE = {
    optim.Adadelta,
    optim.Adagrad,
    optim.Adam,
    optim.Adamax,
    optim.AdamW,
    optim.ASGD,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.SGD,
}
"""Optimizers that need not be tried: whatever their options, their update of an element depends on no other element."""

_INSTEAD = "Use an element-wise optimizer: AdamW, Adam, SGD, RMSprop, ..."

_problems: dict[Any, str | None] = {}
"""What was seen of each class with its options."""

_positions: dict[Any, bool] = {}
"""Whether the bits depend on the position, of each class with its options, by dtype and device."""

_dependent: WeakKeyDictionary[Optimizer, tuple[Any, bool]] = WeakKeyDictionary()
"""The same of optimizers, with what it was asked for."""

_accepted: WeakKeyDictionary[Optimizer, Any] = WeakKeyDictionary()
"""Optimizers that passed, with those of their options that schedules do not change."""


def check_name(kind: type[Optimizer]) -> None:
    """Raises `SDPError` if optimizers of this class are known not to be element-wise."""
    for base in kind.__mro__:
        if base.__name__ in REFUSED:
            reason = REFUSED[base.__name__]
            raise SDPError(f"{kind.__name__} {reason}, but a worker holds only slices of the parameters. {_INSTEAD}")


def check_elementwise(
    optimizer: Optimizer, device: torch.device | None = None, flat: bool = False, closure: bool = False
) -> None:
    """Raises `SDPError` unless the optimizer steps slices of parameters as it steps whole parameters.

    Classes that are not known are tried, once with the same options. What is found is the same on all ranks.

    Args:
        optimizer: The optimizer; it is not changed.
        device: Where its parameters are; by default on the CPU.
        flat: Whether it gets slices as flat runs of elements.
        closure: Whether its step is called with a closure.
    """
    kind = type(optimizer)
    check_name(kind)
    if kind in ELEMENTWISE or _accepted.get(optimizer) == (lasting := [flat, closure, *_lasting(optimizer)]):
        return
    for group in optimizer.param_groups:
        setting = Setting(device or torch.device("cpu"), flat, closure)
        key = setting, _exact(group), _kinds(optimizer)
        if key not in _problems:
            try:
                _problems[key] = problem_of(optimizer, group, setting)
            except SDPError as error:
                raise SDPError(
                    f"{kind.__name__} may not be element-wise: trying it on other parameters failed ({error}). It must "
                    "step any dense gradients, and its constructor must take its options by name. " + _INSTEAD
                ) from error
        if (problem := _problems[key]) is not None:
            raise SDPError(
                f"{kind.__name__} is not element-wise: it {problem}, but a worker holds only slices. {_INSTEAD}"
            )
    _accepted[optimizer] = lasting


def needs_broadcast(optimizer: Optimizer, device: torch.device, unequal_devices: bool = False) -> bool:
    """Whether two owners could compute different bits from equal gradients.

    It is tried once for each class, options, dtype and device.

    Args:
        optimizer: The optimizer that all owners use.
        device: Where its parameters are.
        unequal_devices: Whether the workers compute on different kinds of devices.
    """
    if unequal_devices:
        return True
    dtypes = {parameter.dtype for group in optimizer.param_groups for parameter in group["params"]}
    lasting = [device, dtypes, *_lasting(optimizer)]
    if optimizer not in _dependent or _dependent[optimizer][0] != lasting:
        _dependent[optimizer] = lasting, any(_depends(optimizer, group, device) for group in optimizer.param_groups)
    return _dependent[optimizer][1]


def _depends(optimizer: Optimizer, group: Mapping[str, Any], device: torch.device) -> bool:
    """Whether what the optimizer does to an element of the group depends on where the element stands."""
    options = _coarse({key: value for key, value in group.items() if key not in NOT_OPTIONS})
    setting = Setting(device)
    for dtype in sorted({dtype for parameter in group["params"] for dtype in _tried(parameter.dtype)}, key=str):
        key = setting, options, _kinds(optimizer), dtype
        if key not in _positions:
            _positions[key] = depends_on_position(optimizer, group, dtype, setting)
        if _positions[key]:
            return True
    return False


def _tried(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Returns the dtypes to try for parameters of a dtype.

    Kernels compute in float32 for shorter types. Rounding hides most of what differs there, but not all.
    """
    return (dtype, torch.float32) if dtype in (torch.bfloat16, torch.float16) else (dtype,)


def _lasting(optimizer: Optimizer) -> list[Any]:
    """Returns what no schedule changes: flags, names, and which numbers are zero."""
    groups = {
        _coarse({key: value for key, value in group.items() if key not in NOT_OPTIONS})
        for group in optimizer.param_groups
    }
    return [groups, _coarse(plain_attributes(optimizer))]


def _coarse(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _coarse(entry)) for key, entry in value.items())
    if isinstance(value, tuple):
        return tuple(map(_coarse, value))
    if isinstance(value, (bool, str, type(None))):
        return value
    return value != 0 if isinstance(value, float) else type(value)


def _kinds(optimizer: Optimizer) -> tuple[Any, ...]:
    """Returns the classes and attributes of an optimizer and of those that it wraps."""
    wrapped = [_kinds(value) for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    return type(optimizer), _exact(plain_attributes(optimizer)), *wrapped


def _exact(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Returns all options but the learning rate, as text that differs where they differ."""
    return tuple((key, _text(value)) for key, value in options.items() if key not in NOT_OPTIONS)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist()) if value.numel() <= 16 else f"{value.dtype}{tuple(value.shape)}"
    return repr(value)
