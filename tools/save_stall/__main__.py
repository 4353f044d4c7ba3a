"""The command ``python -m tools.save_stall``: starts the workers and prints what the first one measured."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from sdp_compile.processes import launch, worker_command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 if the stall is longer than ``--most`` of the time that a save takes."""
    parser = argparse.ArgumentParser(prog="python -m tools.save_stall", description="How long a save stalls training.")
    parser.add_argument("--workers", type=int, default=2, help="Number of local workers")
    parser.add_argument("--width", type=int, default=512, help="Width of the GPT")
    parser.add_argument("--batch", type=int, default=4, help="Samples per worker and step")
    parser.add_argument("--saves", type=int, default=5, help="Number of saves of each kind")
    parser.add_argument("--redundancy", default="none", choices=("none", "owners"))
    parser.add_argument("--folder", type=Path, help="Where to save; default: a temporary folder")
    parser.add_argument("--most", type=float, help="Largest share of a save that may stall training")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        results = Path(name) / "results.json"
        settings = {
            "folder": name,
            "results": str(results),
            **{key: getattr(options, key) for key in ("width", "batch", "saves", "redundancy")},
        }
        launch(worker_command("tools.save_stall.worker", json.dumps(settings)), options.workers)
        found = json.loads(results.read_text())
    for key, value in found.items():
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    return int(options.most is not None and found["stall_share"] > options.most)


if __name__ == "__main__":
    sys.exit(main())
