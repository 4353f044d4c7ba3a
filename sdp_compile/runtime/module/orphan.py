"""A module that was connected to other workers, and was loaded from a pickle without them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import unserializable_hook

from sdp_compile.errors import DistributedError


def refuse_backward(module: nn.Module) -> None:
    """Makes every backward through a module an error, because nobody would average its gradients.

    Args:
        module: A compiled module that has lost its peers. It can still be called.
    """

    def hook_parameters(*_: Any) -> None:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(_refuse)

    hook_parameters()
    # load_state_dict(assign=True) replaces parameters.
    module.register_load_state_dict_post_hook(hook_parameters)


@unserializable_hook  # type: ignore[untyped-decorator]
def _refuse(gradient: Any) -> None:
    raise DistributedError(
        "This module was unpickled, so it has no connection to the other workers and its gradients would not be "
        "averaged. To train, call sdp.compile() on the original model and load the saved module's state_dict(). "
        "Calling the unpickled module without backward is fine."
    )
