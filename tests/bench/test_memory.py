"""Memory in distinct storages, compared with bytes counted by hand."""

import torch
from torch import Tensor, nn

from sdp_compile.bench.contestant import Contestant
from sdp_compile.bench.memory import MemoryUse, PeakMeter, measure
from sdp_compile.bench.work import Work, output_loss
from sdp_compile.capture.inputs import Call

FLOAT = 4


def use_of(module: nn.Module, *inputs: Tensor) -> MemoryUse:
    work = Work(module, Call(inputs, {}), output_loss, len(inputs[0]))
    optimizer = torch.optim.AdamW(module.parameters())
    contestant = Contestant(work, module, module, optimizer)
    contestant.step()
    return measure(contestant, PeakMeter(torch.device("cpu")))


def test_parameters_gradients_and_adamw() -> None:
    use = use_of(nn.Sequential(nn.Linear(10, 20, bias=False), nn.BatchNorm1d(20)), torch.randn(6, 10))
    elements = 200 + 40
    assert use.parameters == use.gradients == FLOAT * elements
    assert use.buffers == FLOAT * 40 + 8
    assert use.optimizer == 2 * FLOAT * elements + 3 * FLOAT  # two moments, a step counter per parameter
    assert use.state == use.parameters + use.buffers + use.gradients + use.optimizer


def test_a_view_counts_what_it_keeps_alive_and_a_storage_counts_once() -> None:
    class Owner(nn.Module):
        """Backward masking: one storage [owned | rest], of which only the owned part is trained."""

        def __init__(self) -> None:
            super().__init__()
            whole = torch.randn(8, 4)
            self.owned = nn.Parameter(whole[:2])
            self.register_buffer("rest", whole[2:])

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x @ self.owned.T, x @ self.get_buffer("rest").T], dim=1)

    use = use_of(Owner(), torch.randn(3, 4))
    assert use.parameters == FLOAT * 32
    assert use.buffers == 0
    assert use.gradients == FLOAT * 8


class Squares(nn.Module):
    """Saves each power of its product for backward."""

    def __init__(self, powers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))
        self.powers = powers

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight
        for _ in range(self.powers):
            x = x.square()
        return x


def test_activations_are_what_autograd_saves_without_the_parameters() -> None:
    x = torch.randn(5, 16)
    product = FLOAT * 5 * 16
    for powers in (1, 4):
        # The input, for the weight's gradient, and the argument of each square.
        assert use_of(Squares(powers), x).activations == product * (1 + powers)


def test_activations_of_compiled_code_are_measured_too() -> None:
    x = torch.randn(5, 16)
    module = Squares(3)
    call = torch.compile(module, backend="aot_eager")
    work = Work(module, Call((x,), {}), output_loss, 5)
    contestant = Contestant(work, module, call, torch.optim.AdamW(module.parameters()))
    contestant.step()
    use = measure(contestant, PeakMeter(torch.device("cpu")))
    assert 2 * x.nbytes <= use.activations <= 4 * x.nbytes


def test_the_peak_is_the_growth_since_the_meter_was_made() -> None:
    meter = PeakMeter(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // FLOAT)
    assert 50 * 2**20 < meter.peak() < 300 * 2**20
    del held
