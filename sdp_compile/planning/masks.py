"""The masks of the reference lowering, one bool vector for each cut dimension of a full-size parameter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sdp_compile.planning.plan import Plan


def mask_name(parameter: str, dim: int) -> str:
    """Returns the name of the buffer that holds the mask of one dimension: ``a.b`` and ``a_b`` have different ones."""
    return f"_sdp_mask_{parameter.replace('_', '__').replace('.', '_')}_{dim}"


def mask_tensors(plan: Plan, rank: int) -> dict[str, torch.Tensor]:
    """Returns the mask buffers that masked programs read, each shaped to broadcast over its parameter."""
    result: dict[str, torch.Tensor] = {}
    for parameter, tensor in plan.state.items():
        if tensor.kind == "parameter":
            for dim, mask in _masked_dims(plan, parameter, rank).items():
                shape = [1] * len(tensor.shape)
                shape[dim] = -1
                result[mask_name(parameter, dim)] = mask.view(shape)
    return result


@torch.no_grad()
def clear_unowned(tensors: Mapping[str, torch.Tensor], plan: Plan, rank: int) -> None:
    """Sets the elements of full-size parameters that ``rank`` does not own to 0, where weight decay leaves them."""
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter" and name in tensors and not tensors[name].is_meta:
            for dim, mask in _masked_dims(plan, name, rank).items():
                tensors[name].index_fill_(dim, (~mask).nonzero().view(-1).to(tensors[name].device), 0)


def _masked_dims(plan: Plan, parameter: str, rank: int) -> dict[int, torch.Tensor]:
    """Returns a 1-d bool mask for each dimension of a parameter that ``rank`` does not own completely."""
    kept = plan.kept(parameter, rank)
    masks: dict[int, torch.Tensor] = {}
    for dim, size in enumerate(plan.state[parameter].shape):
        index = np.empty(0, np.int64) if kept is None else kept[dim]
        if len(index) < size:
            masks[dim] = torch.zeros(size, dtype=torch.bool)
            masks[dim][torch.from_numpy(index)] = True
    return masks
