"""Makes numbers that forward reads inputs of its graph, so that a change of theirs needs no other graph.

The model is captured once more with `Traced` floats, whose marks show where they go. The graph that was captured with
plain numbers then gets an input at these places. Where the two graphs differ in anything else, where a number escapes
from what can be followed, or where a shape may depend on it, the numbers stay in the graph.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sdp_compile.capture.escapes import escapes, following_math
from sdp_compile.capture.export import Exported
from sdp_compile.capture.traced import BecomingTensors, Tape, Traced
from sdp_compile.capture.twins import Replacement
from sdp_compile.ir.numbers import Numbers, Place
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import with_free
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.reads import Read, scope_of

Captured = tuple[Program, Exported]
"""A program, and what it was made of."""

_MOST = 4  # numbers that are tried one by one


def with_free_numbers(
    captured: Captured,
    model: Callable[[], nn.Module],
    places: Sequence[Place],
    again: Callable[[nn.Module], Captured],
) -> Program:
    """Returns the program with as many of the numbers as possible as inputs, or as it is.

    Args:
        captured: The program as captured with plain numbers.
        model: Returns a copy of the model that was captured.
        places: Where the numbers are.
        again: Captures such a copy as the program was captured.
    """
    program, exported = captured
    if not places or escapes(exported.functions):
        return program
    subject, slots = model(), dict[tuple[int, Any], list[Place]]()
    for place in filter(lambda place: not _is_property(subject, place), places):
        slots.setdefault(_slot(subject, place), []).append(place)
    groups = list(map(tuple, slots.values()))
    found = _freed(captured, model(), groups, again) if groups else None
    if found is None and 1 < len(groups) <= _MOST:
        alone = [group for group in groups if _freed(captured, model(), [group], again) is not None]
        found = _freed(captured, model(), alone, again) if alone else None
    return program if found is None else found


def _freed(
    captured: Captured,
    model: nn.Module,
    groups: Sequence[tuple[Place, ...]],
    again: Callable[[nn.Module], Captured],
) -> Program | None:
    """Returns the program with the numbers as inputs, each given with all its places; None if one of them cannot be."""
    program, exported = captured
    draw = random.Random(0)
    true = [group[0].now(model) for group in groups]
    tape = Tape([_mark(value, draw) for value in true], true)
    with contextlib.ExitStack() as stack:
        stack.enter_context(following_math(exported.functions or {}))
        stack.enter_context(BecomingTensors(tape))
        for index, group in enumerate(groups):
            if not _put(model, group[0], Traced(tape, index), stack):
                return None
        derived = [read for read in program.reads if _is_derived(model, read)]
        try:
            traced, twin = again(model)
        except Exception:  # the model has been captured without this
            return None
    if tape.lost or twin.calls_math or escapes(twin.functions) or not tape.is_clear():
        return None
    paths: dict[tuple[str, str, str], tuple[tuple[str | int, ...], ...]] = {}
    for place in (place for group in groups for place in group):
        key = (place.kind, place.owner, place.name)
        paths[key] = (*paths.get(key, ()), place.path)
    paths.update({(read.kind, read.owner, read.name): ((),) for read in derived})
    reads = _same_reads(program.reads, traced.reads, paths)
    if reads is None or any(getattr(program, name) != getattr(traced, name) for name in _EQUAL):
        return None
    result = copy_program(program)
    inputs = Replacement(result.graph, traced.graph, tape).run()
    if inputs is None:
        return None
    numbers = Numbers(tuple(groups), tuple(tape.steps), tuple(tape.conditions.values()), tuple(inputs))
    return replace(result, reads=reads, numbers=numbers)


_EQUAL = ("inputs", "guards", "out_spec", "asks_grad", "assigned", "assigned_spec", "grad", "precision", "kept")


def _mark(value: float, draw: random.Random) -> float:
    """Returns a number near another one, which is not 0, in the same range of 0 to 1; bfloat16 tells them apart."""
    return value * draw.uniform(0.96, 0.98)


# -- putting traced numbers into a model -----------------------------------------------------------------------------


def _holder(model: nn.Module, place: Place) -> tuple[Any, str | int]:
    """Returns the dictionary or list that holds a number, and its key there."""
    if not place.path:
        if place.kind == "global":
            return scope_of(place.owner), place.name
        return vars(submodule(model, place.owner)), place.name
    parent = replace(place, path=place.path[:-1]).now(model)
    return parent if isinstance(parent, (Mapping, list)) else vars(parent), place.path[-1]


def _slot(model: nn.Module, place: Place) -> tuple[int, Any]:
    holder, key = _holder(model, place)
    return id(holder), key


def _put(model: nn.Module, place: Place, value: Traced, stack: contextlib.ExitStack) -> bool:
    """Puts a number in its place; outside of the model only for as long as ``stack`` is open."""
    holder, key = _holder(model, place)
    if isinstance(holder, dict) and key not in holder:  # a __getattr__ finds it
        return False
    before = holder[key]
    try:
        holder[key] = value
    except Exception:  # a configuration may check what it is given
        return False
    if place.kind == "global":
        stack.callback(holder.__setitem__, key, before)
    return place.now(model) is value


def _is_property(model: nn.Module, place: Place | Read) -> bool:
    """Whether an attribute is a property, or a number of the class, which is another place of its own."""
    if place.kind != "attribute":
        return False
    owner = submodule(model, place.owner)
    held = getattr(type(owner), place.name, None)
    return isinstance(held, property) or (place.name not in vars(owner) and held is not None)


def _is_derived(model: nn.Module, read: Read) -> bool:
    """Whether an attribute is a property that computes its value from the numbers."""
    return _is_property(model, read) and isinstance(read.now(model), Traced)


# -- comparing the two captures --------------------------------------------------------------------------------------


def _same_reads(
    plain: Sequence[Read], traced: Sequence[Read], paths: Mapping[tuple[str, str, str], Any]
) -> tuple[Read, ...] | None:
    """Returns the reads with free numbers in them; None if the two runs read different things."""

    def freed(read: Read) -> Read:
        free = paths.get((read.kind, read.owner, read.name), ())
        value = read.value
        for path in free:
            value = with_free(value, path)
        return replace(read, value=value, free=free)

    result = tuple(map(freed, plain))
    known = {(read.kind, read.owner, read.name): read for read in result}
    others = {(read.kind, read.owner, read.name): freed(read) for read in traced}
    if any(known.get(key) != read for key, read in others.items()):
        return None
    return result if all(key in others or key in paths for key in known) else None
