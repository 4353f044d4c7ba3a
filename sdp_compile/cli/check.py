"""``sdp-compile check``: one model, or every model of a library."""

from __future__ import annotations

import sys

from rich.console import Console

from sdp_compile.cli.check_settings import CheckSettings
from sdp_compile.cli.json_file import write_json
from sdp_compile.cli.model_line import model_line, tell_memory, tell_notes
from sdp_compile.command_words import policy_fields
from sdp_compile.models.configuration import Loaded, count_parameters
from sdp_compile.models.spec import check_inputs, load

_BYTES = 32
"""Per parameter of a check: the weights, a worker's slices and both gradients, in float64."""


def run(settings: CheckSettings, debug: bool = False) -> int:
    """Checks, prints the results, writes the JSON. Returns the exit code."""
    from sdp_compile.policies import resolve_policy

    policy = resolve_policy(settings.policy, **policy_fields(settings.coverage, settings.masking, settings.node_size))
    # With --json - standard output holds the JSON alone.
    console = Console(stderr=settings.json_path == "-")
    if settings.zoo is not None:
        from sdp_compile.cli.zoo import sweep_zoo

        rows, code = sweep_zoo(settings, policy, console)
        write_json(settings.json_path, {"zoo": settings.zoo, "configuration": {"origin": "small"}, "models": rows})
        return code
    from sdp_compile.checking.check import check
    from sdp_compile.cli.check_report import render

    assert settings.model is not None
    loaded = _load(settings, settings.model, console)
    console.print(model_line(loaded.describe(settings.model)), highlight=False)
    if loaded.example_inputs is None:
        check_inputs(settings.model, loaded.model)
    with console.status(f"checking {settings.model}", spinner="dots"):
        result = check(
            loaded.model,
            policy,
            loaded.example_inputs,
            workers=settings.workers,
            ranks=settings.ranks or None,
            seed=settings.seed,
            passes=settings.passes,
        )
    if debug and result.details:
        sys.stderr.write(result.details)
    console.print(render(result, settings.model))
    write_json(settings.json_path, {"spec": settings.model, "configuration": loaded.to_dict(), **result.to_dict()})
    return result.exit_code


def _load(settings: CheckSettings, spec: str, console: Console) -> Loaded:
    """Builds the model with weights; one that is too large to compare stays without, and is planned only."""
    from sdp_compile.checking.check import MOST_PARAMETERS

    with console.status(f"building {spec}", spinner="dots"):
        outline = None
        if settings.size == "full":
            outline = load(spec, settings.inputs, settings.overrides, "full", weights=False)
            tell_memory(outline, spec, _BYTES, "weights, a worker's slices and two gradients in float64")
        if outline is None or count_parameters(outline.model) <= MOST_PARAMETERS:
            outline = load(spec, settings.inputs, settings.overrides, settings.size)
    tell_notes(outline.configuration)
    return outline
