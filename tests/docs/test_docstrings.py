"""Docstrings of the public names: what a call takes, returns and raises is written down in Google style."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

import sdp_compile


def public_objects() -> Iterator[tuple[str, Any]]:
    """Functions and classes of ``__all__``, and the public methods and properties that classes define themselves."""
    for name in sdp_compile.__all__:
        if name == "__version__":
            continue
        value = getattr(sdp_compile, name)
        yield name, value
        if isinstance(value, type):
            for member, attribute in vars(value).items():
                function = attribute.__func__ if isinstance(attribute, classmethod) else attribute
                if not member.startswith("_") and (callable(function) or isinstance(function, property)):
                    yield f"{name}.{member}", function


OBJECTS = dict(public_objects())
FUNCTIONS = {
    name: value
    for name, value in OBJECTS.items()
    if inspect.isfunction(value) and ("." not in name or name.startswith("SDPModule.") or name == "Policy.partition")
}
POLICIES = {name: value for name, value in OBJECTS.items() if isinstance(value, type) and issubclass(value, BaseModel)}


def section(docstring: str, title: str) -> str:
    """The indented lines below ``title:``."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    return found[1] if found else ""


def arguments(docstring: str) -> list[str]:
    return re.findall(r"^    \**(\w+)(?: \(.*?\))?:", section(inspect.cleandoc(docstring), "Args"), re.MULTILINE)


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def raises(function: Callable[..., Any]) -> bool:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


@pytest.mark.parametrize("name", OBJECTS)
def test_it_has_a_docstring(name: str) -> None:
    docstring = inspect.getdoc(OBJECTS[name])
    assert docstring and docstring.splitlines()[0].rstrip().endswith((".", ":"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_results_and_errors_are_described(name: str) -> None:
    function, docstring = FUNCTIONS[name], inspect.getdoc(FUNCTIONS[name]) or ""
    described = arguments(docstring)
    assert described == parameters(function)
    returns = inspect.signature(function).return_annotation not in ("None", None)
    says_what = docstring.startswith(("Returns ", "Yields ")) or section(docstring, "Returns")
    assert says_what or not (returns and described)
    assert bool(section(docstring, "Raises")) >= raises(function)


@pytest.mark.parametrize("name", POLICIES)
def test_fields_of_policies_are_described(name: str) -> None:
    described: set[str] = set()
    for kind in POLICIES[name].__mro__:
        if kind.__module__.startswith("sdp_compile."):
            body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
            described |= set(arguments(kind.__doc__ or "")) | set(fields_with_text(body))
    assert set(POLICIES[name].model_fields) <= described


def fields_with_text(body: list[ast.stmt]) -> Iterator[str]:
    """The fields of a class that a string literal follows."""
    for field, text in pairwise(body):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if is_text and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield field.target.id
