"""The view ``structure``: the module tree with what is cut, what can be cut, and what never is."""

from __future__ import annotations

from dataclasses import dataclass

from sdp_compile.inspector.modules import Module, module_tree, unnumbered
from sdp_compile.inspector.plain import View, place
from sdp_compile.inspector.plan_figures import frozen_by_reason
from sdp_compile.inspector.subject import Subject
from sdp_compile.structure.families import Family


@dataclass(frozen=True)
class FamilyInfo:
    """A family that analysis found.

    Attributes:
        share: Share of the model's parameter bytes.
        owners: Owners per unit; None if the plan does not cut the family.
        residual: Whether the axis runs along the residual stream.
        conflicts: Axes that it meets in a parameter, so that only one of them can be cut.
        like: Name of an earlier family of the same size in another layer.
    """

    name: str
    kind: str
    units: int
    nbytes: int
    share: float
    flops: float
    depth: int
    module: str
    parameters: tuple[str, ...]
    unit_names: tuple[str, ...]
    owners: int | None
    residual: bool
    conflicts: tuple[str, ...]
    like: str | None


@dataclass(frozen=True)
class BlockInfo:
    """A residual branch that can be dropped as a whole."""

    name: str
    layer: str
    nbytes: int
    share: float
    parameters: tuple[str, ...]
    like: str | None


@dataclass(frozen=True)
class FrozenInfo:
    """Why some dimensions are never cut, with their number and one example."""

    reason: str
    operator: str
    times: int
    nbytes: int
    example: str
    dim: int
    size: int
    module: str
    source: str
    line: str


@dataclass(frozen=True)
class StructureView(View):
    """The structure of a model. ``share_cut`` is the share of its parameter bytes that the plan cuts."""

    model: str
    workers: int
    parameters: int
    nbytes: int
    share_cut: float
    notes: tuple[str, ...]
    tree: Module
    families: tuple[FamilyInfo, ...]
    blocks: tuple[BlockInfo, ...]
    frozen: tuple[FrozenInfo, ...]


def structure_view(subject: Subject) -> StructureView:
    """Returns what analysis found in the model and what the plan cuts."""
    tree = module_tree(subject)
    return StructureView(
        model=subject.model,
        workers=subject.plan.workers,
        parameters=tree.parameters,
        nbytes=tree.nbytes,
        share_cut=tree.share_cut,
        notes=tuple(dict.fromkeys((*subject.structure.notes, *subject.plan.notes))),
        tree=tree,
        families=_families(subject, tree.nbytes),
        blocks=_blocks(subject, tree.nbytes),
        frozen=_frozen(subject),
    )


def _families(subject: Subject, total: int) -> tuple[FamilyInfo, ...]:
    conflicts: dict[str, list[str]] = {}
    for pair in subject.structure.conflicts:
        for name in pair:
            conflicts.setdefault(name, []).extend(pair - {name} or {name})
    cut = {family.name: family.replicas for family in subject.plan.families}
    first: dict[object, str] = {}
    result = []
    for family in subject.structure.families:
        like = first.setdefault(alike(family, cut.get(family.name)), family.name)
        result.append(
            FamilyInfo(
                name=family.name,
                kind=family.kind,
                units=family.units,
                nbytes=family.nbytes,
                share=family.nbytes / max(total, 1),
                flops=sum(family.unit_flops),
                depth=family.depth,
                module=family.module_path,
                parameters=family.parameters,
                unit_names=family.unit_names,
                owners=cut.get(family.name),
                residual=family.name in subject.structure.residual,
                conflicts=tuple(sorted(conflicts.get(family.name, ()))),
                like=None if like == family.name else like,
            )
        )
    return tuple(result)


def alike(family: Family, owners: object) -> object:
    """Returns a key that families share if they differ only in the number of their layer."""
    return unnumbered(family.name), family.units, family.unit_bytes, owners


def _blocks(subject: Subject, total: int) -> tuple[BlockInfo, ...]:
    first: dict[object, str] = {}
    result = []
    for block in subject.blocks.blocks:
        nbytes = sum(subject.capture.state[name].nbytes for name in block.parameters)
        like = first.setdefault((unnumbered(block.name), nbytes), block.name)
        result.append(
            BlockInfo(
                name=block.name,
                layer=block.layer,
                nbytes=nbytes,
                share=nbytes / max(total, 1),
                parameters=block.parameters,
                like=None if like == block.name else like,
            )
        )
    return tuple(result)


def _frozen(subject: Subject) -> tuple[FrozenInfo, ...]:
    """One entry per reason, the one that concerns most bytes first."""
    state = subject.capture.state
    result = []
    for (reason, operator), frozen in frozen_by_reason(subject.structure.frozen).items():
        example = frozen[0]
        names = {one.parameter for one in frozen}
        source, line = place(example.source)
        result.append(
            FrozenInfo(
                reason=reason,
                operator=operator,
                times=len(frozen),
                nbytes=sum(state[name].nbytes for name in names if name in state),
                example=example.parameter,
                dim=example.dim,
                size=example.size,
                module=example.module_path,
                source=source,
                line=line,
            )
        )
    return tuple(sorted(result, key=lambda info: -info.nbytes))
