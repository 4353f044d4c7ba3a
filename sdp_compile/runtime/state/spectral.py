"""Spectral norms of the full model: re-estimated, because each worker has estimated that of its own slices.

`spectral_norm` divides a weight by its largest singular value, which it follows in training with one power iteration
per call, on the weight that it sees. The vectors of these iterations lie in buffers. Those of the workers, put
together, are not singular vectors of the whole weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from sdp_compile.capture.clone import canonical_names
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.tensors import local_tensors, replace_tensors

_MOST = 1000
_PRECISION = 1e-12


@torch.no_grad()
def with_spectral_norms(model: nn.Module, plan: Plan, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a full state in which the vectors of each spectral norm of a cut weight belong to the whole weight.

    Args:
        model: The original model without weights.
        plan: Who owns what.
        full: The full tensors by canonical name.
    """
    result = dict(full)
    if plan.masking == "backward":  # each worker computes with whole weights
        return result
    canonical = canonical_names(model)
    names = {id(tensor): canonical[name] for name, tensor in local_tensors(model).items()}
    for part in model.modules():
        if isinstance(part, ParametrizationList) and any(isinstance(one, _SpectralNorm) for one in part):
            tensors = {name: names[id(tensor)] for name, tensor in local_tensors(part).items()}
            if any(plan.is_cut(name) for name in tensors.values()) and all(name in full for name in tensors.values()):
                found = _estimated(part, {key: full[name] for key, name in tensors.items()})
                result.update((tensors[key], value) for key, value in found)
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                weight, u, v = (names[id(getattr(part, f"{hook.name}_{key}"))] for key in ("orig", "u", "v"))
                if plan.is_cut(weight):
                    matrix = hook.reshape_weight_to_matrix(full[weight])
                    result[u], result[v] = _singular_vectors(matrix, full[v])
    return result


def spectral_names(model: nn.Module, plan: Plan) -> list[str]:
    """Returns the canonical names of all tensors of spectral norms, if those of the whole weights are estimated.

    Args:
        model: The original model without weights.
        plan: Who owns what.
    """
    if plan.masking == "backward":
        return []
    canonical = canonical_names(model)
    names = {id(tensor): canonical[name] for name, tensor in local_tensors(model).items()}
    found: dict[str, None] = {}
    for part in model.modules():
        tensors: list[Tensor] = []
        if isinstance(part, ParametrizationList) and any(isinstance(one, _SpectralNorm) for one in part):
            tensors += local_tensors(part).values()
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                tensors += (getattr(part, f"{hook.name}_{key}") for key in ("orig", "u", "v"))
        if any(plan.is_cut(names[id(tensor)]) for tensor in tensors):
            found.update((names[id(tensor)], None) for tensor in tensors)
    return list(found)


def _estimated(parametrizations: ParametrizationList, full: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the vectors of each spectral norm in a chain of parametrizations, by name within it."""
    chain: Any = copy.deepcopy(parametrizations).eval()
    held = local_tensors(chain)
    replace_tensors(
        chain, {key: nn.Parameter(full[key]) if isinstance(held[key], nn.Parameter) else full[key] for key in held}
    )
    value: Any = None
    for index, one in enumerate(chain):
        inputs = _originals(chain) if index == 0 else (value,)
        if isinstance(one, _SpectralNorm) and inputs[0].ndim > 1:
            one._u, one._v = _singular_vectors(one._reshape_weight_to_matrix(inputs[0]), one._v)
            yield f"{index}._u", one._u
            yield f"{index}._v", one._v
        value = one(*inputs)


def _originals(chain: ParametrizationList) -> tuple[Tensor, ...]:
    if chain.is_tensor:
        return (chain.original,)
    return tuple(getattr(chain, f"original{number}") for number in range(chain.ntensors))


def _singular_vectors(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the left and right singular vectors of the largest singular value, from an estimate of the right one."""
    wide = matrix.detach().to(torch.complex128 if matrix.is_complex() else torch.float64)
    draw = torch.randn(v.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # An estimate from slices may be orthogonal to the vector, which the iteration would then never find.
    right = _unit(_unit(v.to(wide.dtype)) + 0.1 * _unit(draw.to(wide.device, wide.dtype)))
    left, before = _unit(wide @ right), 0.0
    for _ in range(_MOST):
        right = _unit(wide.mH @ left)
        image = wide @ right
        left, sigma = _unit(image), float(image.norm())
        if abs(sigma - before) <= _PRECISION * sigma:
            break
        before = sigma
    return left.to(matrix.dtype), right.to(matrix.dtype)


def _unit(vector: Tensor) -> Tensor:
    result: Tensor = vector / vector.norm().clamp(min=1e-12)
    return result
