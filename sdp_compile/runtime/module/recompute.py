"""Makes the checkpoint regions of a graph functions that run again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import fx
from torch.fx.graph_module import _forward_from_src
from torch.utils.checkpoint import checkpoint

from sdp_compile.capture.checkpoints import region_of
from sdp_compile.ir.effects import written_inputs


@dataclass(frozen=True)
class _Region:
    """Nodes that become one call.

    Attributes:
        name: The name of the function.
        inside: The nodes of the call, in order.
        late: The nodes between them that run after the call.
    """

    name: str
    inside: list[fx.Node]
    late: list[fx.Node]

    @property
    def operands(self) -> list[fx.Node]:
        """The nodes that the region reads: activations first, then parameters and buffers."""
        members = set(self.inside)
        found = dict.fromkeys(o for node in self.inside for o in node.all_input_nodes if o not in members)
        return sorted(found, key=_is_state)

    @property
    def results(self) -> list[fx.Node]:
        """The nodes of the region that others read."""
        members = set(self.inside)
        return [node for node in self.inside if not members.issuperset(node.users)]


def executable(graph: fx.Graph) -> tuple[fx.Graph, str]:
    """Turns every checkpoint region of a graph into one call.

    A region saves only its inputs for backward, like ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``.

    Args:
        graph: A graph whose nodes are marked with their regions; it stays as it is.

    Returns:
        The new graph and the source of the functions that it calls; ``graph`` itself and an empty text if there are no
        regions.
    """
    regions = _regions(graph)
    if not regions:
        return graph, ""
    last = {region.inside[-1]: region for region in regions}
    moved = {node for region in regions for node in (*region.inside, *region.late)}
    sources = []
    copy = fx.Graph(tracer_cls=graph._tracer_cls)
    env: dict[fx.Node, fx.Node] = {}

    def put(node: fx.Node) -> None:
        env[node] = copy.node_copy(node, env.__getitem__)
        if env[node].name != node.name:
            env[node]._rename(node.name)

    for node in graph.nodes:
        if node not in moved:
            put(node)
        elif node in last:
            region = last[node]
            function, source = _function(region)
            sources.append(source)
            call = copy.call_function(function, tuple(env[operand] for operand in region.operands))
            for position, result in enumerate(region.results):
                env[result] = copy.call_function(getitem, (call, position))
                env[result]._rename(result.name)
            for delayed in region.late:
                put(delayed)
    copy._codegen = graph._codegen
    return copy, "\n".join(sources)


def _regions(graph: fx.Graph) -> list[_Region]:
    """Returns the checkpoint regions, each with the inserted nodes between its own on which they depend."""
    marked: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        number = region_of(node)
        if number is not None:
            marked.setdefault(number, []).append(node)
    return [_region(f"recompute_{number}", nodes) for number, nodes in marked.items()]


def _region(name: str, marked: list[fx.Node]) -> _Region:
    members = set(marked)
    stretch = _between(marked[0], marked[-1])
    after = _reached(stretch, members, lambda node: node.all_input_nodes)
    before = _reached(stretch[::-1], members, lambda node: node.users)
    members |= after & before
    strangers = [node for node in stretch if node not in members]
    assert not any(node.is_impure() or written_inputs(node) for node in strangers), (
        f"{name} contains writes of another region"
    )
    inside = [node for node in stretch if node in members]
    return _Region(name, inside, [node for node in strangers if node in after])


def _is_state(node: fx.Node) -> bool:
    return node.op == "get_attr"


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    stretch = [first]
    while stretch[-1] is not last:
        stretch.append(stretch[-1].next)
    return stretch


def _reached(
    nodes: Iterable[fx.Node], start: set[fx.Node], edges: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """Returns those of ``nodes``, in order, from which an edge leads to ``start`` or to a node found before."""
    found: set[fx.Node] = set()
    for node in nodes:
        if any(other in start or other in found for other in edges(node)):
            found.add(node)
    return found


def _function(region: _Region) -> tuple[Callable[..., Any], str]:
    """Returns the region as a function of its operands that runs again in backward, and its source."""
    body = fx.Graph()
    env = {operand: body.placeholder(operand.name) for operand in region.operands}
    for node in region.inside:
        env[node] = body.node_copy(node, env.__getitem__)
    body.output(tuple(env[result] for result in region.results))
    code = body.python_code(root_module="self")
    run = _forward_from_src(code.src, code.globals, {})
    count = sum(not _is_state(operand) for operand in region.operands)

    def recompute(*values: Any) -> Any:
        activations, state = values[:count], values[count:]

        def again(*saved: Any) -> Any:
            # As in the original, state is not saved as an input: a normalisation writes to its state.
            return run(None, *saved, *state)

        return checkpoint(again, *activations, use_reentrant=False)

    recompute.__name__ = recompute.__qualname__ = region.name
    return recompute, code.src.replace("def forward(self, ", f"def {region.name}(", 1)
