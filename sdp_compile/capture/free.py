"""Makes numbers that forward reads inputs of its graph, so that a change of theirs needs no other graph.

The model is captured once more with `Traced` floats, whose marks show where they go. The graph that was captured with
plain numbers then gets an input at these places. Where the two graphs differ in anything else, where a number escapes
from what can be followed, or where a shape may depend on it, the numbers stay in the graph.
"""

from __future__ import annotations

import contextlib
import dis
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import fx, nn

from sdp_compile.capture.export import Exported
from sdp_compile.capture.traced import MATH, Tape, Traced, traced_math
from sdp_compile.ir.numbers import Numbers, Place, replay
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import with_free
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.reads import Read, scope_of
from sdp_compile.ir.schema import functional_name, functional_variant, operator_name

Captured = tuple[Program, Exported]
"""A program, and what it was made of."""

_OPAQUE = ("numpy", "cmath", "decimal", "fractions", "struct")
_MOST = 4  # numbers that are tried one by one
_KEEP_SHAPE = frozenset(
    "add addbmm addmm addmv addr alpha_dropout baddbmm batch_norm bernoulli binary_cross_entropy cdist "
    "constant_pad_nd cosine_embedding_loss cosine_similarity cross_entropy_loss div dropout embedding_renorm "
    "exponential feature_alpha_dropout feature_dropout fill full full_like group_norm gru hinge_embedding_loss "
    "huber_loss index_add index_fill instance_norm kl_div layer_norm linalg_vector_norm log_normal lstm "
    "margin_ranking_loss masked_fill mul multi_margin_loss multilabel_soft_margin_loss native_batch_norm "
    "native_dropout native_group_norm native_layer_norm new_full norm normal pad pairwise_distance pdist "
    "poisson_nll_loss renorm rms_norm rnn_relu rnn_tanh rrelu rsub scalar_tensor scaled_dot_product_attention "
    "scatter smooth_l1_loss soft_margin_loss sub threshold triplet_margin_loss uniform where".split()
)
"""Operators other than elementwise ones in which a number does not change the shape of the result."""


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
    if not places or _escapes(exported.functions):
        return program
    subject, slots = model(), dict[tuple[int, Any], list[Place]]()
    for place in filter(lambda place: not _is_property(subject, place), places):
        slots.setdefault(_slot(subject, place), []).append(place)
    groups = list(map(tuple, slots.values()))
    found = _freed(captured, model(), groups, again)
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
    tape = Tape(_marks(true, draw), true)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_following_math(exported.functions or {}))
        for index, group in enumerate(groups):
            if not _put(model, group[0], Traced(tape, index), stack):
                return None
        derived = [read for read in program.reads if _is_derived(model, read)]
        try:
            traced, twin = again(model)
        except Exception:  # the model has been captured without this
            return None
    if tape.lost or twin.calls_math or _escapes(twin.functions) or not _is_generic(tape, len(true), draw):
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
    inputs = _Replacement(result.graph, traced.graph, tape).run()
    if inputs is None:
        return None
    numbers = Numbers(tuple(groups), tuple(tape.steps), tuple(tape.conditions.values()), tuple(inputs))
    return replace(result, reads=reads, numbers=numbers)


_EQUAL = ("inputs", "guards", "out_spec", "asks_grad", "assigned", "assigned_spec", "grad", "precision")


def _marks(true: Sequence[float], draw: random.Random) -> list[float]:
    """Returns numbers next to the true ones, in the same range of 0 to 1, that occur nowhere else."""
    return [value * (1 - draw.uniform(0.5, 1) * 1e-6) if value else draw.uniform(0.5, 1) * 1e-9 for value in true]


def _is_generic(tape: Tape, count: int, draw: random.Random) -> bool:
    """Whether marks tell the results of all steps apart: a product with 0 is the same for all numbers."""
    others = replay(_marks(tape.true[:count], draw), tape.steps)
    return len({*map(_bits, tape.marks)}) == len(tape.marks) and not any(
        _bits(one) == _bits(other) for one, other in zip(tape.marks, others, strict=True)
    )


def _bits(value: float) -> bytes:
    return struct.pack("d", value)


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
    if place.kind == "global":
        if not isinstance(holder, MutableMapping):
            return False
        stack.callback(holder.__setitem__, key, holder[key])
    holder[key] = value
    return place.now(model) is value


def _is_property(model: nn.Module, place: Place | Read) -> bool:
    owner = submodule(model, place.owner) if place.kind == "attribute" else None
    return isinstance(getattr(type(owner), place.name, None), property)


def _is_derived(model: nn.Module, read: Read) -> bool:
    """Whether an attribute is a property that computes its value from the numbers."""
    return _is_property(model, read) and isinstance(read.now(model), Traced)


# -- what user code can do with a number without a trace -------------------------------------------------------------


def _escapes(functions: Mapping[CodeType, Mapping[str, Any]] | None) -> bool:
    """Whether one of the functions that forward runs could read the value of a number, or ask for its type."""
    if functions is None:
        return True
    for _scope, name, value in _loaded(functions):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        home = type(value).__module__ if home is None else home  # such as a ufunc of numpy
        if str(home).partition(".")[0] in _OPAQUE or (name == "type" and value is None):
            return True
    return False


def _loaded(functions: Mapping[CodeType, Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Yields the scope, the name and the value of each global variable that functions load."""
    for code, scope in functions.items():
        for name in {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}:
            yield scope, name, scope.get(name)


@contextlib.contextmanager
def _following_math(functions: Mapping[CodeType, Mapping[str, Any]]) -> Iterator[None]:
    """Lets the functions call those of `math` with traced numbers."""
    module = ModuleType("math")
    vars(module).update(vars(math))
    vars(module).update({name: traced_math(value) for name, value in vars(math).items() if id(value) in MATH})
    undo: list[tuple[Any, str, Any]] = []
    for scope, name, value in list(_loaded(functions)):
        if value is math or id(value) in MATH:
            undo.append((scope, name, value))
    try:
        for scope, name, value in undo:
            scope[name] = module if value is math else getattr(module, value.__name__)
        yield
    finally:
        for scope, name, value in undo:
            scope[name] = value


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


class _Different(Exception):
    """The two graphs differ."""


class _Replacement:
    """Replaces the numbers of one graph by inputs where its twin has their marks."""

    def __init__(self, graph: fx.Graph, twin: fx.Graph, tape: Tape) -> None:
        self._graph, self._twin, self._tape = graph, twin, tape
        self._found = {_bits(mark): index for index, mark in enumerate(tape.marks)}
        self._twins: dict[fx.Node, fx.Node] = {}
        self._inputs: dict[int, fx.Node] = {}

    def run(self) -> list[int] | None:
        """Returns the numbers that became inputs; None if the graphs differ."""
        nodes, twins = list(self._graph.nodes), list(self._twin.nodes)
        try:
            if len(nodes) != len(twins):
                raise _Different
            for node, twin in zip(nodes, twins, strict=True):
                if (node.op, node.target, node.name) != (twin.op, twin.target, twin.name):
                    raise _Different
                args, kwargs = self._pair(node, node.args, twin.args), self._pair(node, node.kwargs, twin.kwargs)
                if args is not None:
                    node.args = args
                if kwargs is not None:
                    node.kwargs = kwargs
                self._twins[twin] = node
        except _Different:
            return None
        return list(self._inputs)

    def _pair(self, node: fx.Node, one: Any, other: Any) -> Any:
        """Returns an argument with inputs in place of numbers, None if it has no numbers."""
        if isinstance(one, fx.Node):
            if not isinstance(other, fx.Node) or self._twins.get(other) is not one:
                raise _Different
            return None
        if isinstance(one, (tuple, list, dict)):
            if len(one) != len(other) or (isinstance(one, dict) and list(one) != list(other)):
                raise _Different
            keys = list(one) if isinstance(one, dict) else range(len(one))
            items = [self._pair(node, one[key], other[key]) for key in keys]
            if all(item is None for item in items):
                return None
            filled = [one[key] if item is None else item for key, item in zip(keys, items, strict=True)]
            return dict(zip(keys, filled, strict=True)) if isinstance(one, dict) else type(one)(filled)
        if type(one) is not type(other):
            raise _Different
        if type(one) is float:
            index = self._found.get(_bits(other))
            if index is None and _bits(one) != _bits(other):
                raise _Different
            if index is None:
                return None
            if _bits(one) != _bits(self._tape.true[index]) or not _keeps_shape(node):
                raise _Different
            return self._input(index)
        if isinstance(one, slice):
            self._pair(node, (one.start, one.stop, one.step), (other.start, other.stop, other.step))
        elif one != other:
            raise _Different
        return None

    def _input(self, index: int) -> fx.Node:
        if index not in self._inputs:
            places = [node for node in self._graph.nodes if node.op == "placeholder"]
            with self._graph.inserting_after(places[-1]) if places else self._graph.inserting_before():
                made = self._graph.placeholder(f"number_{index}")
            made.meta = {"val": self._tape.true[index]}
            self._inputs[index] = made
        return self._inputs[index]


def _keeps_shape(node: fx.Node) -> bool:
    """Whether the shapes of what a node computes do not depend on the numbers among its arguments."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "output"
    if target.namespace != "aten":
        return False
    variants = (target, functional_variant(target))
    pointwise = any(torch.Tag.pointwise in one.tags for one in variants if one is not None)
    return pointwise or functional_name(operator_name(node)) in _KEEP_SHAPE
