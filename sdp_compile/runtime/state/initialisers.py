"""Runs a model's own initialisation for one tensor at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.errors import SDPError
from sdp_compile.ir.schema import given
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.containers import tensor_places
from sdp_compile.runtime.tensors import local_tensors

_METHODS = ("reset_parameters", "_reset_parameters")


class Initialisers:
    """Initial values from the initialisers of a model's modules.

    A rehearsal on the meta device records which initialiser writes which tensor. To read a tensor, it alone is made
    real while all others stay on the meta device, and its writers run again in the same order. So a parent may
    overwrite what its child drew (GPT-2's residual projections), and only one full tensor exists at a time.

    Args:
        skeleton: The original model; it is copied to the meta device.
        seed: Random seed; random numbers depend only on it and on the tensor's name.
    """

    def __init__(self, skeleton: nn.Module, seed: int = 0) -> None:
        self._seed = seed
        self._model = copy.deepcopy(skeleton).to("meta")
        for tensor in local_tensors(self._model).values():
            if hasattr(tensor, "_is_hf_initialized"):
                del tensor._is_hf_initialized
        self._failed: dict[str, str] = {}
        self._writers: dict[str, list[Callable[[], Any]]] = {}
        names = _names_by_storage(self._model)
        for path, initialise in _initialisers(self._model):
            written, spared = _Written(), _Spared()
            try:
                with torch.no_grad(), spared, written:
                    initialise()
            except Exception as error:
                self._failed[path] = f"{type(error).__name__}: {error}"
            for storage in written.storages | spared.storages:
                for name in names.get(storage, ()):
                    self._writers.setdefault(name, []).append(initialise)
        self._tensors = local_tensors(self._model)
        self._places = tensor_places(self._model)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __contains__(self, name: object) -> bool:
        return name in self._writers

    def read(self, name: str, shape: tuple[int, ...], region: Region) -> Tensor:
        """Returns a region of a tensor's initial value. The global random state stays as it is.

        Args:
            name: Any name of the tensor.
            shape: Its full shape.
            region: The region to return.

        Raises:
            SDPError: If the initialiser fails for this tensor alone, or does not write it.
        """
        meta = self._tensors[name]
        value = self._zeros(shape, meta.dtype)
        real = nn.Parameter(value, meta.requires_grad) if isinstance(meta, nn.Parameter) else value
        digest, written = hashlib.sha256(f"{self._seed}:{name}".encode()).digest(), _Written()
        self._put(meta, real)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), written:
                torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                for initialise in self._writers[name]:
                    initialise()
        except Exception as error:
            raise SDPError(
                f"The initialiser of {name!r} failed when it ran for this tensor alone ({type(error).__name__}: "
                f"{error}). Pass weights= to materialize()."
            ) from error
        finally:
            self._put(meta, meta)
        if _storage(real) not in written.storages:
            raise SDPError(self.explain([name]))
        return region.copy(real.detach())

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a full tensor of zeros, always on the CPU: random generators differ between devices.

        All of them use the same memory, one after the other. Freed one by one, each would leave a hole in the heap.
        """
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if len(self._memory) < nbytes:
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(dtype).view(shape).zero_()

    def _put(self, meta: Tensor, value: Tensor) -> None:
        """Puts ``value`` in all places in which the model holds ``meta`` between two readings."""
        for module, key in self._places[id(meta)]:
            registry: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
            registry[key] = value

    def explain(self, absent: list[str]) -> str:
        """Returns the error text for tensors that no initialiser writes."""
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        failed = "".join(f" The initialiser of {path!r} failed: {text}." for path, text in self._failed.items())
        return (
            f"No module initialises {', '.join(absent[:10])}{more}.{failed} Give the module that holds the tensor a "
            "reset_parameters() method, or pass weights= to materialize()."
        )


def _initialisers(model: nn.Module) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yields (module path, initialiser) in the order of ``nn.Module.apply``, children first.

    A transformers model initialises its modules with ``_init_weights``; all other modules initialise themselves.
    """
    pretrained: dict[str, Any] = {
        path: module for path, module in model.named_modules() if callable(getattr(module, "_init_weights", None))
    }
    for path, module in _children_first(model, ""):
        outer = [owner for owner in pretrained if owner == "" or path == owner or path.startswith(owner + ".")]
        if outer:
            owner = pretrained[max(outer, key=len)]
            yield path, lambda owner=owner, module=module: owner._init_weights(module)  # type: ignore[misc]
        else:
            method = next((getattr(module, name) for name in _METHODS if callable(getattr(module, name, None))), None)
            if method is not None:
                yield path, method


def _children_first(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield from _children_first(child, f"{path}.{name}" if path else name)
    yield path, module


def _names_by_storage(model: nn.Module) -> dict[int, list[str]]:
    result: dict[int, list[str]] = {}
    for name, tensor in local_tensors(model).items():
        result.setdefault(_storage(tensor), []).append(name)
    return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Written(TorchDispatchMode):
    """Records the storages that operators write to, also through ``.data`` and views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for parameter, value in given(func, args, kwargs or {}):
            if parameter.is_written and isinstance(value, Tensor):
                self.storages[_storage(value)] = None
        return func(*args, **(kwargs or {}))


class _Spared(TorchFunctionMode):
    """Records the storages of tensors whose ``is_meta`` is read.

    Some functions of torch.nn.init (``trunc_normal_``, ``orthogonal_``) do nothing for meta tensors, so this is the
    only trace of such a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META:
            self.storages[_storage(args[0])] = None
        return func(*args, **(kwargs or {}))


_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
