"""Models without weights: built on the meta device, where a tensor has a shape and no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.diagnosis import first_line


def build(make: Callable[[], nn.Module], weights: bool, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Calls ``make`` for a model with or without weights.

    Args:
        make: returns the model; it may be called a second time.
        weights: whether the model needs memory and values.
        name: the model's name, for the note.

    Returns:
        The model, and a note where a constructor reads values, so that the model has weights all the same.
    """
    if weights:
        return make(), ()
    try:
        with torch.device("meta"):
            model = make()
        return model.to("meta"), ()  # constructors also place a few buffers on the CPU by name
    except Exception as error:
        reason = first_line(error)
    note = f"{name} cannot be built on the meta device ({reason}), so it is built with real weights."
    return make(), (note,)


def inputs_for(model: nn.Module, example_inputs: Any) -> Any:
    """Returns the inputs on the meta device where the model is on it, else as they are."""
    if not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return example_inputs
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), example_inputs)
