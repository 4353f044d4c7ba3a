"""Refuses tools that take a model's Python code or layers apart: a compiled model is a graph over a worker's slices."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import fx

from sdp_compile.errors import SDPError


class NoForeignTools(fx.GraphModule):
    """A graph module that `torch.jit.script` and `torch.export` refuse with the remedy."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise _refusal(
            "torch.jit.script() cannot compile", "torch.jit.trace() takes this worker's subnetwork with example inputs."
        )

    @property
    def graph(self) -> fx.Graph:
        """The graph of the current mode."""
        if torch.compiler.is_exporting():  # it runs the graph, whose inputs and outputs are flat, in place of forward
            raise _refusal(
                "torch.export.export() cannot take", "With strict=True it takes this worker's subnetwork instead."
            )
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        property.__set__(fx.GraphModule.graph, self, graph)  # type: ignore[arg-type]  # mypy takes it for the value


def refuse_proxies(args: Any, kwargs: Any) -> None:
    """Raises `SDPError` if `torch.fx.symbolic_trace` is calling, in place of the arguments or with such arguments."""
    proxies = isinstance(args, fx.Proxy) or isinstance(kwargs, fx.Proxy)
    if proxies or any(isinstance(one, fx.Proxy) for one in (*args, *kwargs.values())):
        raise _refusal(
            "torch.fx.symbolic_trace(), and what builds on it (feature extractors of torchvision, FX quantization), "
            "cannot trace",
            "This worker's own graph is there already, as model.graph.",
        )


def _refusal(what: str, otherwise: str) -> SDPError:
    return SDPError(
        f"{what} a module from sdp.compile(): it is a graph over this worker's slices. Use model.full_model(), which "
        f"all workers call and which returns the original model with all weights. {otherwise}"
    )
