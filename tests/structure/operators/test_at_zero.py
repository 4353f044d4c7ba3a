"""What the table says about operators at 0, held against the operators themselves: values and gradients."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch

from sdp_compile.ir.schema import functional_name, parameters
from sdp_compile.structure.operators.at_zero import Call, Outcome
from sdp_compile.structure.operators.table import ALIASES, declared_names, lookup
from tests.structure.operators.samples import arguments_of, overloads

Tensor = torch.Tensor
DRAWS, OPTIONS = 4, 6
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

# Operators and overloads whose arguments are not dense tensors of floats, or which belong to a device or library that a
# test cannot assume.
NOT_CALLED = {"pin_memory", "_grouped_mm", "transformers::grouped_mm_fallback", "_sparse_mm", "_sparse_addmm"}
OVERLOADS_NOT_CALLED = {"addmm.dtype", "baddbmm.dtype", "bmm.dtype", "mm.dtype", "einsum.sublist"}


def leaves(arguments: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """The places of tensors of floats."""
    found: list[tuple[str, int | None]] = []
    for key, value in arguments.items():
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            found.append((key, None))
        elif isinstance(value, list):
            found += [(key, n) for n, item in enumerate(value) if item.is_floating_point() or item.is_complex()]
    return found


def at(arguments: Mapping[str, Any], place: tuple[str, int | None]) -> Tensor:
    value = arguments[place[0]]
    return value if place[1] is None else value[place[1]]


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of the signs that the elements have: those of a mask times a parameter."""
    return tensor.detach() * 0


def with_zeros(arguments: dict[str, Any], places: list[tuple[str, int | None]]) -> dict[str, Any]:
    result = {key: list(value) if isinstance(value, list) else value for key, value in arguments.items()}
    for key, index in places:
        if index is None:
            result[key] = zeros_like(result[key])
        else:
            result[key][index] = zeros_like(result[key][index])
    return result


def run(overload: Any, arguments: Mapping[str, Any]) -> tuple[bool, bool]:
    """Calls an operator: whether its result is 0, and whether result and gradients (where it has some) are finite."""
    inputs = [at(arguments, place).requires_grad_() for place in leaves(arguments)]
    results = _call(overload, arguments)
    finite = all(bool(torch.isfinite(r).all()) for r in results)
    differentiable = [r.sum() for r in results if r.requires_grad]
    if differentiable:
        try:
            gradients = torch.autograd.grad(sum(differentiable), inputs, allow_unused=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            gradients = ()
        finite = finite and all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    return all(not r.any() for r in results), finite


def run_or_fail(overload: Any, arguments: Mapping[str, Any]) -> tuple[bool, bool]:
    """As `run`; a call that fails, as the inverse of 0 does, is not finite."""
    try:
        return run(overload, arguments)
    except RuntimeError:
        return False, False


def _call(overload: Any, arguments: Mapping[str, Any]) -> list[Tensor]:
    """The result, or the tensors of a list of them; of several results the first."""
    torch.manual_seed(0)
    try:
        result = overload(**arguments)
    except RuntimeError as error:
        if "automatic differentiation" not in str(error):
            raise
        with torch.no_grad():
            result = overload(**arguments)
    if len(overload._schema.returns) > 1:
        result = result[0]
    results = [r for r in (result if isinstance(result, list | tuple) else [result]) if isinstance(r, Tensor)]
    return [torch.view_as_real(r.resolve_conj()) if r.is_complex() else r for r in results]


def said(overload: Any, arguments: Mapping[str, Any], zeros: list[tuple[str, int | None]]) -> Outcome:
    """What the table says about a call in which these tensors are 0."""
    tensors = [at(arguments, place) for place in zeros]

    def is_zero(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return bool(value) and all(map(is_zero, value))
        if isinstance(value, Tensor):
            return any(value is tensor for tensor in tensors)
        return isinstance(value, int | float) and value == 0

    at_zero = lookup(overload).at_zero
    assert at_zero is not None
    bound = {parameter.name: parameter.default for parameter in parameters(overload)}
    return at_zero(Call({**bound, **arguments}, is_zero))


def cases(overload: Any, name: str, dtype: torch.dtype) -> Iterator[tuple[dict[str, Any], Outcome]]:
    """Calls with every choice of tensors set to 0, and what the table says.

    Nothing is promised for arguments for which the operator is not finite anyway, as the logarithm of negative numbers.
    """
    draw = random.Random(name)
    options = range(OPTIONS) if dtype in (torch.float64, torch.complex128) else ()
    for option in [*[None] * DRAWS, *options]:
        arguments = arguments_of(name, overload, draw, dtype, option)
        try:
            _, is_finite = run(overload, arguments)
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            continue  # it does not take this dtype, or these options
        places = leaves(arguments)
        for chosen in product((True, False), repeat=len(places)):
            zeros = [place for place, zero in zip(places, chosen, strict=True) if zero]
            outcome = said(overload, arguments, zeros)
            if (is_finite and (zeros or not places)) or outcome is Outcome.UNDEFINED:
                yield with_zeros(arguments, zeros), outcome


NAMES = [
    name
    for name in declared_names()
    if functional_name(name) == name
    and name.removeprefix("aten::") not in NOT_CALLED
    and any(lookup(overload).at_zero is not None for overload in overloads(name))
]


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_at_zero_are_as_declared(name: str) -> None:
    """In all dtypes that an overload takes; every overload takes at least one of them."""
    for overload in overloads(name):
        if str(overload).removeprefix("aten.") in OVERLOADS_NOT_CALLED:
            continue
        undefined: list[bool] = []
        checked = 0
        for dtype in DTYPES:
            for arguments, outcome in cases(overload, name, dtype):
                is_zero, is_finite = run_or_fail(overload, arguments)
                if outcome is Outcome.UNDEFINED:
                    undefined.append(is_finite)
                else:
                    assert is_finite, (overload, arguments)
                assert is_zero or outcome is not Outcome.ZERO, (overload, arguments)
                checked += 1
        assert checked, f"{overload} accepts none of the arguments that this test draws"
        assert not undefined or not all(undefined), f"{overload} is finite wherever the table says that it is not"


def undeclared() -> Iterator[Any]:
    """The overloads in all of ATen for which the analysis assumes that they make something finite of zeros."""
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")}
    for name in sorted(names):
        short = name.removeprefix("aten::")
        internal = short.startswith(("_", "linalg_", "cudnn", "miopen", "quantize", "rand")) or short.endswith("_")
        if not internal and "backward" not in short and hasattr(torch.ops.aten, short):
            yield from (one for one in overloads(name) if lookup(one).at_zero is None)


def test_operators_without_a_declaration_are_finite_at_zero() -> None:
    wrong, called = set(), set()
    for overload, dtype, shape in product(undeclared(), (torch.float64, torch.complex128), ((3, 4), (3, 3))):
        name = overload._schema.name
        for option in (None, 0, 2):
            arguments = arguments_of(name, overload, random.Random(name), dtype, option, shape)
            try:
                _, is_finite = run(overload, arguments)
            except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
                continue
            places = leaves(arguments)
            for chosen in product((True, False), repeat=len(places)) if is_finite and len(places) < 5 else ():
                zeros = [place for place, zero in zip(places, chosen, strict=True) if zero]
                if not run_or_fail(overload, with_zeros(arguments, zeros))[1]:
                    wrong.add(str(overload))
                called.add(name)
    assert not wrong
    assert len(called) > 200
    assert {"aten::sigmoid", "aten::cos", "aten::copysign", "aten::softmax", "aten::std", "aten::cdist"} <= called


@pytest.mark.parametrize("second", ALIASES)
def test_second_names_do_the_same(second: str) -> None:
    firsts = {_types(one): one for one in overloads(f"aten::{ALIASES[second]}")}
    for overload in overloads(f"aten::{second}"):
        first = firsts[_types(overload)]
        assert lookup(overload).at_zero is lookup(first).at_zero
        by_name = arguments_of(f"aten::{ALIASES[second]}", first, random.Random(0))
        named = {a.name: by_name.pop(a.name) for a in first._schema.arguments if a.kwarg_only and a.name in by_name}
        values = list(by_name.values())  # the names of others may differ
        torch.testing.assert_close(overload(*values, **named), first(*values, **named), rtol=0, atol=0, equal_nan=True)


def _types(overload: Any) -> tuple[str, ...]:
    return tuple(str(argument.type) for argument in overload._schema.arguments)


def test_in_place_variants_and_second_names_do_the_same() -> None:
    aten = torch.ops.aten
    assert lookup(aten.relu_.default).at_zero is lookup(aten.relu.default).at_zero is not None
    assert lookup(aten.multiply_.Tensor).at_zero is lookup(aten.mul.Tensor).at_zero is not None
    assert lookup(aten.arctan2.default).at_zero is lookup(aten.atan2.default).at_zero is not None


def test_every_declared_operator_of_aten_exists() -> None:
    names = [name.removeprefix("aten::") for name in declared_names() if name.startswith("aten::")]
    assert not [name for name in names if not hasattr(torch.ops.aten, name)]
