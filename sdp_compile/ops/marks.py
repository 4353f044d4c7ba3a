"""The marks that say where in backward gradients are complete."""

from __future__ import annotations

import torch


def all_reduce_mean(*parameters: torch.Tensor, bucket: int, owners: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """The identity; marks that these parameters' gradients are averaged over ``owners`` as bucket ``bucket``.

    It stands before the first use of any of them, so backward passes it when all of these gradients are complete. The
    module's gradient engine issues its buckets in ascending number, the same order on all workers, while backward runs:
    in eager mode when hooks of the parameters tell that their gradients are there, which costs this node nothing; in a
    compiled graph when backward passes this node (`sdp_compile.runtime.gradients.compiled`). What is averaged is
    ``.grad`` and not the gradient that flows through this node, because several backward passes may accumulate before
    one reduction.
    """
    return parameters
