"""``sdp-compile checkpoint`` and ``sdp-compile merge``: what is in a checkpoint, and its full model in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sdp_compile.checkpoint.coverage import described, lost_of_model, lost_states, shortened
from sdp_compile.checkpoint.mending import mend
from sdp_compile.checkpoint.merge import merge
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.formatting import size
from sdp_compile.progress import stages


def run_merge(source: Path, target: Path, reset_lost_optimizer_state: bool = False) -> None:
    """Writes the full model of a checkpoint, and says what was left out."""
    count = len(Checkpoint(source).manifest.keys)
    with stages(count) as stage:
        merged = merge(source, target, lambda done, of: stage("merging"), reset_lost_optimizer_state)
    console = Console(stderr=True)
    for problem in merged.damaged:
        console.print(f"Another copy was used: {problem}", markup=False, soft_wrap=True)
    if merged.extra:
        what = f"{shortened(merged.extra)}: load the file with strict=False, or the checkpoint itself."
        console.print(f"Safetensors files hold tensors alone, so this one lacks {what}", markup=False, soft_wrap=True)
    Console().print(
        f"Wrote {merged.path}: {merged.tensors} tensors, {size(merged.nbytes)}.", markup=False, soft_wrap=True
    )


def run_repair(source: Path) -> bool:
    """Rewrites damaged files from intact copies, and says so. Returns whether nothing is damaged any more."""
    with stages(len(Checkpoint(source).manifest.files)) as stage:
        mended = mend(source, lambda name: stage(f"checking {name}"))
    console = Console(stderr=True)
    words = f"Repaired {mended.parts} parts in {', '.join(mended.files)}." if mended.files else "Nothing was repaired."
    for line in (words, *(f"Still damaged: {problem}" for problem in mended.left)):
        console.print(line, markup=False, soft_wrap=True)
    return not mended.left


def show(source: Path, json: str | None) -> None:
    """Prints what is in a checkpoint; exits with 1 if parts of it are lost."""
    checkpoint = Checkpoint(source)
    manifest = checkpoint.manifest
    lost = lost_of_model(checkpoint) + [part for parts in lost_states(checkpoint).values() for part in parts]
    facts = _facts(checkpoint)
    write_json(json, {**facts, "whole": not lost, "lost": [str(part) for part in lost]})
    if json != "-":
        console = Console()
        table = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            if name not in ("files", "path") and value is not None:
                shown = size(value) if "bytes" in name else str(value)
                table.add_row(name.replace("_", " "), shown)
        console.print(str(checkpoint.path), style="bold", markup=False, soft_wrap=True)
        console.print(table)
        files = Table("file", "worker", "size", "state", box=box.SIMPLE_HEAD)
        for file in facts["files"]:
            files.add_row(file["name"], str(file["worker"]), size(file["nbytes"]), file["state"])
        console.print(files)
        verdict = f"Lost: {described(manifest, lost)}" if lost else "Every part is there."
        console.print(verdict, markup=False, soft_wrap=True)
    if lost:
        raise typer.Exit(FAILED)


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest, intact = checkpoint.manifest, checkpoint.intact_files
    plan, optimizer = manifest.plan, manifest.optimizer
    states = () if optimizer is None else optimizer.tensors.values()
    return {
        "path": str(checkpoint.path),
        "step": manifest.step,
        "samples": manifest.samples,
        "workers": manifest.workers,
        "plan": None if plan is None else plan.digest[:12],
        "masking": None if plan is None else plan.masking,
        "lowering": None if plan is None else plan.lowering,
        "redundancy": manifest.redundancy,
        "torch": manifest.torch,
        "tensors": len(manifest.model),
        "model_bytes": sum(entry.nbytes for entry in manifest.model.values()),
        "optimizer": None if optimizer is None else optimizer.kind,
        "optimizer_bytes": sum(entry.nbytes for entries in states for entry in entries.values()),
        "bytes_on_disk": sum(file.nbytes for file in manifest.files),
        "files": [
            {
                "name": file.name,
                "worker": file.worker,
                "nbytes": file.nbytes,
                "state": "there" if number in intact else "missing or truncated",
            }
            for number, file in enumerate(manifest.files)
        ],
    }
