"""Settings for this process and all that tests start, set before torch is imported; and the mark of the core."""

import contextlib
import os
import re
from pathlib import Path

import pytest

from tests.core import CORE

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many tests run several processes at once
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are built from configurations, never downloaded

_TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "core: one of the tests that other releases of torch must pass; see tests/core.py"
    )
    with contextlib.suppress(ImportError):
        from hypothesis import settings

        settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
        settings.load_profile("untimed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m core`` nothing else is imported, so that its packages need not be there."""
    if config.option.markexpr != "core" or collection_path.suffix != ".py":
        return None
    return True if collection_path.relative_to(_TESTS).as_posix() not in CORE else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_TESTS):
            names = CORE.get(item.path.relative_to(_TESTS).as_posix())
            if names is not None and re.search(names, item.name):
                item.add_marker(pytest.mark.core)
