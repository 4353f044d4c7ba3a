"""Turns an exported program into a `Program`: state by canonical name, inputs in call order, no nested graphs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, CustomObjArgument, InputKind, OutputKind, SymIntArgument
from torch.utils import _pytree as pytree

from sdp_compile.capture.clean import clean
from sdp_compile.capture.clone import named_state
from sdp_compile.capture.diagnosis import located
from sdp_compile.capture.export import Exported
from sdp_compile.capture.guards import size_guards
from sdp_compile.capture.originals import originals_of
from sdp_compile.capture.refuse import refuse_collectives, refuse_transforms, refuse_written, vmap_refusal
from sdp_compile.capture.regions import inline_regions
from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import InputSpec, Mode, Program
from sdp_compile.ir.source import module_path, source_line


class Constants:
    """The tensors that capture lifted out of the model's code, with one name each for both modes.

    A parameter or buffer that the code does not reach through its module, but through a closure or a list, is lifted
    too. It is recognised by its memory and keeps its name, because a constant would never be trained.
    """

    def __init__(self, model: nn.Module, known: Mapping[str, torch.Tensor] | None = None) -> None:
        self.values: dict[str, torch.Tensor] = dict(known or {})
        named = (*originals_of(model).tensors(), *named_state(model))
        self._state = {_memory(tensor): name for name, tensor in named if _memory(tensor) is not None}
        self._taken = {*model._modules, *model._parameters, *model._buffers}

    def name(self, value: torch.Tensor) -> str:
        """Returns the name of the same parameter or buffer, of an equal constant seen before, or a new name."""
        memory = _memory(value)
        if memory in self._state:
            return self._state[memory]
        if value.requires_grad:
            raise CaptureError(
                f"The model computes with a tensor {list(value.shape)} that requires gradients and is not one of its "
                "parameters, so nothing would train it. Make it an nn.Parameter, or put it in an nn.ParameterList."
            )
        if value.layout is not torch.strided:
            raise CaptureError(
                f"The model's code holds a {str(value.layout).removeprefix('torch.')} tensor of shape "
                f"{list(value.shape)}, which a captured graph cannot hold. Make it dense, or make it in forward from "
                "its indices and values, kept as two buffers."
            )
        for name, known in self.values.items():
            if known is value or _equal(known, value):
                return name
        names = (f"_constant_{number}" for number in itertools.count(len(self.values)))
        name = next(name for name in names if name not in self._taken and name not in self.values)
        self.values[name] = value.detach().clone()  # the model's own may be written to later
        return name


def program_of(
    model: nn.Module, found: Exported, mode: Mode, canonical: Mapping[str, str], constants: Constants
) -> Program:
    """Returns the program of one mode.

    Args:
        model: The model, for the names of the arguments of ``forward``.
        found: What torch.export made of the model in this mode.
        mode: The mode.
        canonical: The first name of the same tensor for each name of a parameter or buffer. Tied tensors become one
            node.
        constants: The constants of both modes; new ones are added.

    Raises:
        CaptureError: The program holds something that a graph of tensors cannot express.
    """
    exported = found.program
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    inputs: list[Any] = []
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    values: dict[int, Any] = {}
    state: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            # A placeholder's name becomes a Python parameter in the generated code. Its target may be any string.
            env[node] = copy = graph.node_copy(node)
            if isinstance(spec.arg, ConstantArgument):
                values[len(inputs)] = spec.arg.value
            elif isinstance(spec.arg, CustomObjArgument):  # such as a member of an Enum
                values[len(inputs)] = pytree.tree_leaves(exported.example_inputs)[len(inputs)]
            elif isinstance(spec.arg, SymIntArgument):
                raise CaptureError(f"Input {node.name!r} is a number that varies. Only tensors may vary between calls.")
            inputs.append(copy)
    for node in exported.graph.nodes:
        if node.op != "placeholder" or specs[node.name].kind is InputKind.USER_INPUT:
            continue
        spec = specs[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = canonical[spec.target]
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name = constants.name(exported.constants[spec.target])
            name = canonical.get(name, name)
        else:
            user = next(iter(node.users), node)
            line = located(source_line(user), module_path(user))
            raise CaptureError(
                f"The model computes with an object that a graph cannot hold ({spec.kind.name}), such as a "
                f"torch.Generator{f', at {line}' if line else ''}. Keep the model's state in parameters and buffers, "
                "and draw from torch's own generator."
            )
        if name not in state:
            state[name] = graph.create_node("get_attr", name)
            state[name].meta = dict(node.meta)
        env[node] = state[name]
    _copy_body(exported, graph, env)
    refuse_transforms(graph)  # before dead code is removed: some have no users
    clean(graph)
    refuse_collectives(graph)
    refuse_written(graph, constants.values)
    graph.lint()
    spec = exported.call_spec
    letters: dict[str, str] = {}
    tensors = {
        index: _input_spec(node.name, node.meta["val"], letters)
        for index, node in enumerate(inputs)
        if isinstance(node.meta.get("val"), torch.Tensor)
    }
    shapes = {index: (node.name, node.meta["val"].shape) for index, node in enumerate(inputs) if index in tensors}
    guards = size_guards(model, exported, shapes)
    out_spec, assigned_spec = spec.out_spec.children() if found.outputs else (spec.out_spec, None)
    return Program(
        mode,
        graph,
        spec.in_spec,
        out_spec,
        values,
        tensors,
        guards,
        reads=found.reads,
        asks_grad=found.asks_grad,
        assigned=found.outputs,
        assigned_spec=assigned_spec,
        kept=found.kept,
    )


def _input_spec(name: str, value: torch.Tensor, letters: dict[str, str]) -> InputSpec:
    """Describes one input. Free sizes are named n0, n1, ... as they appear; a formula of others has no name."""
    dims: list[int | str | None] = []
    example: list[int] = []
    sizes: list[Any] = list(value.shape)
    for size in sizes:
        if isinstance(size, int):
            dims.append(size)
        elif size.node.expr.is_number:
            dims.append(int(size.node.expr))
        else:
            dims.append(letters.setdefault(str(size), f"n{len(letters)}") if size.node.expr.is_symbol else None)
        example.append(size if isinstance(size, int) else int(size.node.hint))
    return InputSpec(name, tuple(dims), tuple(example))


def _copy_body(exported: ExportedProgram, graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    regions: dict[fx.Node, fx.GraphModule] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            _output(exported, graph, env, node)
        elif node.op == "get_attr":
            value = getattr(exported.graph_module, node.target)
            if not isinstance(value, fx.GraphModule):
                raise vmap_refusal(*node.users, node)  # what an autograd.Function is called with there
            regions[node] = value
        elif not inline_regions(graph, env, node, regions):
            env[node] = graph.node_copy(node, lambda old: env[old])


def _output(exported: ExportedProgram, graph: fx.Graph, env: dict[fx.Node, Any], node: fx.Node) -> None:
    """Makes the user's outputs one flat list. Mutations, which export returns as outputs, become copies in place."""
    outputs: list[Any] = []
    results = node.args[0]
    assert isinstance(results, (tuple, list))
    placeholders = {old.name: old for old in exported.graph.nodes if old.op == "placeholder"}
    targets = {spec.target: spec.arg.name for spec in exported.graph_signature.input_specs if spec.target is not None}
    for spec, value in zip(exported.graph_signature.output_specs, results, strict=True):
        result = fx.node.map_arg(value, lambda old: env[old])
        if spec.kind is OutputKind.USER_OUTPUT:
            outputs.append(result)
        elif spec.kind is OutputKind.BUFFER_MUTATION:
            graph.call_function(torch.ops.aten.copy_.default, (env[placeholders[targets[spec.target]]], result))
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            graph.call_function(torch.ops.aten.copy_.default, (env[placeholders[str(spec.target)]], result))
        elif spec.kind is OutputKind.PARAMETER_MUTATION:
            line = located(source_line(value), module_path(value))
            raise CaptureError(
                f"The model writes to parameter {spec.target!r} in forward{f' at {line}' if line else ''}. Compute the "
                "value where it is used, for example self.scale.clamp(0.01, 0.1), or change the parameter after the "
                "optimizer's step."
            )
        else:
            raise CaptureError(f"The model has an output of an unsupported kind, {spec.kind.name}.")
    graph.output(outputs)


def _memory(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Returns a key for a tensor's memory, or None for a tensor without memory."""
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor) or tensor.numel() == 0:
        return None
    if tensor.layout is not torch.strided:
        return None
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device or one.device.type == "meta":
        return False
    try:
        return bool(torch.equal(one, other))
    except RuntimeError:
        return False
