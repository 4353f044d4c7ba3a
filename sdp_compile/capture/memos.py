"""Functions with `functools.lru_cache` that forward calls: what they keep is not that of the user while it is captured.

Their caches would keep tensors without values, and what they return may be older than the weights. So each is called
without its cache, and what it returns is noted, to be judged as what forward keeps in dictionaries.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType, TracebackType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from sdp_compile.capture.diagnosis import calling_line
from sdp_compile.capture.origins import tensors_in
from sdp_compile.capture.users import is_of_users, is_users
from sdp_compile.errors import CaptureError
from sdp_compile.ir.plain import frozen

_WRAPPER = functools._lru_cache_wrapper


@dataclass(frozen=True)
class MemoCall:
    """One call of a function with a cache.

    Attributes:
        name: The function's name.
        key: Its arguments, as text; None if no later call can have the same.
        result: What it returned.
        line: The line that called it.
        versions: How often each tensor of the result had been written to.
    """

    name: str
    key: str | None
    result: Any
    line: str
    versions: tuple[int, ...]

    def check_unchanged(self, kind: type[nn.Module]) -> None:
        """Raises `CaptureError` if forward has written to the result, which later calls get as it is then."""
        if self.versions != _versions(self.result):
            raise CaptureError(
                f"{kind.__name__} cannot be captured: its forward writes to what {self.name}() keeps, called at "
                f"{self.line}. Write to a copy of it, made with clone()."
            )


class Memos:
    """Context manager in which functions with a cache are called without it, and their calls are noted.

    Attributes:
        calls: The calls since forward began.
        plain: What the functions returned for plain arguments, apart from tensors.
    """

    def __init__(self, model: nn.Module, scopes: Iterable[Mapping[str, Any]] = ()) -> None:
        """Finds the functions.

        Args:
            model: The model, whose classes, attributes and their Python modules are searched.
            scopes: More global variables to search.
        """
        self.calls: list[MemoCall] = []
        self.plain: dict[Any, Any] = {}
        self._kind = type(model)
        self._names: dict[int, str] = {}
        self._places = list(_places(model, scopes))
        self._undo: list[Callable[[], object]] = []

    @property
    def is_used(self) -> bool:
        """Whether there are such functions."""
        return bool(self._places)

    def missed(self, scopes: Iterable[Mapping[str, Any]]) -> bool:
        """Whether forward reaches more functions with a cache, by the global variables of the functions that ran.

        What a run without values left in their caches is removed.
        """
        known = {id(_wrapper_in(value)) for _holder, _key, value, _wrap in self._places}
        wrappers = {id(found): found for scope in scopes for value in scope.values() if (found := _wrapper_in(value))}
        others = [one for key, one in wrappers.items() if key not in known and _may_hold_tensors(one)]
        for wrapper in others:
            if any(_is_empty(leaf) for leaf in pytree.tree_leaves(_held(wrapper))):
                wrapper.cache_clear()
        return bool(others)

    def begin(self, subject: nn.Module) -> None:
        """Notes that forward of a copy of the model begins."""
        self.calls.clear()
        self.plain.clear()
        self._names = {id(part): name for name, part in subject.named_modules()}
        named = (*subject.named_parameters(), *subject.named_buffers())
        self._names.update((id(tensor), f"tensor {name}") for name, tensor in named)

    def __enter__(self) -> Memos:
        known: dict[int, _Uncached] = {}
        for holder, key, value, wrap in self._places:
            wrapper = _wrapper_in(value)
            stand_in = known.setdefault(id(wrapper), _Uncached(wrapper, self))
            _set(holder, key, wrap(stand_in))
            self._undo.append(functools.partial(_set, holder, key, value))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()

    def note(self, name: str, args: Any, result: Any) -> None:
        """Notes a call of the function ``name``."""
        line = calling_line(self._kind)
        self.calls.append(MemoCall(name, self._key(args), result, line, _versions(result)))

    def _key(self, args: Any) -> str | None:
        parts = []
        for leaf in pytree.tree_leaves(args):
            if isinstance(leaf, (torch.Tensor, nn.Module)):
                if id(leaf) not in self._names:
                    return None  # a new tensor at each call
                parts.append(self._names[id(leaf)])
            else:
                parts.append(repr(frozen(leaf)))
        return ", ".join(parts)


class _Uncached:
    """Calls a function without its cache."""

    is_uncached = True

    def __init__(self, wrapper: Any, memos: Memos) -> None:
        self.__wrapped__, self._wrapper, self._memos = wrapper.__wrapped__, wrapper, memos

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = (id(self), args, tuple(kwargs.items()))
        plain = not _is_free((args, kwargs))
        if plain and key in self._memos.plain:
            return self._memos.plain[key]
        result = self.__wrapped__(*args, **kwargs)
        if plain and not _is_free(result):
            self._memos.plain[key] = result
        self._memos.note(self.__wrapped__.__qualname__, (args, kwargs), result)
        return result

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else MethodType(self, owner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_wrapper"], name)

    def __deepcopy__(self, _memo: Any) -> _Uncached:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("it is there during capture only")  # and so it has no state that could change


def _is_free(value: Any) -> bool:
    """Whether a value holds tensors, modules or sizes of the inputs."""
    return any(isinstance(leaf, _FREE) for leaf in pytree.tree_leaves(value)) or any(True for _ in tensors_in(value))


_FREE = (torch.SymInt, torch.SymFloat, torch.SymBool, torch.Tensor, nn.Module)
Found = tuple[Any, Any, Any, Callable[[Any], Any]]
"""What holds a function, under which key, the value there, and what makes such a value of another function."""


def _places(model: nn.Module, scopes: Iterable[Mapping[str, Any]]) -> Iterator[Found]:
    """Yields where functions with a cache are held that forward may reach."""
    kinds: dict[type, None] = {}
    holders: list[Any] = []
    for module in model.modules():
        kinds.update(dict.fromkeys(kind for kind in type(module).__mro__ if is_of_users(kind)))
        holders.append(vars(module))
        for value in vars(module).values():
            if is_of_users(type(value)) and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
                kinds.update(dict.fromkeys(kind for kind in type(value).__mro__ if is_of_users(kind)))
                holders.append(vars(value))
    named = [vars(sys.modules[kind.__module__]) for kind in kinds if kind.__module__ in sys.modules]
    searched = {id(scope): scope for scope in (*named, *scopes)}
    for scope in searched.values():
        kinds.update((value, None) for value in scope.values() if isinstance(value, type) and is_of_users(value))
    for holder in (*searched.values(), *holders, *kinds):
        yield from _within(holder, set(), _DEPTH)


def _within(holder: Any, seen: set[int], depth: int) -> Iterator[Found]:
    """Yields where a dictionary, list, class or variable of a function, and what is in it, holds such functions."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    for key, value in _items(holder):
        wrapper = _wrapper_in(value)
        if wrapper is not None and _may_hold_tensors(wrapper):
            yield holder, key, value, _wrapping(value)
        elif isinstance(value, (staticmethod, classmethod, MethodType)):
            value = value.__func__
        if not depth:
            continue
        if isinstance(value, FunctionType) and value.__closure__ and is_users(value.__code__.co_filename):
            for cell in value.__closure__:
                yield from _within(cell, seen, depth - 1)
        elif isinstance(value, (list, dict)) and len(value) <= _MOST:
            yield from _within(value, seen, depth - 1)


def _items(holder: Any) -> list[tuple[Any, Any]]:
    """Returns what a dictionary, list, class or variable holds by key."""
    if isinstance(holder, CellType):
        try:
            return [(None, holder.cell_contents)]
        except ValueError:  # a variable without a value
            return []
    if isinstance(holder, list):
        return list(enumerate(holder))
    return list(vars(holder).items() if isinstance(holder, type) else holder.items())


_DEPTH, _MOST = 3, 200


def _wrapper_in(value: Any) -> Any:
    """Returns the function with a cache that a value is, or is made of; None if it is no such thing."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    code = getattr(getattr(value, "__wrapped__", None), "__code__", None) if isinstance(value, _WRAPPER) else None
    return value if code is not None and is_users(code.co_filename) else None


def _wrapping(value: Any) -> Callable[[Any], Any]:
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)
    if isinstance(value, property):
        return lambda function: property(function, value.fset, value.fdel)
    return lambda function: function


def _may_hold_tensors(wrapper: Any) -> bool:
    """Whether a function with a cache may keep tensors or modules: it has none yet, or it has some."""
    return wrapper.cache_info().currsize == 0 or any(
        isinstance(leaf, (torch.Tensor, nn.Module)) for leaf in pytree.tree_leaves(_held(wrapper))
    )


def _held(wrapper: Any) -> list[Any]:
    """Returns the keys and results that a function keeps."""
    kept = []
    for value in gc.get_referents(wrapper):
        kept += list(value.values()) if isinstance(value, dict) else [value]
    return kept


def _is_empty(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.device.type == "meta" or isinstance(value, FakeTensor))


def _set(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, type):
        setattr(holder, key, value)
    elif isinstance(holder, CellType):
        holder.cell_contents = value
    else:
        holder[key] = value


def _versions(result: Any) -> tuple[int, ...]:
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors_in(result))
