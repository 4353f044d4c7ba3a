"""The user's own modules stand for those of the copy that is captured, wherever functions hold them.

Hooks and closures are shared with every copy of a model, and what they read of the model must be what the copy has: its
settings, modes and tensors. So while a copy runs to be captured, its attributes are read and written in place of those
of the original, and of the compiled module.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

ORIGINALS = "_sdp_originals"
"""The attribute of the root of each copy that holds its `Originals`."""


class Originals:
    """The modules and tensors of a model that copies were made of, by name, for as long as they exist.

    Args:
        model: The model; None for one that is gone.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._modules: list[tuple[str, weakref.ref[nn.Module]]] = []
        self._tensors: list[tuple[str, weakref.ref[torch.Tensor]]] = []
        self._compiled: list[weakref.ref[nn.Module]] = []
        if model is not None:
            self._modules = [(path, weakref.ref(module)) for path, module in model.named_modules()]
            named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
            self._tensors = [(name, weakref.ref(tensor)) for name, tensor in named]

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the modules by path."""
        for path, reference in self._modules:
            if (module := reference()) is not None:
                yield path, module

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the parameters and buffers by name."""
        for name, reference in self._tensors:
            if (tensor := reference()) is not None:
                yield name, tensor

    def note_compiled(self, module: nn.Module) -> None:
        """Notes a compiled module, to which functions of the model may refer too."""
        self._compiled = [one for one in self._compiled if one() is not None]
        self._compiled.append(weakref.ref(module))

    def compiled_parts(self) -> Iterator[nn.Module]:
        """Yields the parts of the compiled modules."""
        for reference in self._compiled:
            if (module := reference()) is not None:
                yield from module.modules()

    def __deepcopy__(self, _memo: Any) -> Originals:
        return self

    def __reduce__(self) -> Any:
        return Originals, ()


def originals_of(model: nn.Module) -> Originals:
    """Returns what a copy of a model was made of; for a model that is no copy, the model itself."""
    known: Originals | None = vars(model).get(ORIGINALS)
    return Originals(model) if known is None else known


def identities(subject: nn.Module) -> set[int]:
    """Returns the identities of the modules and tensors of a copy, and of all that stand for them."""
    originals = originals_of(subject)
    found = {id(one) for _name, one in (*originals.modules(), *originals.tensors())}
    return found.union(map(id, (*subject.modules(), *subject.parameters(), *originals.compiled_parts())))


class StandIns:
    """For each module that stands for one of a copy, the copy's.

    Args:
        subject: The copy.
    """

    def __init__(self, subject: nn.Module) -> None:
        found = dict(subject.named_modules(remove_duplicate=False))
        others = [*originals_of(subject).modules(), *_captured[-1].named_modules(remove_duplicate=False)]
        self._held = [module for _path, module in others]  # so that their identities stay theirs
        self._of: dict[int, nn.Module] = {id(module): found[path] for path, module in others if path in found}
        self._of = {key: module for key, module in self._of.items() if key != id(module)}
        self._thread = threading.get_ident()

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._of and threading.get_ident() == self._thread

    def __getitem__(self, module: nn.Module) -> nn.Module:
        return self._of[id(module)]


_captured: list[nn.Module] = [nn.Module()]


@contextmanager
def standing_for_copies(module: nn.Module) -> Iterator[None]:
    """Within this context, a compiled module and its parts stand for those of a copy that is captured."""
    _captured.append(module)
    try:
        yield
    finally:
        _captured.pop()
