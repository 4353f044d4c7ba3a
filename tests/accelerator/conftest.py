"""The device of these tests: this machine's accelerator, or the one that SDP_TEST_DEVICE names, such as ``cpu``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get("SDP_TEST_DEVICE")
    if name:
        return torch.device(name)
    if not torch.accelerator.is_available():
        pytest.skip("there is no accelerator; SDP_TEST_DEVICE=cpu runs these tests on the CPU")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """The device of tests of what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("only CUDA has this")
    return device


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    """No TensorFloat-32, and algorithms that compute the same bits each time where there are such."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    yield
    torch.set_float32_matmul_precision(before)
