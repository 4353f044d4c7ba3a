"""Whether gradients that a compiled backward hands over before autograd has accumulated them are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef


class Arrivals:
    """Compares launched gradients with those that arrive at the parameters in the same backward.

    A parameter with other uses, in a penalty on the weights or a second forward call, gets the sum of several
    gradients. Autograd makes that sum in another storage, or in the same one with another version. So a gradient with
    the same storage and version is the same gradient. Only weak references are kept: autograd copies a gradient that
    others hold.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._expected: dict[int, tuple[StorageWeakRef, int]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._differs = False

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Finds the nodes in which autograd accumulates these parameters' gradients; they change with the dtype.

        It cannot be called where a graph launches, inside an operator.
        """
        self._nodes = {id(p): get_gradient_edge(p).node for p in parameters if p.requires_grad}

    def are_certain(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether the current backward will accumulate gradients in all of these; False if they are not followed."""
        nodes = [self._nodes.get(id(parameter)) for parameter in parameters]
        return all(node is not None and _is_accumulating(node) for node in nodes)

    def expect(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Watches for these gradients, of parameters for which `are_certain` holds."""
        for parameter, gradient in gradients.items():
            if id(parameter) not in self._expected:
                self._expected[id(parameter)] = StorageWeakRef(gradient.untyped_storage()), gradient._version
                # A hook of the node and not of the tensor: it sees what all hooks of the tensor have made of it.
                noticed = partial(self._arrived, id(parameter))
                self._handles.append(self._nodes[id(parameter)].register_prehook(noticed))

    def reject(self) -> None:
        """Makes `differ` true for this backward."""
        self._differs = True

    def differ(self) -> bool:
        """Whether any launched gradient of this backward was incomplete. Call it at the end; it forgets everything."""
        result = self._differs or bool(self._expected)
        self.forget()
        return result

    def forget(self) -> None:
        """Prepares for the next backward."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._expected.clear()
        self._differs = False

    def _arrived(self, key: int, gradients: tuple[Tensor | None, ...]) -> None:
        expected = self._expected.pop(key, None)
        (gradient,) = gradients
        found = None if gradient is None else (StorageWeakRef(gradient.untyped_storage()), gradient._version)
        if found is None or found != expected:
            self._differs = True


def is_accumulated(parameter: Tensor) -> bool:
    """Whether the current backward accumulates this parameter's gradient: not in ``torch.autograd.grad()``."""
    return _is_accumulating(get_gradient_edge(parameter).node)


def _is_accumulating(node: Node) -> bool:
    """Whether this backward will run the node that accumulates a parameter's gradient."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch.autograd.grad() gives no answer for parameters whose gradients it returns
        return False
