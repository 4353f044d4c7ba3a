"""Instances of a written module, each from a namespace of its own, and the state that a user sees of one."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import random
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdp_compile.checking.oracle import randomise

_DEFAULTS: dict[str, Any] = {
    "POLICY": {"policy": "auto"},
    "WORKERS": 4,
    "RANK": 1,
    "LOWERING": "sliced",
    "READ": (),
    "UNREGISTERED": (),
    "IS_RANDOM": False,
    "STEPS": (("train",), ("call", "example"), ("sgd",), ("call", "example"), ("eval",), ("call", "example")),
    "variants": dict,
}
"""The constants of a source that does not have them."""

_FRAMEWORK = frozenset(vars(nn.Module()))
"""Attributes that belong to every module."""


class Instance:
    """A model of a written source, with random weights, in a namespace that no other instance shares.

    Attributes:
        namespace: The names of the source, with the constants that say what is done with the model.
        model: The model.
        inputs: The example inputs.
    """

    _count = 0

    def __init__(self, source: str, folder: Path) -> None:
        Instance._count += 1
        self._module = types.ModuleType(f"fuzz_module_{Instance._count}")
        self.namespace: dict[str, Any] = vars(self._module)
        self.namespace.update(copy.deepcopy(_DEFAULTS))
        self.file = folder / f"module_{hashlib.sha256(source.encode()).hexdigest()[:10]}.py"
        self.file.write_text(source)
        sys.modules[self._module.__name__] = self._module  # strict export looks globals up there
        exec(compile(source, str(self.file), "exec"), self.namespace)
        reseed(0)
        self.model, self.inputs = self.namespace["build"]()
        randomise(self.model, 0)
        reseed(0)
        self.variants = {"example": self.inputs, **self.namespace["variants"]()}

    def close(self) -> None:
        """Forgets the namespace."""
        sys.modules.pop(self._module.__name__, None)


def reseed(number: int) -> None:
    """Seeds every generator of random numbers."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@contextlib.contextmanager
def world(dtype: str) -> Iterator[None]:
    """Sets the default dtype, and restores it, the generators and the environment afterwards."""
    before, environment = torch.get_default_dtype(), dict(os.environ)
    states = random.getstate(), np.random.get_state()
    torch.set_default_dtype(torch.float64 if dtype == "float64" else torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def moment(number: int | None, dtype: str) -> Iterator[None]:
    """Makes ``time.time`` return one moment, the same for both models, and turns autocast on if ``dtype`` says so.

    The compiler runs with the real clock (None), which it may know by its identity. A region of autocast keeps the
    weights that it has cast, so each call has its own.
    """
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast")
    clock = contextlib.nullcontext() if number is None else patch.object(time, "time", lambda: 1000.0 + 7 * number)
    with clock, autocast:
        yield


def find(root: Any, path: str) -> Any:
    """Returns the attribute or item at a path. Raises `AttributeError` where there is none."""
    for name in path.split("."):
        root = root[int(name)] if name.isdigit() and isinstance(root, (list, tuple)) else getattr(root, name)
    return root


def assign(root: Any, path: str, value: Any) -> None:
    """Sets the attribute at a path."""
    parent, _, name = path.rpartition(".")
    setattr(find(root, parent) if parent else root, name, value)


def copied(value: Any) -> Any:
    """Returns a value with detached copies of its tensors."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)


def fingerprint(instance: Instance) -> dict[str, Any]:
    """Returns all state of a model by path, for a comparison of before and after."""
    state: dict[str, Any] = {}
    for path, module in instance.model.named_modules(remove_duplicate=False):
        own = {key: value for key, value in vars(module).items() if key not in _FRAMEWORK}
        tensors = {**module._parameters, **module._buffers}
        plain = {key: value for key, value in {**own, **tensors}.items() if is_plain(value)}
        state[f"{path}.training"] = module.training
        state |= {f"{path}.{key}".lstrip("."): copied(value) for key, value in plain.items()}
    return state


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts and tensors, and can be compared."""
    leaves = pytree.tree_leaves(value)
    return all(leaf is None or isinstance(leaf, (bool, int, float, str, Tensor)) for leaf in leaves)
