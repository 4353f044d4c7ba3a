"""``sdp-compile report``: the report page of a model's plan, from the command line's words to the file."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from sdp_compile.cli.subject import SubjectWords, subject_of
from sdp_compile.errors import SDPError
from sdp_compile.progress import stages


def run(words: SubjectWords, output: Path, rank: int) -> None:
    """Write the page to ``output`` and say so on standard error."""
    if not 0 <= rank < words.workers:
        raise SDPError(f"--rank {rank}: there are workers 0 to {words.workers - 1}; see --workers.")
    if output.is_dir() or not output.resolve().parent.is_dir():
        raise SDPError(f"--output {output}: name a file in a folder that exists.")
    subject = subject_of(words)
    from sdp_compile.formatting import size
    from sdp_compile.report_page import write_report

    with stages(1) as begin:
        begin("writing the page")
        nbytes = write_report(subject, output, rank, command(words, rank))
    Console(stderr=True).print(f"{output}: {size(nbytes)}", markup=False, highlight=False, soft_wrap=True)


def command(words: SubjectWords, rank: int) -> str:
    """The command that makes the same page again."""
    parts = ["sdp-compile", "report", words.model, "--policy", words.policy, "--workers", str(words.workers)]
    parts += [] if words.coverage is None else ["--coverage", f"{words.coverage:g}"]
    parts += [] if words.masking is None else ["--masking", words.masking]
    parts += [word for text in words.inputs for word in ("--input", text)]
    parts += [word for text in words.overrides for word in ("--set", text)]
    return shlex.join(parts + (["--rank", str(rank)] if rank else []))
