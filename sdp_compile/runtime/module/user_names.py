"""Parts of the user's model whose names are attributes of the compiled module too.

The attribute wins: ``module.plan`` is the plan, also if the model has a part ``plan``. Everything that goes by the
names of parts finds the part: ``state_dict()``, ``get_submodule()`` and the code of the graphs.
"""

from __future__ import annotations

import keyword
import re
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import _format_target

from sdp_compile.errors import SDPError
from sdp_compile.ir.parts import submodule

GENERATED = ("_run_", "_caller_")
"""How the names of attributes begin that a compiled module gets for each of its programs."""


_OWN = frozenset(
    "analysis capture holdings lowered lowering mode number peers plan programs rank unowned workers".split()
)


class OwnNames(nn.Module):
    """A module whose own attributes stay what they are: a setting of their name is the original's."""

    def __setattr__(self, name: str, value: Any) -> None:
        place = vars(self).get("_sdp_place")
        if name not in _OWN or place is None or isinstance(value, (Tensor, nn.Module)):
            super().__setattr__(name, value)
        elif not (place[0].has("", name) and place[0].set("", name, value)):
            raise SDPError(
                f"{name!r} cannot be set: compiled modules have an attribute of this name themselves. Choose another "
                "name."
            )


class UserNames(nn.Module):
    """A module that may hold parts under the names of its own attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would refuse an attribute with the name of a part, and a part would replace the attribute.
        if name not in vars(self) and not hasattr(type(self), name):
            super().__setattr__(name, value)
        elif isinstance(value, (Tensor, nn.Module)):
            registries: list[Any] = [self._parameters, self._buffers, self._modules]
            next(registry for registry in registries if name in registry)[name] = value
        else:
            object.__setattr__(self, name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """Returns the part with the path ``target``."""
        return submodule(self, target)

    def get_parameter(self, target: str) -> nn.Parameter:
        """Returns the parameter with the name ``target``."""
        path, _, leaf = target.rpartition(".")
        parameter = submodule(self, path)._parameters.get(leaf)
        if parameter is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return parameter

    def get_buffer(self, target: str) -> Tensor:
        """Returns the buffer with the name ``target``."""
        path, _, leaf = target.rpartition(".")
        buffer = submodule(self, path)._buffers.get(leaf)
        if buffer is None:
            raise AttributeError(f"{type(self).__name__} has no buffer {target!r}")
        return buffer


def reading_parts(source: str, graph: fx.Graph, module: nn.Module) -> str:
    """Returns the code of a graph in which parts that attributes hide are read from the registries of ``nn.Module``.

    Args:
        source: The code that fx generated from the graph.
        graph: The graph.
        module: The module that holds its tensors.
    """
    for target in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr"):
        plain, exact = _format_target("self", target), _expression(module, target)
        if plain != exact:
            line = re.compile(rf"^(\s*\w+ = ){re.escape(plain)}(?=;|$)", re.MULTILINE)
            source = line.sub(lambda found, exact=exact: found[1] + exact, source)  # type: ignore[misc]
    return source


def hidden_parts(graph: fx.Graph, module: nn.Module) -> bool:
    """Whether a graph reads a part of ``module`` that is not the attribute of its name."""
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return any(_format_target("self", target) != _expression(module, target) for target in targets)


def _expression(module: nn.Module, target: str) -> str:
    *path, leaf = target.split(".")
    text = "self"
    for key in path:
        text = f"{text}._modules[{key!r}]" if _is_hidden(module, key) else _format_target(text, key)
        child = module._modules[key]
        assert child is not None
        module = child
    if _is_hidden(module, leaf):
        return f"{text}.{'_parameters' if leaf in module._parameters else '_buffers'}[{leaf!r}]"
    return _format_target(text, leaf)


def _is_hidden(module: nn.Module, key: str) -> bool:
    """Whether the generated code cannot read a part as an attribute."""
    if not key.isidentifier():
        return re.fullmatch(r"[^\"\\\n]*", key) is None
    return (
        keyword.iskeyword(key)
        or key in vars(module)
        or hasattr(type(module), key)
        or (isinstance(module, UserNames) and key.startswith(GENERATED))
    )
