"""What the runtime finds in a compiled module: the module inside wrappers, and its peers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.subnetwork import require_peers, unwrapped
from tests.runtime.connected import subnet
from tests.runtime.stub import CYCLIC


class Wrapper(nn.Module):
    """Holds a module like DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_the_module_is_found_inside_wrappers() -> None:
    module = subnet(1, CYCLIC)
    compiled = torch.compile(module, backend="eager")
    for model in (module, compiled, Wrapper(module), Wrapper(compiled), torch.compile(Wrapper(module))):
        assert unwrapped(model) is module


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), Wrapper(nn.Linear(2, 2)), nn.Sequential(Wrapper(subnet(1, CYCLIC)))]
)
def test_other_models_are_refused(model: nn.Module) -> None:
    with pytest.raises(SDPError, match=rf"sdp\.compile\(\).*got {type(model).__name__}"):
        unwrapped(model)


def test_a_collective_needs_the_other_workers() -> None:
    with pytest.raises(
        DistributedError, match=r"^the call needs the other workers, but this is worker 2 of 4.*torchrun"
    ):
        require_peers(subnet(2, CYCLIC), "the call")


def test_one_worker_has_no_peers() -> None:
    assert require_peers(subnet(0, [(0,)] * 8, workers=1), "the call") is None
