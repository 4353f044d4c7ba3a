"""Checks what the other passes promise, and gives each node the worker's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sdp_compile.errors import LoweringError
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.sizes import Sizes
from sdp_compile.ir.source import module_path, source_line
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.marks import check_marks
from sdp_compile.structure.layout import Layout, kept_size


@dataclass(frozen=True)
class Verify(Pass):
    """Runs the graph on fake tensors, with the worker's parameters and the example's input sizes.

    The graph stays the same. If the pass returns, then

    - the graph is valid, takes the placeholders of the captured graph in their order, and returns as many values,
    - every node runs, and every parameter and buffer that it reads is one that the worker holds,
    - every tensor that the analysis describes has the shape that it predicts for the worker,
    - with ``marks``, every shared parameter that is used passes a mark for each of its owner sets.

    ``meta["val"]`` of a tensor becomes the fake tensor of the worker's shape; the value of the full model moves to
    ``meta["full_val"]``. No memory is allocated for tensors.

    Args:
        marks: Whether to check marks; False before `SyncGradients` has run.

    Raises:
        LoweringError: If one of these does not hold; the error names the node or the parameter.
    """

    name: ClassVar[str] = "verify"
    marks: bool = True
    """Whether to check marks; False before `SyncGradients` has run."""

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        _check_border(program, context)
        # Some sizes depend on values, such as the number of elements that a boolean mask selects.
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
            _Checker(program, context, context.holdings.kept_units, mode).check()
        if self.marks:
            check_marks(program.graph, context.plan, context.rank)
        return program


def _check_border(program: Program, context: PassContext) -> None:
    """Checks that the graph has the placeholders of the captured graph, in their order, and as many outputs."""
    captured = context.analysis.programs[program.key].graph
    expected, found = (
        ([node.name for node in graph.nodes if node.op == "placeholder"], len(cast(Sized, graph.output_node().args[0])))
        for graph in (captured, program.graph)
    )
    if found != expected:
        raise LoweringError(
            f"The graph takes {', '.join(found[0]) or 'nothing'} and returns {found[1]} values; the captured one takes "
            f"{', '.join(expected[0]) or 'nothing'} and returns {expected[1]}."
        )


class _Checker(fx.Interpreter):
    """Runs a graph on fake tensors and compares shapes."""

    def __init__(self, program: Program, context: PassContext, kept: Mapping[str, int], mode: FakeTensorMode) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self.captured = context.analysis.programs[program.mode].graph
        self.context = context
        self.kept = kept
        self.sizes = Sizes()
        self.mode = mode
        self.fakes: dict[str, torch.Tensor] = {}

    def check(self) -> None:
        with torch.no_grad():
            self.run(*[self._example(node) for node in self.graph.nodes if node.op == "placeholder"])

    def _example(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value
        return self._fake(self.sizes.example(value), value)

    def _fake(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device)

    def fetch_attr(self, target: str) -> torch.Tensor:
        if target not in self.fakes:
            tensor, shape = self.context.state[target], self.context.holdings.shape(target)
            if shape is None:
                raise LoweringError(
                    f"The graph still reads {target!r}, of which worker {self.context.rank} owns nothing."
                )
            self.fakes[target] = torch.empty(shape, dtype=tensor.dtype, device=self._device(target))
        return self.fakes[target]

    def _device(self, target: str) -> torch.device:
        """Returns the device of a tensor, or of the captured one of which it is a part; by default that of the rest."""
        return self._devices.get(target) or next(iter(self._devices.values()), torch.device("cpu"))

    @cached_property
    def _devices(self) -> dict[str, torch.device]:
        devices = {str(n.target): n.meta["val"].device for n in self.captured.nodes if n.op == "get_attr"}
        parts = self.context.holdings.unowned
        return devices | {part.name: devices[name] for name in parts if name in devices for part in parts[name]}

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except LoweringError:
            raise
        except Exception as error:
            raise LoweringError(
                f"Worker {self.context.rank}'s graph cannot run {n.format_node()} "
                f"(module {module_path(n) or 'of the model'!r}, {source_line(n)}): {error}"
            ) from error
        if isinstance(result, torch.Tensor):
            self._compare(n, result)
            full = n.meta.get("val")
            n.meta = {**n.meta, "val": result, **({} if full is None else {"full_val": full})}
        return result

    def _compare(self, node: fx.Node, result: torch.Tensor) -> None:
        layouts, full = node.meta.get("layouts"), node.meta.get("val")
        if not layouts or not isinstance(full, torch.Tensor):
            return
        expected = tuple(
            _kept(length, layout, self.kept) for length, layout in zip(self.sizes.example(full), layouts, strict=True)
        )
        sizes: tuple[Any, ...] = tuple(result.shape)
        if any(isinstance(mine, int) and mine != size for mine, size in zip(sizes, expected, strict=True)):
            raise LoweringError(
                f"{node.format_node()} (module {module_path(node) or 'of the model'!r}, {source_line(node)}) yields "
                f"the shape {sizes} on worker {self.context.rank}, but the analysis says {expected}. If all passes are "
                "this package's, a rule of one of its operators is wrong; please report the model."
            )


def _kept(length: int, layout: Layout, kept: Mapping[str, int]) -> int:
    """The number of indices that a worker keeps of a dimension with ``length`` indices in the example."""
    return length * kept_size(layout, kept) // layout.size if layout.size else length
