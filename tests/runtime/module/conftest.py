"""The small model, compiled as the one worker of a plan that owns everything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.oracle import randomise
from tests.runtime.module.small import Small, compiled


@pytest.fixture
def small() -> Iterator[SDPModule]:
    torch.manual_seed(0)
    yield compiled(randomise(Small()), (torch.randn(4, 6),))
