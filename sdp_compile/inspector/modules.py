"""The module tree of a model with its tensors; marks modules that are alike."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from sdp_compile.inspector.plain import place
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import StateTensor
from sdp_compile.structure.families import Frozen
from sdp_compile.structure.layout import Layout, Leaf, Product, families

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Why:
    """Why a dimension is never cut."""

    reason: str
    operator: str
    source: str
    line: str
    module: str


@dataclass(frozen=True)
class Dim:
    """One dimension of a tensor.

    Attributes:
        layout: The axes that it is composed of, such as ``6 x 8``.
        marked: The layout with * after each axis that the plan cuts and ' after each axis that it could cut.
        axes: The axes that can cut it.
        cut: The axes by which the plan cuts it.
        frozen: Why it is never cut.
    """

    size: int
    layout: str
    marked: str
    axes: tuple[str, ...]
    cut: tuple[str, ...]
    frozen: Why | None


@dataclass(frozen=True)
class TensorInfo:
    """A parameter, buffer or constant; ``also`` lists the other names of a tied parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    nbytes: int
    trainable: bool
    also: tuple[str, ...]
    block: str | None
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Module:
    """A module with its own tensors and its children. A tied tensor counts under its canonical name.

    Attributes:
        share: Share of the model's parameter bytes.
        share_cut: Share of the module's own bytes that the plan cuts.
        like: Path of an earlier sibling that differs in its name only.
    """

    path: str
    name: str
    type: str
    parameters: int
    nbytes: int
    share: float
    share_cut: float
    block: str | None
    like: str | None
    tensors: tuple[TensorInfo, ...]
    children: tuple[Module, ...]


def module_tree(subject: Subject) -> Module:
    """Returns the tree of all modules, starting with the model itself."""
    return _Tree(subject).module("", subject.capture.skeleton)[0]


class _Tree:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.frozen: dict[tuple[str, int], Frozen] = {(one.parameter, one.dim): one for one in subject.structure.frozen}
        self.blocks = {name: block.name for block in subject.blocks.blocks for name in block.parameters}
        self.block_names = {block.name for block in subject.blocks.blocks}
        self.also: dict[str, list[str]] = {}
        for name, canonical in subject.capture.aliases.items():
            if name != canonical:
                self.also.setdefault(canonical, []).append(name)
        state = subject.capture.state
        self.total = max(1, sum(tensor.nbytes for tensor in state.values() if tensor.kind == "parameter"))
        self.by_module: dict[str, list[str]] = {}
        for name in state:
            self.by_module.setdefault(name.rpartition(".")[0], []).append(name)

    def module(self, path: str, module: nn.Module) -> tuple[Module, Hashable, int]:
        """The tree below a module, a key that alike modules share, and the number of bytes that are cut."""
        tensors = tuple(self.tensor(name, self.subject.capture.state[name]) for name in self.by_module.get(path, ()))
        own = [tensor for tensor in tensors if tensor.kind == "parameter"]
        parameters = sum(self.subject.capture.state[tensor.name].numel for tensor in own)
        nbytes = sum(tensor.nbytes for tensor in own)
        cut = sum(tensor.nbytes for tensor in own if self.subject.plan.is_cut(tensor.name))
        children: list[Module] = []
        keys: list[Hashable] = []
        first: dict[Hashable, str] = {}
        for name, child in module.named_children():
            below, key, cut_below = self.module(f"{path}.{name}" if path else name, child)
            like = first.setdefault((name if not name.isdigit() else "", key), below.path)
            children.append(replace(below, like=None if like == below.path else like))
            keys.append((name, key))
            parameters, nbytes, cut = parameters + below.parameters, nbytes + below.nbytes, cut + cut_below
        result = Module(
            path=path,
            name=path.rpartition(".")[2],
            type=type(module).__name__,
            parameters=parameters,
            nbytes=nbytes,
            share=nbytes / self.total,
            share_cut=cut / nbytes if nbytes else 0.0,
            block=path if path in self.block_names else None,
            like=None,
            tensors=tensors,
            children=tuple(children),
        )
        return result, (result.type, tuple(_key(path, tensor) for tensor in tensors), tuple(keys), cut), cut

    def tensor(self, name: str, tensor: StateTensor) -> TensorInfo:
        layouts = self.subject.structure.layouts.get(name) or tuple(Leaf(size) for size in tensor.shape)
        cut = self.subject.plan.ownership
        return TensorInfo(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            kind=tensor.kind,
            nbytes=tensor.nbytes,
            trainable=tensor.requires_grad,
            also=tuple(self.also.get(name, ())),
            block=self.blocks.get(name),
            dims=tuple(self.dim(name, number, layout, cut) for number, layout in enumerate(layouts)),
        )

    def dim(self, name: str, number: int, layout: Layout, cut: Mapping[str, object]) -> Dim:
        axes = families(layout)
        why = self.frozen.get((name, number)) if not axes else None
        reason = None
        if why is not None:
            source, line = place(why.source)
            reason = Why(why.reason, why.operator, source, line, why.module_path)
        marks = {axis: "*" if axis in cut else "'" for axis in axes}
        cutting = tuple(axis for axis in axes if axis in cut)
        return Dim(layout.size, _text(layout, {}), _text(layout, marks), tuple(axes), cutting, reason)


def _text(layout: Layout, marks: Mapping[str, str]) -> str:
    """``6 x 8``, ``3 x (6 x 8)``, ``(64 + 32) x 4``: the axes that make up a dimension."""
    if isinstance(layout, Leaf):
        return f"{layout.size}{marks.get(layout.family or '', '')}"
    if isinstance(layout, Product):
        factors = ((_text(one, marks), isinstance(one, Leaf)) for one in layout.factors)
        return " x ".join(text if simple else f"({text})" for text, simple in factors)
    parts = [_text(part, marks) for part in layout.parts]
    if len(set(parts)) == 1:
        return f"{len(parts)} x {parts[0] if isinstance(layout.parts[0], Leaf) else f'({parts[0]})'}"
    return " + ".join(parts)


def unnumbered(name: str) -> str:
    """Returns the name with # for each number, so that it is the same in all layers."""
    return _NUMBER.sub("#", name)


def _key(path: str, tensor: TensorInfo) -> Hashable:
    """What a tensor is, apart from the path of its module."""
    dims = tuple(
        (dim.marked, tuple(map(unnumbered, dim.axes)), dim.frozen and dim.frozen.reason) for dim in tensor.dims
    )
    block = unnumbered(tensor.block or "")
    return tensor.name.removeprefix(path), tensor.shape, tensor.dtype, tensor.kind, tensor.trainable, block, dims
