"""Tests the package on this machine's accelerator and writes a file; see ``python -m tools.accelerator --help``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from tools.accelerator.recorder import Recorder

FILES = ("test_oracle.py", "test_workers.py", "test_streams.py", "test_compiled.py", "test_kernels.py")
"""What is tested, the most important first."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the tests. Returns pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.accelerator", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the results go; written after every test")
    parser.add_argument("--device", help="use this device, such as cpu, instead of the accelerator")
    parser.add_argument("--jobs", default="0", help="how many tests run at once, by pytest-xdist")
    parser.add_argument("-k", dest="match", default="", help="run the tests whose names match, as pytest's -k")
    options = parser.parse_args(arguments)
    if options.device:
        os.environ["SDP_TEST_DEVICE"] = options.device
    folder = Path(__file__).parents[2] / "tests" / "accelerator"
    paths = [str(folder / name) for name in FILES]
    command = ["-q", "-p", "no:cacheprovider", "-p", "no:logging", "--tb=short", "--show-capture=no"]
    command += ["-n", options.jobs, "--dist=loadgroup", "-k", options.match, *paths]
    return int(pytest.main(command, plugins=[Recorder(options.json, options.device)]))


if __name__ == "__main__":
    sys.exit(main())
