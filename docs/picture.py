"""Render the README's picture from the report of a real run: ``python docs/picture.py REPORT.json PICTURE.svg``."""

import json
import re
import sys
from pathlib import Path

from rich.console import Console

from sdp_compile.cli.train_report import render

COMMAND = "$ sdp-compile train --baseline"

if __name__ == "__main__":
    report, picture = map(Path, sys.argv[1:])
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=80, file=nowhere)
        console.print(COMMAND, style="bold green", highlight=False)
        console.print(render(json.loads(report.read_text())))
        svg = console.export_svg(title="sdp-compile")
    # The fonts would come from elsewhere; every text element has its length, so any monospaced one will do.
    picture.write_text(re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL))
