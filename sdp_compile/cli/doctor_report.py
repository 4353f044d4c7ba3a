"""The tables of ``sdp-compile doctor``, from the same data that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.cli.doctor_packages import OPTIONAL

_STYLES = {"ok": "green", "missing": "yellow", "error": "bold red", "": ""}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def render(facts: Mapping[str, Any]) -> RenderableType:
    """Returns one row per fact, the findings, and the verdict last."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, state, text in _rows(facts):
        table.add_row(Text(name), Text(state, style=_STYLES[state]), Text(text))
    parts: list[RenderableType] = [Text(), table, Text()]
    for finding in facts["findings"]:
        severity = finding["severity"]
        parts.append(Text.assemble((f"{severity}: ", _SEVERITIES[severity]), finding["text"]))
    if facts["findings"]:
        parts.append(Text())
    return Group(*parts, _verdict(facts))


def _verdict(facts: Mapping[str, Any]) -> Text:
    training = facts["training"]
    if not facts["ready"] or training is None:
        return Text("not ready: training needs what the errors name.", style="bold red")
    where = f"{training['workers']} workers on {training['device']}, connected by {training['backend']}"
    threads = f", {training['threads_per_worker']} thread each" if training["device"] == "cpu" else ""
    return Text.assemble(("ready", "bold green"), f": `sdp-compile train` would start {where}{threads}.")


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "sdp-compile", "ok", facts["sdp_compile"]
    yield "Python", "ok", f"{facts['python']['version']}, {facts['python']['executable']}"
    system = facts["system"]
    memory = "" if system["memory_bytes"] is None else f", {system['memory_bytes'] / 2**30:.1f} GiB of memory"
    yield "system", "ok", f"{system['cores']} cores{memory}, {system['platform']}"
    torch = facts["torch"]
    if torch["error"]:
        yield "torch", "error", torch["error"]
    else:
        yield "torch", "ok", torch["version"]
        devices = torch["devices"]
        yield "accelerators", "ok" if devices else "", "; ".join(map(_device, devices)) or "none; the CPU is used"
        present = [name for name, available in torch["backends"].items() if available]
        yield "collectives", "error" if torch["gloo_error"] else "ok", torch["gloo_error"] or ", ".join(present)
    compiler = facts["compiler"]
    yield "torch.compile", "missing" if compiler["error"] else "ok", compiler["error"] or compiler["path"]
    for name, version in facts["packages"].items():
        if version is None:
            yield name, "missing", f"for {OPTIONAL[name]}" if name in OPTIONAL else "needed"
        elif name in OPTIONAL:
            yield name, "ok", version


def _device(device: Mapping[str, Any]) -> str:
    memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in device else ""
    return f"{device['type']}:{device['index']} {device.get('name', '')}{memory}"
