"""Plans as JSON: compact, canonical, and readable without the model.

Owner sets are stored once as ranges of workers, and sequences of figures as runs. So the file of a plan over thousands
of workers stays small, and equal plans give equal text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import groupby
from typing import Any, TypeVar

import torch

from sdp_compile.errors import PlanError
from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.owners import OwnerSet, OwnerSets, Ownership
from sdp_compile.planning.assignment import Assignment
from sdp_compile.planning.families import CutFamily
from sdp_compile.structure.families import FlopTerm, Frozen
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum

Loaded = TypeVar("Loaded", bound=Assignment)

FORMAT = "sdp-compile plan 3"


def dumps(plan: Assignment) -> str:
    """Returns the plan as the text of one JSON object."""
    figures = {family.name: [_runs(family.unit_bytes), _runs(family.unit_flops)] for family in plan.families}
    document = {
        **_essence(plan),
        "policy": plan.policy,
        "notes": plan.notes,
        "figures": figures,
        "frozen": [asdict(frozen) for frozen in plan.frozen],
        "work": [[term.flops, term.axes] for term in plan.work],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def digest(plan: Assignment) -> str:
    """Returns the SHA-256 of what decides the workers' programs and collectives."""
    text = json.dumps(_essence(plan), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def loads(text: str, cls: type[Loaded]) -> Loaded:
    """Reads a plan.

    Args:
        text: What `dumps` returned.
        cls: The class of the plan.

    Raises:
        PlanError: If the text is damaged or has another format.
    """
    try:
        document = json.loads(text)
    except (TypeError, ValueError) as error:
        raise PlanError(f"Not a plan: the text is not valid JSON ({error}).") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise PlanError(f"Not a plan of this version: format must be {FORMAT!r}, got {found!r}. Make the plan again.")
    try:
        return _plan(document, cls)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"The plan is damaged ({type(error).__name__}: {error}). Make the plan again.") from error


def _essence(plan: Assignment) -> dict[str, Any]:
    known = OwnerSets()
    owners = {}
    for ownership in dict.fromkeys(plan.ownership.values()):
        numbers = [known.number(members) for members in ownership.sets]
        owners[ownership] = [[units, numbers[label]] for units, label in ownership.label_runs]
    return {
        "format": FORMAT,
        "workers": plan.workers,
        "node_size": plan.node_size,
        "masking": plan.masking,
        "rescale": plan.rescale,
        "owner_sets": [_ranges(members) for members in known.sets],
        "families": [
            {
                "name": family.name,
                "kind": family.kind,
                "units": family.units,
                "module_path": family.module_path,
                "depth": family.depth,
                "parameters": family.parameters,
                "unit_names": family.unit_names,
                "replicas": family.replicas,
                "owners": owners[plan.ownership[family.name]],
            }
            for family in plan.families
        ],
        # Lists of pairs keep the order of the original model, which sorted keys would lose.
        "state": [
            [
                name,
                list(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                tensor.kind,
                tensor.requires_grad,
                tensor.persistent,
                [_layout(layout) for layout in plan.layouts[name]],
            ]
            for name, tensor in plan.state.items()
        ],
        "aliases": [list(pair) for pair in plan.aliases.items()],
        "members": [list(pair) for pair in sorted(plan.members.items())],
        "order": plan.order,
    }


def _plan(document: Mapping[str, Any], cls: type[Loaded]) -> Loaded:
    sets = [
        tuple(worker for start, stop in ranges for worker in range(start, stop)) for ranges in document["owner_sets"]
    ]
    families, ownership = [], {}
    for entry in document["families"]:
        unit_bytes, unit_flops = document["figures"][entry["name"]]
        families.append(
            CutFamily(
                name=entry["name"],
                kind=entry["kind"],
                units=entry["units"],
                unit_bytes=tuple(_expand(unit_bytes)),
                unit_flops=tuple(_expand(unit_flops)),
                module_path=entry["module_path"],
                depth=entry["depth"],
                parameters=tuple(entry["parameters"]),
                unit_names=tuple(entry["unit_names"]),
                replicas=entry["replicas"],
            )
        )
        ownership[entry["name"]] = Ownership.from_runs((units, sets[number]) for units, number in entry["owners"])
        if len(ownership[entry["name"]]) != entry["units"]:
            raise ValueError(f"{entry['name']!r} has {entry['units']} units but owners for another number of units")
    state, layouts = {}, {}
    for name, shape, dtype, kind, requires_grad, persistent, layout in document["state"]:
        state[name] = StateTensor(tuple(shape), _dtype(dtype), kind, requires_grad, persistent)
        layouts[name] = tuple(_read_layout(item) for item in layout)
    return cls(
        workers=document["workers"],
        node_size=document["node_size"],
        families=tuple(families),
        ownership=ownership,
        state=state,
        aliases=dict(document["aliases"]),
        layouts=layouts,
        members=dict(document["members"]),
        order=tuple(document["order"]),
        work=tuple(FlopTerm(flops, tuple(axes)) for flops, axes in document["work"]),
        policy=document["policy"],
        masking=document["masking"],
        rescale=document["rescale"],
        notes=tuple(document["notes"]),
        frozen=tuple(Frozen(**entry) for entry in document["frozen"]),
    )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def _layout(layout: Layout) -> Any:
    """Returns a range as its size, an axis as [size, family], and products and sums as objects."""
    if isinstance(layout, Leaf):
        return layout.size if layout.family is None else [layout.size, layout.family]
    if isinstance(layout, Product):
        return {"product": [_layout(factor) for factor in layout.factors]}
    return {"sum": [_layout(part) for part in layout.parts]}


def _read_layout(item: Any) -> Layout:
    if isinstance(item, int):
        return Leaf(item)
    if isinstance(item, list):
        return Leaf(item[0], item[1])
    if "product" in item:
        return Product(tuple(_read_layout(factor) for factor in item["product"]))
    return Sum(tuple(_read_layout(part) for part in item["sum"]))


def _ranges(members: OwnerSet) -> list[list[int]]:
    """Returns ascending numbers as [start, stop) ranges."""
    result: list[list[int]] = []
    for worker in members:
        if result and result[-1][1] == worker:
            result[-1][1] += 1
        else:
            result.append([worker, worker + 1])
    return result


def _runs(figures: Sequence[float]) -> list[list[float]]:
    return [[len(list(run)), figure] for figure, run in groupby(figures)]


def _expand(runs: Iterable[Sequence[Any]]) -> list[Any]:
    return [figure for count, figure in runs for _ in range(count)]
