"""Floats that note what forward computes from them and asks of them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sdp_compile.ir.numbers import FUNCTIONS, Ref, Step

_PLAIN = (bool, int, float)


def bits(value: float) -> bytes:
    """Returns what tells any two floats apart."""
    return struct.pack("d", value)


class Tape:
    """What forward does with numbers.

    Each number has two values. It takes its place among the arguments of operators with a *mark*, by which it is found
    in the graph. Questions are answered with its true value.

    Attributes:
        marks: The mark of each number, then of each result of a step.
        true: Their true values.
        steps: What was computed.
        conditions: What was asked, with the answers.
        lost: How a number escaped into what cannot be followed, or ``""``.
    """

    def __init__(self, marks: Sequence[float], true: Sequence[float]) -> None:
        self.marks, self.true = list(marks), list(true)
        self.steps: list[Step] = []
        self.conditions: dict[str, tuple[Step, Any]] = {}
        self.lost = ""
        self._known: dict[str, Traced] = {}

    def apply(self, function: str, *arguments: Any) -> Any:
        """Returns what a function of `FUNCTIONS` gives for arguments of which some are traced."""
        if not all(type(item) in (Traced, *_PLAIN) for item in arguments):
            if not all(isinstance(item, _FOLLOWED) or type(item) in _PLAIN for item in arguments):
                self.lose(function)  # such as numbers of numpy and sizes
            return NotImplemented
        if function in ("add", "mul"):  # in one order, so that no two steps have the same results
            arguments = tuple(sorted(arguments, key=lambda item: item.index if type(item) is Traced else -1))
            if type(arguments[0]) is int and arguments[0] == (function == "mul"):
                return arguments[1]  # such as the 0 that sum() begins with
        step = Step(function, tuple(Ref(item.index) if type(item) is Traced else item for item in arguments))
        true, mark = step.value(self.true), step.value(self.marks)
        key = repr(step)
        if type(true) is float and type(mark) is float:
            if key not in self._known:
                self.steps.append(step)
                self.true.append(true)
                self.marks.append(mark)
                self._known[key] = Traced(self, len(self.marks) - 1)
            return self._known[key]
        if type(true) not in _PLAIN:
            self.lose(function)
            return true
        self.conditions[key] = step, true
        return true

    def lose(self, what: str) -> None:
        """Notes that a number escaped."""
        self.lost = self.lost or what

    def is_clear(self) -> bool:
        """Whether each mark stands for one number only: that of ``0 * number`` could be any 0 of the graph."""
        different = all(bits(mark) != bits(true) for mark, true in zip(self.marks, self.true, strict=True))
        return different and len(set(map(bits, self.marks))) == len(self.marks)


class Traced(float):
    """A float that stands for number ``index`` of a tape, or for a result of a step."""

    __slots__ = ("index", "tape")
    index: int
    tape: Tape

    def __new__(cls, tape: Tape, index: int) -> Traced:
        """Makes the float, whose value as such is its mark."""
        made = super().__new__(cls, tape.marks[index])
        made.tape, made.index = tape, index
        return made

    def __copy__(self) -> Traced:
        return self

    def __deepcopy__(self, memo: Any) -> Traced:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float, (self.tape.marks[self.index],)

    def __pos__(self) -> Traced:
        return self

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    @property
    def real(self) -> Traced:
        """The float itself."""
        return self

    def conjugate(self) -> Traced:
        """Returns the float itself."""
        return self


_FOLLOWED = (Traced, torch.Tensor, str, type(None))  # operators of tensors are in the graph; the others compute nothing


def _left(function: str) -> Callable[..., Any]:
    return lambda self, *others: self.tape.apply(function, self, *others)


def _right(function: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: self.tape.apply(function, other, self)


def _losing(name: str) -> Callable[..., Any]:
    own = getattr(float, name)

    def method(self: Traced, *arguments: Any) -> Any:
        self.tape.lose(name)
        return own(self, *arguments)

    return method


for _name in "add sub mul truediv floordiv mod pow".split():
    setattr(Traced, f"__{_name}__", _left(_name))
    setattr(Traced, f"__r{_name}__", _right(_name))
for _name in "lt le gt ge eq ne".split():
    setattr(Traced, f"__{_name}__", _left(_name))
for _name in ("neg", "bool", "int", "round"):
    setattr(Traced, f"__{_name}__", _left(_name))
for _name, _function in (("trunc", "int"), ("floor", "math.floor"), ("ceil", "math.ceil")):
    setattr(Traced, f"__{_name}__", _left(_function))
for _name in "float divmod rdivmod hash str repr format".split():
    setattr(Traced, f"__{_name}__", _losing(f"__{_name}__"))
for _name in ("hex", "is_integer", "as_integer_ratio"):
    setattr(Traced, _name, _losing(_name))


def traced_math(function: Any) -> Callable[..., Any]:
    """Returns a function of `math` that follows traced numbers."""

    def followed(*arguments: Any, **options: Any) -> Any:
        arguments = tuple(list(item) if isinstance(item, Iterable) else item for item in arguments)
        inner = [part for item in arguments if isinstance(item, list) for part in item]
        tape = next((item.tape for item in (*arguments, *inner, *options.values()) if type(item) is Traced), None)
        if tape is None:
            return function(*arguments, **options)
        result = NotImplemented if inner or options else tape.apply(f"math.{function.__name__}", *arguments)
        if result is NotImplemented:
            tape.lose(f"math.{function.__name__}")
            return function(*arguments, **options)
        return result

    return followed


class BecomingTensors(TorchFunctionMode):
    """Notes numbers from which tensors are made: the graph would hold the tensors."""

    def __init__(self, tape: Tape) -> None:
        """Notes them on ``tape``."""
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MAKING and any(type(leaf) is Traced for leaf in pytree.tree_leaves((args, kwargs))):
            self._tape.lose(func.__name__)
        return func(*args, **(kwargs or {}))


_MAKING = {
    torch.tensor,
    torch.as_tensor,
    torch.asarray,
    torch.Tensor.new_tensor,
    torch.Tensor.new,
    torch.Tensor.__setitem__,
}

MATH = {id(function) for name, function in vars(math).items() if callable(function) and f"math.{name}" in FUNCTIONS}
"""The identities of the functions of `math`."""
