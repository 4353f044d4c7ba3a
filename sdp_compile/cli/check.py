"""``sdp-compile check``: one model, or every model of a library."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sdp_compile.cli.json_file import write_json
from sdp_compile.errors import SDPError
from sdp_compile.models.spec import LIBRARIES, check_inputs, check_words, load
from sdp_compile.train.settings import check_policy_words, policy_fields


@dataclass(frozen=True)
class CheckSettings:
    """What one run of ``sdp-compile check`` was asked to do; everything that words alone can be wrong in is checked."""

    model: str | None = None
    zoo: str | None = None
    policy: str = "auto"
    coverage: float | None = None
    masking: str | None = None
    workers: int = 4
    ranks: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    json_path: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.zoo is None):
            raise SDPError("Name one MODEL to check, or a whole library with --zoo torchvision, timm or transformers.")
        check_policy_words(self.policy, self.coverage)
        for rank in self.ranks:
            if not 0 <= rank < self.workers:
                raise SDPError(f"--rank {rank}: there are workers 0 to {self.workers - 1}; see --workers.")
        if self.json_path not in (None, "-") and not Path(str(self.json_path)).resolve().parent.is_dir():
            raise SDPError(f"--json {self.json_path}: its folder does not exist.")
        if self.zoo is not None and self.zoo not in LIBRARIES:
            raise SDPError(f"--zoo {self.zoo}: the libraries are {', '.join(LIBRARIES)}.")
        if self.zoo is not None and (self.inputs or self.overrides):
            raise SDPError("--input and --set belong to one MODEL; --zoo brings small inputs and sizes of its own.")
        if self.model is not None:
            check_words(self.model, self.inputs, self.overrides)


def run(settings: CheckSettings, debug: bool = False) -> int:
    """Check, print what was found, write the JSON; the exit code."""
    from sdp_compile.policies import resolve_policy

    policy = resolve_policy(settings.policy, **policy_fields(settings.coverage, settings.masking))
    # With --json - the report goes to standard output, alone.
    console = Console(stderr=settings.json_path == "-")
    if settings.zoo is not None:
        from sdp_compile.cli.zoo import sweep_zoo

        rows, code = sweep_zoo(settings, policy, console)
        write_json(settings.json_path, {"zoo": settings.zoo, "models": rows})
        return code
    from sdp_compile.checking.check import check
    from sdp_compile.cli.check_report import render

    assert settings.model is not None
    with console.status(f"building {settings.model}", spinner="dots"):
        loaded = load(settings.model, settings.inputs, settings.overrides)
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
        )
    if debug and result.details:
        sys.stderr.write(result.details)
    console.print(render(result, settings.model))
    write_json(settings.json_path, {"spec": settings.model, **result.to_dict()})
    return result.exit_code
