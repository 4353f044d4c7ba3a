"""Inlines regions that have their own gradient or autocast mode into the one graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from operator import getitem
from typing import Any

import torch
from torch import fx

from sdp_compile.capture.diagnosis import located
from sdp_compile.errors import CaptureError
from sdp_compile.ir.source import module_path, source_line

enter_autocast = torch.amp.autocast_mode._enter_autocast
exit_autocast = torch.amp.autocast_mode._exit_autocast
_set_grad = torch.ops.higher_order.wrap_with_set_grad_enabled
_autocast = torch.ops.higher_order.wrap_with_autocast


def autocast_devices(graph: fx.Graph) -> tuple[str, ...]:
    """Returns the device types whose autocast mode the graph changes, each once."""
    return tuple({str(node.args[0]): None for node in graph.nodes if node.target is enter_autocast})


@contextlib.contextmanager
def restored_autocast(devices: tuple[str, ...]) -> Iterator[None]:
    """Restores autocast when a graph fails between the nodes that enter and leave a region."""
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    state = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    cache = torch.is_autocast_cache_enabled()
    try:
        yield
    except BaseException:
        for device, enabled, dtype in state:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)
        for _ in range(torch.autocast_increment_nesting() - nesting + 1):
            torch.autocast_decrement_nesting()
        if nesting == 1:
            torch.clear_autocast_cache()
        raise


def inline_regions(
    graph: fx.Graph,
    env: dict[fx.Node, Any],
    node: fx.Node,
    regions: Mapping[fx.Node, fx.GraphModule],
    grad: bool = True,
) -> bool:
    """Inlines ``node`` into ``graph`` if it is a region with its own gradient or autocast mode.

    A region without gradients becomes its operators on detached inputs. An autocast region becomes its operators
    between two nodes that enter and leave its mode.

    Args:
        graph: The graph to add nodes to.
        env: For each node of the old graph, the new graph's node or value; gets an entry for ``node``.
        node: The node of the old graph.
        regions: The graphs behind the old graph's ``get_attr`` nodes.
        grad: Whether gradients are enabled where ``node`` stands.

    Returns:
        Whether ``node`` was inlined.

    Raises:
        CaptureError: ``node`` is another operator that takes a graph, such as ``torch.cond``, or it enables gradients
            inside a region without them.
    """
    if node.target is _set_grad:
        enabled, region, *operands = node.args
        if enabled and not grad:
            raise CaptureError(f"torch.enable_grad() inside torch.no_grad() cannot be captured{_source(node)}.")
        arguments = [env[old] if isinstance(old, fx.Node) else old for old in operands]
        if enabled:
            env[node] = _inline(graph, regions[region], arguments, grad)  # type: ignore[index]
            return True
        detached: dict[Any, Any] = {
            _detached(graph, argument): argument for argument in arguments if isinstance(argument, fx.Node)
        }
        inside: dict[Any, Any] = {argument: inner for inner, argument in detached.items()}
        results = _inline(graph, regions[region], [inside.get(one, one) for one in arguments], False)  # type: ignore[index]
        env[node] = [detached.get(_tensor_of(result), result) for result in results]
        return True
    if node.target is _autocast:
        settings, region, operands = node.args[:4], node.args[4], node.args[5:]  # type: ignore[assignment]
        arguments = [env[old] if isinstance(old, fx.Node) else old for old in operands]
        body = regions[region]  # type: ignore[index]
        entered = graph.call_function(enter_autocast, settings)
        env[node] = _inline(graph, body, arguments, grad)
        left = graph.call_function(exit_autocast, (entered,))
        # The mode is entered and left in the same checkpoint region as the operators that run in it.
        annotations = next((n.meta.get("custom") for n in body.graph.nodes if n.op == "call_function"), None)
        entered.meta["custom"] = left.meta["custom"] = annotations
        return True
    if node.target is getitem and isinstance(env.get(node.args[0]), (list, tuple)):  # type: ignore[arg-type]
        env[node] = env[node.args[0]][node.args[1]]  # type: ignore[index]
        return True
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError(
            f"The model uses {node.target.name()}, an operator over graphs, which cannot be partitioned"
            f"{_source(node)}. Write this part with ordinary tensor operators."
        )
    return False


def _inline(graph: fx.Graph, region: fx.GraphModule, arguments: list[Any], grad: bool) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    nested: dict[fx.Node, fx.GraphModule] = {}
    operands = iter(arguments)
    for node in region.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(operands)
        elif node.op == "get_attr":
            nested[node] = getattr(region, node.target)
        elif node.op == "output":
            results = node.args[0]
            results = results if isinstance(results, (tuple, list)) else [results]
            return [fx.node.map_arg(value, lambda old: env[old]) for value in results]
        elif not inline_regions(graph, env, node, nested, grad):
            env[node] = graph.node_copy(node, lambda old: env[old])
    raise AssertionError("a region without an output node")


def _detached(graph: fx.Graph, value: Any) -> Any:
    """Returns ``value`` without its gradient, and unchanged if it never has one."""
    if not isinstance(value, fx.Node):
        return value
    fake = value.meta.get("val")
    if not isinstance(fake, torch.Tensor) or not (fake.is_floating_point() or fake.is_complex()):
        return value
    if value.op == "get_attr" and not fake.requires_grad:
        return value
    node = graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = {key: item for key, item in value.meta.items() if key in ("nn_module_stack", "stack_trace")}
    node.meta["val"] = fake.detach()
    return node


def _tensor_of(value: Any) -> Any:
    """Returns the node of the tensor that a value is, found through operators that return an argument as it is.

    ``x.to(x.dtype)``, ``x.mul_(2)`` or dropout in evaluation are ``x`` itself, also without gradients. Capture takes
    the last such operator for ``x`` from then on.
    """
    while isinstance(value, fx.Node) and (given := _returned_argument(value)) is not None:
        value = given
    return value


def _returned_argument(node: fx.Node) -> fx.Node | None:
    """Returns the argument that a node's operator returns as it is or after writing to it; None if it is another."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    if node.target._schema.is_mutable:
        return _written(node, node.target._schema)
    if not isinstance(node.meta.get("val"), torch.Tensor) or any("val" not in one.meta for one in node.all_input_nodes):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    try:
        result = node.target(*args, **kwargs)
    except (
        Exception
    ):  # it ran when it was captured, perhaps in a mode that is not there now; it is taken for a new tensor
        return None
    return next((one for one in node.all_input_nodes if result is one.meta["val"]), None)


def _written(node: fx.Node, schema: torch.FunctionSchema) -> fx.Node | None:
    """Returns the argument that an operator writes to and returns, such as that of ``x.mul_(2)``."""
    returned = schema.returns[0].alias_info if len(schema.returns) == 1 else None
    for number, argument in enumerate(schema.arguments):
        written = argument.alias_info
        if returned is not None and written is not None and written.is_write:
            value = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name)
            if written.before_set == returned.before_set and isinstance(value, fx.Node):
                return value
    return None


def _source(node: fx.Node) -> str:
    """Returns where in the model an operator over graphs stands."""
    where = located(source_line(node), module_path(node))
    return f" ({where})" if where else ""
