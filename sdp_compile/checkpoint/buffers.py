"""Buffers that differ between workers while they train: what the full model has of them, and what each worker has."""

from __future__ import annotations

from torch import Tensor

from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.runtime.comm.transfer import Request, assemble
from sdp_compile.runtime.state.full_state import device_of
from sdp_compile.runtime.state.spectral import spectral_names, with_spectral_norms
from sdp_compile.runtime.state.statistics import merge_running_statistics, running_statistics, written_state
from sdp_compile.runtime.subnetwork import Subnetwork


def saved_tensors(model: Model, every_owner: bool = False) -> dict[str, Tensor]:
    """Returns what this worker holds of the full model, by name: its own tensors, with merged statistics. Collective.

    Running statistics are merged over their owners, and spectral norms are those of the whole weights.

    Args:
        model: The model.
        every_owner: Whether all owners write what they have, and so have to have the same of everything.
    """
    tensors = model.tensors()
    if not isinstance(model, CompiledModel):
        return tensors
    module, plan, peers = model.module, model.module.plan, model.peers
    tensors.update(merge_running_statistics(module))
    names = spectral_names(module.capture.skeleton, plan)
    chosen = sorted(unmerged(model) & model.shapes.keys()) if every_owner else []
    if (names or chosen) and peers is not None:
        requests = [
            Request(name, name, tensors[name].dtype if name in tensors else plan.state[name].dtype)
            for name in dict.fromkeys([*names, *chosen])
        ]
        full = assemble(requests, tensors, module.holdings, peers.groups, wanted=None, device=device_of(module))
        for name, value in with_spectral_norms(module.capture.skeleton, plan, full).items():
            region = model.region_of(name)
            if value is not full[name] and region is not None:
                tensors[name] = region.read(value)
        for name in chosen:
            region = model.region_of(name)
            if region is not None:
                tensors[name] = region.read(full[name])
    return tensors


def own_tensors(model: Model) -> dict[str, Tensor]:
    """Returns the buffers of this worker that may differ from what is saved, which the same worker needs to go on."""
    if not isinstance(model, CompiledModel) or model.workers == 1:
        return {}
    module, tensors = model.module, model.tensors()
    names = dict.fromkeys([*_merged(module), *sorted(written_state(module.capture))])
    return {name: tensors[name] for name in names if name in tensors and module.plan.state[name].kind == "buffer"}


def unmerged(model: Model) -> frozenset[str]:
    """Returns the buffers to which forward writes and that are not merged: those of one worker count."""
    if not isinstance(model, CompiledModel):
        return frozenset()
    return written_state(model.module.capture).difference(_merged(model.module))


def _merged(module: Subnetwork) -> list[str]:
    """Returns the names of running statistics and spectral norms."""
    found = running_statistics(module.capture)
    names = [*found.means, *(name for name, _ in found.variances), *found.counters]
    return names + list(spectral_names(module.capture.skeleton, module.plan))
