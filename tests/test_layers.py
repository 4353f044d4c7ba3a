"""The rooms of the package and the one direction of its imports.

Every import counts, also those inside functions and under TYPE_CHECKING: an arrow that runs back is a circle for the
reader, whenever it is followed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

PACKAGE = Path(__file__).parent.parent / "sdp_compile"

LAYERS = (
    ("errors", "_version", "formatting"),
    ("registry", "toml", "progress", "processes", "restarts", "command_words", "hardware"),
    ("ir",),
    ("ops",),
    ("capture",),
    ("structure",),
    ("ownership",),
    ("policies",),
    ("planning",),
    ("passes",),
    ("lowering",),
    ("runtime.tensors", "runtime.wrapping"),
    ("runtime.cutting",),
    ("runtime.python_state",),
    ("runtime.refusals",),
    ("runtime.asking",),
    ("runtime.parts",),
    ("runtime.containers",),
    ("runtime.waiting",),
    ("runtime.comm", "runtime.probing"),
    ("runtime.levels",),
    ("runtime.full_results",),
    ("runtime.sharding",),
    ("runtime.packing",),
    ("runtime.contract",),
    ("runtime.gradients",),
    ("runtime.owners",),
    ("runtime.peers",),
    ("runtime.subnetwork",),
    ("runtime.state",),
    ("runtime.doors", "runtime.lowerings"),
    ("runtime.optimizer",),
    ("runtime.module",),
    ("simulator",),
    ("compiler",),
    ("checkpoint",),
    ("replanning", "repairing", "emulation"),
    ("inspector",),
    ("report_page",),
    ("models",),
    ("checking",),
    ("train",),
    ("study",),
    ("integrations",),
    ("bench",),
    ("cli",),
    ("",),
)
"""From the bottom to the top: a room imports only from its own layer and those before it. "" is the package itself."""

DOORS = {
    ("planning.plan", "inspector.plan_report"),
    ("runtime.doors", "inspector"),
    ("runtime.doors", "repairing.repair"),
    ("runtime.doors", "replanning.advance"),
    ("runtime.doors", "replanning.replan"),
    ("runtime.doors", "report_page"),
}
"""Imports that run back on purpose, inside the methods of `runtime.doors` and `Plan.report`."""


def modules() -> dict[str, Path]:
    """The modules of the package by name within it; that of a folder is its ``__init__``."""
    found = {}
    for folder in (PACKAGE, PACKAGE / "passes", PACKAGE / "policies"):  # the links are not followed
        for path in folder.rglob("*.py"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for dotted in found:
            inside = dotted.removeprefix("sdp_compile.") if dotted.startswith("sdp_compile.") else None
            if inside is not None:
                target = inside if inside in known else inside.rpartition(".")[0]
                if target in known and target != name:
                    yield target


def graph() -> nx.DiGraph[str]:
    known = modules()
    edges = ((name, target) for name, path in known.items() for target in imports(name, path, known))
    return nx.DiGraph(edge for edge in edges if edge not in DOORS)


def is_in(name: str, room: str) -> bool:
    return f"{name}.".startswith(f"{room}.")


def layer(name: str) -> int:
    """The position of a module's room; the longest name of a room that fits decides."""
    fits = [
        (len(room), number)
        for number, rooms in enumerate(LAYERS)
        for room in rooms
        if f"{name}.".startswith(f"{room}.")
    ]
    return max(fits)[1] if fits else len(LAYERS) - 1


def test_every_module_has_a_room() -> None:
    rooms = {room for rooms in LAYERS for room in rooms}
    homeless = [
        name for name in modules() if name and not any(f"{name}.".startswith(f"{room}.") for room in rooms if room)
    ]
    assert set(homeless) <= {"runtime"}  # an empty __init__


def test_imports_run_one_way() -> None:
    back = [f"{name} -> {target}" for name, target in graph().edges if layer(name) < layer(target)]
    assert not back, "\n".join(back)


def test_no_import_circle() -> None:
    circles = [sorted(found) for found in nx.strongly_connected_components(graph()) if len(found) > 1]
    assert not circles


def test_the_doors_are_used() -> None:
    known = modules()
    for name, target in DOORS:
        assert target in set(imports(name, known[name], known)), f"{name} no longer imports {target}: close the door"
