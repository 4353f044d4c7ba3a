"""Forward FLOPs of each worker, counted by hand."""

from __future__ import annotations

from sdp_compile.ownership.loads import flops_per_worker
from sdp_compile.ownership.owners import Ownership
from sdp_compile.structure.families import Family, FlopTerm


def family(name: str, units: int, unit_flops: tuple[float, ...] = (), kind: str = "axis") -> Family:
    return Family(name, kind, units, (1,) * units, unit_flops, "", 0, ())  # type: ignore[arg-type]


def test_work_shrinks_with_every_axis_it_runs_over() -> None:
    families = [family("heads", 4), family("hidden", 2), family("whole", 3)]
    owners = {"heads": Ownership.of([(0,), (0,), (0,), (1,)]), "hidden": Ownership.of([(0, 1), (1,)])}
    work = [
        FlopTerm(80.0, ("heads",)),
        FlopTerm(16.0, ("heads", "hidden")),
        FlopTerm(5.0, ("whole",)),
        FlopTerm(1.0, ()),
    ]
    found = flops_per_worker(work, families, owners, 2)
    assert found.tolist() == [60 + 16 * 0.75 * 0.5 + 6, 20 + 16 * 0.25 * 1.0 + 6]


def test_dropped_blocks_cost_nothing() -> None:
    blocks = family("blocks", 3, (10.0, 20.0, 40.0), "block")
    owners = {"blocks": Ownership.of([(0, 1), (0,), (1,)])}
    assert flops_per_worker([FlopTerm(100.0, ())], [blocks], owners, 2).tolist() == [60, 80]
