"""Running statistics: merged over their owners, and re-estimated on the full model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sdp_compile.errors import SDPError
from sdp_compile.ir.effects import written_inputs
from sdp_compile.ir.program import Capture
from sdp_compile.ir.schema import bind
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.levels.arithmetic import Operation
from sdp_compile.runtime.levels.route import Errand, Route, padded
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.runtime.tensors import local_tensors


@dataclass(frozen=True)
class RunningStatistics:
    """The running statistics of a model, by canonical name.

    Attributes:
        means: Running means.
        variances: Running variances, each with the mean that it belongs to.
        counters: Integer counters.
    """

    means: tuple[str, ...]
    variances: tuple[tuple[str, str | None], ...]
    counters: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.means or self.variances)


def running_statistics(capture: Capture) -> RunningStatistics:
    """Finds the running statistics of a model in its graphs.

    An operator takes them as ``running_mean`` and ``running_var``. A counter is an integer buffer that an operator
    writes.
    """
    means: dict[str, None] = {}
    variances: dict[str, str | None] = {}
    counters: dict[str, None] = {}
    for program in capture.programs.values():
        for node in program.graph.nodes:
            arguments = bind(node)
            mean, variance = (_state_name(arguments.get(key)) for key in ("running_mean", "running_var"))
            if mean is not None:
                means[mean] = None
            if variance is not None:
                variances[variance] = mean
            for name in map(_state_name, written_inputs(node)):
                if name is not None and _is_integer(capture, name):
                    counters[name] = None
    return RunningStatistics(tuple(means), tuple(variances.items()), tuple(counters))


def written_state(capture: Capture) -> frozenset[str]:
    """Returns the tensors of a model to which its graphs write, by canonical name."""
    nodes = (node for program in capture.programs.values() for node in program.graph.nodes)
    names = (_state_name(argument) for node in nodes for argument in written_inputs(node))
    return frozenset(name for name in names if name is not None)


@torch.no_grad()
def merge_running_statistics(module: Subnetwork) -> dict[str, Tensor]:
    """Returns this worker's slices of the running statistics, merged over the owners of each channel. Collective.

    Means are averaged. A variance becomes the total variance: the mean of the variances plus the mean of the squared
    distances of the means. Counters become the maximum. The module's own buffers stay as they are.
    """
    statistics, tensors = running_statistics(module.capture), local_tensors(module)
    peers = module.peers
    names = [*statistics.means, *(name for name, _ in statistics.variances), *statistics.counters]
    if peers is None or not names:
        return {}
    holdings, route = module.holdings, peers.route
    merged = {name: tensors[name].detach().clone() for name in names if name in tensors}
    _reduce(statistics.means, {name: tensor.double() for name, tensor in merged.items()}, merged, holdings, route)
    spread = {
        name: tensors[name].double() + ((tensors[mean].double() - merged[mean].double()) ** 2 if mean in merged else 0)
        for name, mean in statistics.variances
        if name in merged
    }
    _reduce([name for name, _ in statistics.variances], spread, merged, holdings, route)
    _reduce(statistics.counters, dict(merged), merged, holdings, route, "max")
    return merged


def _reduce(
    names: Iterable[str],
    values: Mapping[str, Tensor],
    merged: dict[str, Tensor],
    holdings: Holdings,
    route: Route,
    operation: Operation = "sum",
) -> None:
    """Writes the mean ("sum") or maximum over the owners of each element of ``values`` into ``merged``."""
    by_owners: dict[tuple[int, ...], list[tuple[str, Region]]] = {}
    for name in names:
        for piece in holdings.plan.pieces(name):
            if len(piece.owners) > 1 and piece.numel and is_member(holdings.rank, piece.owners):
                by_owners.setdefault(piece.owners, []).append((name, holdings.region(piece)))
    owner_sets, flats = sorted(by_owners), list[Tensor]()
    for owners in owner_sets:
        flat = torch.cat([region.read(values[name]).reshape(-1) for name, region in by_owners[owners]])
        flats.append(padded(flat.to(route.groups.wire(flat.device)), owners))
    errand = Errand(owner_sets, "running statistics", "state")
    for owners, total in zip(owner_sets, route.run(route.round_trip(errand, operation), flats), strict=True):
        result, offset = total / len(owners) if operation == "sum" else total, 0
        for name, region in by_owners[owners]:
            region.write(merged[name], result[offset : offset + region.numel])
            offset += region.numel


@torch.no_grad()
def calibrate(full_model: nn.Module, batches: Iterable[Any], device: torch.device | str | None = None) -> nn.Module:
    """Re-estimates the running statistics of a full model by running batches through it.

    Statistics merged from subnetworks differ from those of the full model, which can be far off without this step. A
    few hundred training samples are enough. Every statistic becomes the plain average over the batches. All other
    layers run in evaluation mode and no gradient is computed. Modes and momenta are restored afterwards.

    Args:
        full_model: The model that ``SDPModule.full_model()`` returned. It is changed in place.
        batches: Inputs of the model: tensors, mappings of keyword arguments, or lists and tuples as a DataLoader yields
            them, (input, label, ...), of which the first entry is used.
        device: The device that inputs are moved to; by default the model's.

    Returns:
        ``full_model``.

    Raises:
        SDPError: If ``full_model`` is a worker's subnetwork, or ``batches`` is empty.
    """
    if isinstance(getattr(full_model, "_orig_mod", full_model), Subnetwork):
        raise SDPError("sdp.calibrate() takes the full model, got a worker's subnetwork. Pass model.full_model().")
    layers: list[Any] = [layer for layer in full_model.modules() if _has_statistics(layer)]
    if not layers:
        return full_model
    target = torch.device(device) if device is not None else next(full_model.parameters()).device
    seen = 0
    with _estimating(full_model, layers):
        for batch in batches:
            args, kwargs = _inputs(batch, target)
            for layer in layers:
                # None means the cumulative average, which instance normalisation does not have.
                layer.momentum = None if isinstance(layer, _BatchNorm) else 1 / (seen + 1)
            full_model(*args, **kwargs)
            seen += 1
        if not seen:
            raise SDPError("sdp.calibrate() got no batches. Pass an iterable of inputs, for example a DataLoader.")
    return full_model


@contextmanager
def _estimating(model: nn.Module, layers: list[Any]) -> Iterator[None]:
    """Within this context, layers with statistics average from zero, and all others are in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    before = [(layer, layer.momentum, _copies(layer)) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
        yield
    except BaseException:
        for layer, _, buffers in before:
            for name, value in buffers.items():
                layer._buffers[name].copy_(value)
        raise
    finally:
        for layer, momentum, _ in before:
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _copies(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer._buffers.items() if value is not None}


def _has_statistics(layer: nn.Module) -> bool:
    """Whether a layer is BatchNorm, InstanceNorm with statistics, or a class with their attributes and methods."""
    if isinstance(layer, _NormBase):
        return layer.running_mean is not None
    names = ("running_mean", "running_var", "num_batches_tracked")
    buffers = all(isinstance(getattr(layer, name, None), Tensor) for name in names)
    return buffers and hasattr(layer, "momentum") and callable(getattr(layer, "reset_running_stats", None))


def _inputs(batch: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise SDPError("sdp.calibrate() got an empty batch. Pass batches whose first entry is the input.")
        batch = batch[0]
    if isinstance(batch, Mapping):
        return (), {name: _moved(value, device) for name, value in batch.items()}
    return (_moved(batch, device),), {}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _is_integer(capture: Capture, name: str) -> bool:
    dtype = capture.state[name].dtype if name in capture.state else torch.bool
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _state_name(value: Any) -> str | None:
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None
