"""Assertions on tensor values: a branch on a tensor, one way of which does nothing but raise an error."""

from __future__ import annotations

import dis
from types import FrameType

_SKIPPED = frozenset({"CACHE", "PRECALL", "TO_BOOL", "NOT_TAKEN", "NOP", "EXTENDED_ARG", "RESUME", "COPY_FREE_VARS"})
_LOADS = frozenset({"LOAD_CONST", "LOAD_SMALL_INT", "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_DEREF"})


def expected_truth(frame: FrameType) -> bool | None:
    """Returns the truth value that lets the code go on where the other one raises an error at once.

    That is what ``assert`` and ``if ...: raise`` do, also with ``and``, ``or`` and ``not``, where one value is enough.

    Args:
        frame: A Python function that is just asking a tensor for its truth value.

    Returns:
        The value, or None if neither or both ways raise at once, or if the function catches the error.
    """
    instructions = _instructions(frame)
    return _expected(frame, instructions, _position(instructions, frame.f_lasti))


def _expected(frame: FrameType, instructions: list[dis.Instruction], at: int) -> bool | None:
    """Returns the truth value that is expected of the value on top of the stack at an instruction."""
    negated = False
    while at < len(instructions) and instructions[at].opname == "UNARY_NOT":
        negated = not negated
        at += 1
    if at >= len(instructions):
        return None
    jump = instructions[at]
    if not jump.opname.startswith("POP_JUMP") or not jump.opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps_if = jump.opname.endswith("IF_TRUE")
    starts = {jumps_if: _position(instructions, jump.argval), not jumps_if: at + 1}
    raises = {value: _raised_at(instructions, start) for value, start in starts.items()}
    if (raises[True] is None) == (raises[False] is None):
        return None
    offset = raises[True] if raises[True] is not None else raises[False]
    assert offset is not None
    if _is_caught(frame, instructions, offset):
        return None
    return (raises[False] is not None) != negated


def is_number_of_assertion(frame: FrameType) -> bool:
    """Whether a number that a function gets from ``.item()`` is compared at once, and asserted, or asserted itself.

    A tensor in its place then asks for its truth value, see `expected_truth`.

    Args:
        frame: A Python function that is just calling ``.item()``.
    """
    instructions = _instructions(frame)
    at = _position(instructions, frame.f_lasti + 1) - 1
    if not 0 < at < len(instructions) or instructions[at - 1].argval != "item":
        return False
    depth = 1  # how many values there are on the stack from the number on
    for number, one in enumerate(instructions[at + 1 :], at + 1):
        if one.opname.startswith("POP_JUMP"):
            return depth == 1 and _expected(frame, instructions, number) is not None
        if one.opname == "COMPARE_OP":
            depth = max(depth - 1, 1)  # with one of them, the other side came before
        elif one.opname in _LOADS:
            depth += 1
        elif one.opname != "UNARY_NOT":
            return False
    return False


def _instructions(frame: FrameType) -> list[dis.Instruction]:
    return [one for one in dis.get_instructions(frame.f_code) if one.opname not in _SKIPPED]


def _position(instructions: list[dis.Instruction], offset: int) -> int:
    return next((number for number, one in enumerate(instructions) if one.offset >= offset), len(instructions))


def _raised_at(instructions: list[dis.Instruction], start: int) -> int | None:
    """Returns the offset where code raises an error without deciding anything before; None if it does not."""
    for one in instructions[start:]:
        if one.opname == "RAISE_VARARGS":
            return one.offset
        if "JUMP" in one.opname or one.opname.startswith(("RETURN", "YIELD", "FOR_", "RERAISE", "SEND")):
            return None
    return None


def _is_caught(frame: FrameType, instructions: list[dis.Instruction], offset: int) -> bool:
    """Whether an ``except`` or ``finally`` of the function sees the error; the end of a ``with`` may."""
    for entry in dis.Bytecode(frame.f_code).exception_entries:  # type: ignore[attr-defined]  # since Python 3.11
        if entry.start <= offset < entry.end:
            handler = instructions[_position(instructions, entry.target) :][:2]
            if not any(one.opname == "WITH_EXCEPT_START" for one in handler):
                return True
    return False
