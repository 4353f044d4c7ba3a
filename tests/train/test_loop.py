"""The loop's parts that do not need a process group."""

import torch
from torch import nn

from sdp_compile.train.loop import Windows
from sdp_compile.train.memory import measure, measure_dense
from sdp_compile.train.policy import choose_schedule
from sdp_compile.train.settings import TrainSettings


def test_windows_are_text_and_its_continuation() -> None:
    text = bytes(range(256)) * 4
    windows = Windows(text, sequence=16, device="cpu", seed=1)
    tokens, targets = windows.draw(5)
    assert tokens.shape == targets.shape == (5, 16)
    assert torch.equal((tokens + 1) % 256, targets)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    again, _ = Windows(text, sequence=16, device="cpu", seed=1).draw(5)
    other, _ = Windows(text, sequence=16, device="cpu", seed=2).draw(5)
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, other)


def test_workers_draw_side_by_side_whatever_their_number() -> None:
    text = bytes(range(256)) * 4

    def drawn(workers: int, batch: int, done: int, steps: int) -> tuple[torch.Tensor, int]:
        all_of_them = [Windows(text, 16, "cpu", 1, rank, workers, done) for rank in range(workers)]
        tokens = [windows.draw(batch)[0] for _ in range(steps) for windows in all_of_them]
        return torch.cat(tokens), all_of_them[0].done

    expected, count = drawn(1, 48, 0, 1)
    first, done = drawn(4, 3, 0, 2)
    second, done = drawn(2, 5, done, 1)
    third, done = drawn(1, 7, done, 2)
    assert done == count == 48
    assert torch.equal(torch.cat([first, second, third]), expected)


def test_spread_windows_reach_both_ends() -> None:
    windows = Windows(bytes(range(100)), sequence=9, device="cpu", seed=0)
    starts = windows.spread(4)
    tokens, targets = windows.at(starts)
    assert tokens[0, 0] == 0
    assert targets[-1, -1] == 99


def test_a_policy_trains_with_a_warm_up_and_a_cosine_to_a_tenth() -> None:
    schedule = choose_schedule(TrainSettings(steps=100))
    shares = [schedule.rate(step) for step in range(100)]
    assert shares[0] == 0.1
    assert shares.index(max(shares)) in (9, 10)
    assert max(shares) == 1.0
    assert abs(schedule.rate(100) - 0.1) < 1e-9
    assert choose_schedule(TrainSettings(steps=1)).rate(0) == 1.0


def test_measure_counts_real_storage() -> None:
    model = nn.Linear(10, 20, bias=False)
    dense = measure_dense(model, torch.optim.AdamW)
    assert (dense.parameters, dense.parameter_bytes, dense.gradient_bytes) == (200, 800, 800)
    assert dense.optimizer_bytes == 2 * 800 + 4  # two moments and the step counter
    assert model.weight.grad is None

    # A slice that is a view of the full weight saves nothing, and is counted so.
    view = nn.Module()
    view.weight = nn.Parameter(torch.zeros(20, 10)[:10])
    assert measure(view, torch.optim.AdamW(view.parameters())).parameter_bytes == 800
