"""The script of the page "Getting started" runs as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)

PAGE = Path(__file__).parent.parent.parent / "docs" / "getting-started.md"


def script(rank: int) -> float:
    """What the page leaves to its reader: a model with running statistics, and batches."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    images = torch.randn(8, 6)
    labels = images[:, :3].argmax(1)
    dist.init_process_group = lambda: None  # type: ignore[assignment]  # the worker has a group already
    names: dict[str, Any] = {
        "model": model,
        "images": images,
        "my_batches": [(images, labels)] * 20,
        "my_calibration_batches": [images],
    }
    exec(code, names)
    assert names["full_model"].state_dict().keys() == model.state_dict().keys()
    return float(names["loss"].detach())


def test_the_script_trains() -> None:
    assert all(loss < 1.1 for loss in run_workers(script, 2))
