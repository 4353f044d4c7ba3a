"""Graphs as text, so that a test of a graph function is a program before and after.

    x: f32[2, 8] = placeholder
    w: f32[4, 8] = get_attr[fc.weight]
    y: f32[2, 4] = aten.linear(x, w)
    return y

Each line is one node. What stands behind the colon is ``meta["val"]``: a tensor's dtype and sizes, a number, None, or a
list or tuple of these; a node without it has no value. A size is a number, a name for a free size, or a formula of
names, as in ``f32[2 * n, 8]``. A placeholder or state tensor is named after its target unless the target is given.

Operators are written with their namespace, ``aten.linear``, and with their overload unless it is the default one,
``aten.add.Tensor``. Functions of ``sdp_compile.ops`` are written with their module, ``narrow.join``; those of
``operator`` by name alone, ``getitem``; all others with their full path. The last line lists the flat outputs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._dtype_abbrs import dtype_abbrs

OPS = "sdp_compile.ops"
DTYPES = {name: dtype for dtype, name in dtype_abbrs.items()}
ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
CALLS: dict[str, Callable[..., Any]] = {"slice": slice, "device": torch.device}

_TARGET = re.compile(r"= (placeholder|get_attr)\[(.+)\]$")
_SCALAR = re.compile(rf"\b({'|'.join(DTYPES)})\[\]")


def parse(text: str) -> fx.Graph:
    """Returns the graph that ``text`` describes, with fake tensors as values; see the top of this module.

    Raises:
        ValueError: A line cannot be read, or names an operator or node that does not exist.
    """
    parser = _Parser()
    for line in inspect.cleandoc(text).splitlines():
        try:
            parser.read(line.strip())
        except Exception as error:
            raise ValueError(f"In the line {line!r}: {error}") from error
    parser.graph.lint()
    return parser.graph


def text_of(graph: fx.Graph) -> str:
    """Returns the text of ``graph``, as `parse` reads it. Free sizes are called n0, n1, ... as they appear."""
    symbols: dict[sympy.Symbol, sympy.Symbol] = {}
    return "\n".join(_line(node, symbols) for node in graph.nodes)


class _Parser:
    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.shape_env = ShapeEnv()
        self.fake_mode = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)  # as in torch.export
        self.sizes: dict[str, torch.SymInt] = {}

    def read(self, line: str) -> None:
        if not line:
            return
        (statement,) = ast.parse(_SCALAR.sub(r"\1[()]", _TARGET.sub(r'= \1["\2"]', line))).body
        if isinstance(statement, ast.Return):
            outputs = () if statement.value is None else self.argument(statement.value)
            self.graph.output(list(outputs) if isinstance(outputs, tuple) else [outputs])
            return
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]  # type: ignore[attr-defined]
        assert isinstance(target, ast.Name)
        node = self.node(target.id, statement.value)  # type: ignore[attr-defined]
        if node.name != target.id:
            raise ValueError(f"torch.fx does not allow the name {target.id!r} here; choose another.")
        if isinstance(statement, ast.AnnAssign):
            with self.fake_mode:
                node.meta["val"] = self.value(statement.annotation)
        self.nodes[target.id] = node

    def node(self, name: str, value: ast.expr) -> fx.Node:
        if isinstance(value, ast.Call):
            args = tuple(map(self.argument, value.args))
            kwargs = {str(keyword.arg): self.argument(keyword.value) for keyword in value.keywords}
            return self.graph.create_node("call_function", _function(ast.unparse(value.func)), args, kwargs, name)
        op = ast.unparse(value.value if isinstance(value, ast.Subscript) else value)
        if op not in ("placeholder", "get_attr"):
            raise ValueError(f"{op!r} is not placeholder, get_attr or a call.")
        target = ast.literal_eval(value.slice) if isinstance(value, ast.Subscript) else name
        return self.graph.create_node(op, target, name=name)

    def argument(self, value: ast.expr) -> Any:
        """What an expression among the arguments or outputs stands for."""
        match value:
            case ast.Constant():
                return value.value
            case ast.Name(id="inf" | "nan"):
                return float(value.id)
            case ast.Name():
                if value.id not in self.nodes:
                    raise ValueError(f"there is no node {value.id!r} above.")
                return self.nodes[value.id]
            case ast.List() | ast.Tuple():
                return (list if isinstance(value, ast.List) else tuple)(map(self.argument, value.elts))
            case ast.UnaryOp(op=ast.USub()):
                return -self.argument(value.operand)
            case ast.Attribute(value=ast.Name(id="torch")):
                return getattr(torch, value.attr)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                return CALLS[name](*map(self.argument, value.args))
        raise ValueError(f"{ast.unparse(value)!r} cannot be an argument.")

    def value(self, annotation: ast.expr) -> Any:
        """What a node's annotation stands for: a fake tensor, a size, or a list or tuple of these."""
        match annotation:
            case ast.List() | ast.Tuple():
                return (list if isinstance(annotation, ast.List) else tuple)(map(self.value, annotation.elts))
            case ast.Subscript(value=ast.Name(id=dtype)):
                sizes = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
                return torch.empty([self.value(size) for size in sizes], dtype=DTYPES[dtype])
            case ast.Constant():
                return annotation.value
            case ast.Name():
                return self.sizes.setdefault(annotation.id, self.free_size(annotation.id))
            case ast.BinOp():
                return ARITHMETIC[type(annotation.op)](self.value(annotation.left), self.value(annotation.right))
            case ast.UnaryOp():
                return ARITHMETIC[type(annotation.op)](self.value(annotation.operand))
        raise ValueError(f"{ast.unparse(annotation)!r} cannot be a value.")

    def free_size(self, name: str) -> torch.SymInt:
        """A size that may vary, with an example of its own: 5, 7, 9, ..."""
        source, example = ConstantSource(name), 5 + 2 * len(self.sizes)
        symbol = self.shape_env.create_symbol(example, source, dynamic_dim=DimDynamic.DYNAMIC)
        size = self.shape_env.create_symintnode(symbol, hint=example, source=source)
        assert isinstance(size, torch.SymInt)
        return size


def _function(path: str) -> Any:
    """The operator or function of a written path."""
    first, *rest = path.split(".")
    if not rest:
        return getattr(operator, first)
    packet = getattr(getattr(torch.ops, first), rest[0], None)
    if packet is not None:
        return getattr(packet, rest[1] if len(rest) > 1 else "default")
    module = f"{OPS}.{first}" if importlib.util.find_spec(f"{OPS}.{first}") else ".".join([first, *rest[:-1]])
    return getattr(importlib.import_module(module), rest[-1])


def _line(node: fx.Node, symbols: dict[sympy.Symbol, sympy.Symbol]) -> str:
    if node.op == "output":
        outputs = node.args[0]
        listed = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return f"return {', '.join(map(_argument, listed))}".rstrip()
    value = f": {_value(node.meta['val'], symbols)}" if "val" in node.meta else ""
    return f"{node.name}{value} = {_right_side(node)}"


def _right_side(node: fx.Node) -> str:
    if node.op != "call_function":
        return node.op if node.target == node.name else f"{node.op}[{node.target}]"
    arguments = [*map(_argument, node.args), *(f"{key}={_argument(value)}" for key, value in node.kwargs.items())]
    return f"{_path(node.target)}({', '.join(arguments)})"


def _path(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removesuffix(".default")
    if target.__module__ == "_operator":
        return str(target.__name__)
    return f"{target.__module__}.{target.__name__}".removeprefix(f"{OPS}.")


def _argument(value: Any) -> str:
    match value:
        case list():
            return f"[{', '.join(map(_argument, value))}]"
        case tuple():
            return f"({', '.join(map(_argument, value))}{',' if len(value) == 1 else ''})"
        case slice():
            return f"slice({', '.join(map(_argument, (value.start, value.stop, value.step)))})"
        case torch.device():
            return f"device({str(value)!r})"
    return str(value) if isinstance(value, fx.Node) else repr(value)


def _value(value: Any, symbols: dict[sympy.Symbol, sympy.Symbol]) -> str:
    match value:
        case list():
            return f"[{', '.join(_value(item, symbols) for item in value)}]"
        case tuple():
            return f"({', '.join(_value(item, symbols) for item in value)}{',' if len(value) == 1 else ''})"
        case torch.Tensor():
            return f"{dtype_abbrs[value.dtype]}[{', '.join(_value(size, symbols) for size in value.shape)}]"
        case torch.SymInt():
            formula = sympy.expand(value.node.expr)  # arithmetic on sizes expands products with numbers only
            for symbol in sorted(formula.free_symbols, key=str):
                symbols.setdefault(symbol, sympy.Symbol(f"n{len(symbols)}", integer=True))
            return str(formula.xreplace(symbols))
    return repr(value)
