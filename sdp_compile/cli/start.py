"""The console script. It imports the command line itself, so that Ctrl-C during that import is no traceback either."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from sdp_compile.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(130)
