"""Gradients that a compiled backward hands over before autograd has accumulated them: are they complete?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef


class Early:
    """Compares what was launched early with what arrives at the parameters in the same backward.

    A parameter with other uses, in a penalty on the weights or a second forward call, gets the sum of several
    gradients. Autograd makes that sum in another storage, or in the same one with another version; what is the same
    in both is the same gradient. Nothing is kept alive, or autograd would have to copy.

    ``on``: whether graphs launch, which all workers do or none. ``asked``: whether a graph wanted to. ``stale``:
    whether a gradient that was launched has turned out to be incomplete; ``refused``: whether that ever happened.
    ``missed``: whether a graph could not launch, perhaps because the parameters must be followed.
    """

    def __init__(self) -> None:
        self.on = self.refused = self.asked = self.stale = self.missed = False
        self._nodes: dict[int, Node] = {}
        self._expected: dict[int, tuple[StorageWeakRef, int]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Finds where autograd accumulates these parameters' gradients: other places after they changed their dtype.

        Not possible where a graph launches, in an operator.
        """
        self._nodes = {id(p): get_gradient_edge(p).node for p in parameters if p.requires_grad}

    def accumulates(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether the current backward will accumulate gradients in all of these."""
        nodes = [self._nodes.get(id(parameter)) for parameter in parameters]
        result = all(node is not None and _is_accumulating(node) for node in nodes)
        self.missed |= not result
        return result

    def expect(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Watches for the arrival of these gradients, of parameters that the current backward accumulates."""
        for parameter, gradient in gradients.items():
            if id(parameter) not in self._expected:
                self._expected[id(parameter)] = StorageWeakRef(gradient.untyped_storage()), gradient._version
                # A hook of the node and not of the tensor: it sees what all hooks of the tensor have made of it.
                arrived = partial(self._arrived, id(parameter))
                self._handles.append(self._nodes[id(parameter)].register_prehook(arrived))

    def incomplete(self) -> bool:
        """At the end of backward: whether anything that was launched is not what arrived. Forgets everything."""
        result = self.stale or bool(self._expected)
        self.forget()
        return result

    def forget(self) -> None:
        """For the next backward."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._expected.clear()
        self.stale = False

    def _arrived(self, parameter: int, gradients: tuple[Tensor | None, ...]) -> None:
        expected = self._expected.pop(parameter, None)
        (gradient,) = gradients
        found = None if gradient is None else (StorageWeakRef(gradient.untyped_storage()), gradient._version)
        if found is None or found != expected:
            self.stale = True


def _is_accumulating(node: Node) -> bool:
    """Whether this backward will run the node that accumulates a parameter's gradient."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # under torch.autograd.grad() the engine does not answer for parameters that it was asked for
        return False
