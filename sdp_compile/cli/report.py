"""``sdp-compile report``: writes the report page of a model's plan."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from sdp_compile.cli.model_line import model_line
from sdp_compile.cli.subject import SubjectWords, subject_of
from sdp_compile.command_words import check_file, check_ranks
from sdp_compile.progress import stages


def run(words: SubjectWords, output: Path, rank: int) -> None:
    """Writes the page to ``output``, and says on standard error of which model it is."""
    check_ranks([rank], words.workers)
    check_file("--output", str(output))
    planned = subject_of(words)
    from sdp_compile.formatting import size
    from sdp_compile.report_page import write_report

    with stages(1) as begin:
        begin("writing the page")
        text, passes = command(words, rank), planned.pipeline(words)
        nbytes = write_report(planned.subject, output, rank, text, passes, planned.description, planned.schedule)
    told = Console(stderr=True)
    told.print(model_line(planned.description), highlight=False, soft_wrap=True)
    told.print(f"{output}: {size(nbytes)}", markup=False, highlight=False, soft_wrap=True)


def command(words: SubjectWords, rank: int) -> str:
    """Returns the command that makes the same page again."""
    chosen = ["--policy", words.policy] if words.schedule is None else ["--schedule", words.schedule]
    parts = ["sdp-compile", "report", words.model, *chosen, "--workers", str(words.workers)]
    parts += [] if words.coverage is None else ["--coverage", f"{words.coverage:g}"]
    parts += [] if words.masking is None else ["--masking", words.masking]
    parts += [] if words.node_size is None else ["--node-size", str(words.node_size)]
    parts += [] if words.passes is None else ["--passes", words.passes]
    parts += [] if words.size is None else [f"--{words.size}"]
    parts += [word for text in words.inputs for word in ("--input", text)]
    parts += [word for text in words.overrides for word in ("--set", text)]
    return shlex.join(parts + (["--rank", str(rank)] if rank else []))
