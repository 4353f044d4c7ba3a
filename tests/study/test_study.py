"""Studies: what a contestant costs, how it is tuned, what is resumed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdp_compile as sdp
from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.hardware import Hardware
from sdp_compile.policies import NeuronPolicy
from sdp_compile.simulator import Cluster, simulate
from sdp_compile.study.costs import Costs
from sdp_compile.study.noise import noise_scale
from sdp_compile.study.page import noise_words
from sdp_compile.study.results import append_row, read_rows, standings
from sdp_compile.study.run import check, run
from sdp_compile.study.runner import Runner
from sdp_compile.study.spec import Run, Study
from sdp_compile.study.tasks import Batch, Shape, Teacher, make_task

STUDY = """
task = "teacher"
workers = 4
steps = 24
batch = 8
seeds = [0, 1]
learning_rates = [0.01, 0.001]
evaluations = 2
options = { inputs = 8, hidden = 32, teacher = 8 }
step_time = { "forward 0.5" = 0.6, "small 0.5" = 0.5 }

[[contestant]]
name = "dense"

[[contestant]]
name = "small"
share = 0.5
match = ["time", "flops", "steps"]

[[contestant]]
name = "growing"
schedule = "growing"
"""


def load(folder: Path, text: str = STUDY) -> Study:
    path = folder / "study.toml"
    path.write_text(text)
    return Study.load(path)


def test_that_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    study, out, seen = load(tmp_path), tmp_path / "study.jsonl", list[dict[str, Any]]()

    class Enough(Exception):
        pass

    def stop_after_five(row: dict[str, Any], left: int) -> None:
        seen.append(row)
        if len(seen) == 5:
            raise Enough

    with pytest.raises(Enough):
        Runner(study, out, stop_after_five).all(1)
    out.write_text(out.read_text() + '{"key": "cut off')
    Runner(study, out, lambda row, left: seen.append(row)).all(2)
    rows = read_rows(out)
    assert len({row["key"] for row in rows}) == len(rows) == 3 * 2 + 2 * (1 + 3 + 1)
    assert {row["tunes"] for row in rows[:6]} == {True}
    runner = Runner(study, out, lambda row, left: pytest.fail("all runs are there"))
    runner.all(1)
    assert runner.missing() == 0 and len(runner.rows()) == 10
    steps = {(row["contestant"], row["match"]): row["steps"] for row in runner.rows()}
    assert steps["dense", "time"] == steps["small", "steps"] == 24 and steps["small", "time"] == 48
    assert steps["growing", "time"] == round(24 / (0.5 * 0.6 + 0.25 * 0.75 + 0.25 * 1.0))
    for contestant in study.contestants:
        tuned = {
            row["peak"]: row["result"]["loss"] for row in rows if row["contestant"] == contestant.name and row["tunes"]
        }
        peaks = {row["peak"] for row in runner.rows() if row["contestant"] == contestant.name}
        assert peaks == {min(tuned, key=lambda peak: tuned[peak])}
    again = run(study, Run("small", "time", 1, 0.01, False))
    assert again["curve"] == run(study, Run("small", "time", 1, 0.01, False))["curve"]
    assert [point["step"] for point in again["curve"]] == [24, 48]
    assert again["curve"][-1]["time"] == pytest.approx(24)


def test_that_two_studies_do_not_write_to_one_file(tmp_path: Path) -> None:
    study, out = load(tmp_path), tmp_path / "study.jsonl"

    def start_another(row: dict[str, Any], left: int) -> None:
        with pytest.raises(SDPError, match=r"study\.jsonl.*--out"):
            Runner(study, out, lambda row, left: None).all(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(study, out, start_another).all(1)
    one = Runner(study, out, lambda row, left: None)  # knows of one run; the others are made before it begins
    Runner(study, out, lambda row, left: None).all(2)
    one.all(1)
    rows = read_rows(out)
    assert len({row["key"] for row in rows}) == len(rows) and one.missing() == 0


def test_costs_of_a_step() -> None:
    study = Study(task="teacher", steps=10, batch=4, learning_rates=(0.1,), contestants=())
    contestant = load_contestant({"name": "one", "policy": "neuron"})
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    x = torch.randn(2, 16)
    emulation = sdp.emulate(model, NeuronPolicy(coverage=0.5), (x,), workers=4)
    costs_dense = sdp.plan(model, NeuronPolicy(coverage=1.0), (x,), workers=4)
    costs = Costs(study, contestant, emulation, costs_dense)
    forward, backward = (costs.policy(NeuronPolicy(coverage=0.5, masking=m)) for m in ("forward", "backward"))  # type: ignore[arg-type]
    assert forward.flops == pytest.approx(0.5, abs=0.01) and backward.flops == pytest.approx(2.5 / 3, abs=0.01)
    assert forward.state == pytest.approx(0.5, abs=0.01) and backward.state == pytest.approx(0.625, abs=0.01)
    sharded = Costs(study, contestant.replace(sharded=True), emulation, costs_dense)
    # A worker has half of the parameters, and half of their gradients and moments.
    assert sharded.policy(NeuronPolicy(coverage=0.5)).state == pytest.approx(0.5 * (1 + 3 / 2) / 4, abs=0.01)
    assert sharded.policy(NeuronPolicy(coverage=1.0)).state == pytest.approx((1 + 3 / 4) / 4, abs=0.01)
    timed = Costs(study.replace(step_time={"forward 0.5": 0.55}), contestant, emulation, costs_dense)
    for design in ("cyclic", "core", "nested"):  # whatever the number of owners of each unit
        assert timed.policy(NeuronPolicy(coverage=0.5, design=design)).time == 0.55
    dense = costs.policy(NeuronPolicy(coverage=1.0))
    assert (dense.flops, dense.time, dense.state) == (1.0, 1.0, 1.0)
    mixed = sdp.Phase(NeuronPolicy(coverage=0.5), alternate=NeuronPolicy(coverage=1.0), alternate_every=4)
    assert costs.phase(mixed).flops == pytest.approx(0.75 * 0.5 + 0.25, abs=0.01) and costs.phase(mixed).state == 1.0


@pytest.mark.parametrize("sharded", [False, True])
def test_times_that_the_simulator_predicts(sharded: bool) -> None:
    """As `simulate` says for models that are captured with the samples of a step."""
    machines = {"hardware": "h100-10gbe", "nodes": 2, "tflops": 0.001}
    study = Study(task="teacher", steps=10, batch=8, learning_rates=(0.1,), contestants=(), cluster=machines)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    small = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    cluster = Cluster.of(Hardware(nodes=2, tflops=0.001, inter_bandwidth=1.25, inter_latency=50.0), 4)

    def planned(one: nn.Module, coverage: float, samples: int) -> sdp.Plan:
        return sdp.plan(one, NeuronPolicy(coverage=coverage), (torch.randn(samples, 16),), workers=4)

    def seconds(one: nn.Module, coverage: float, strategy: Any, samples: int = 8) -> float:
        return simulate(planned(one, coverage, samples), cluster, strategy).seconds

    def costs(one: nn.Module, **values: Any) -> Costs:
        emulation = sdp.emulate(one, NeuronPolicy(coverage=0.5), (torch.randn(2, 16),), workers=4)
        own = load_contestant({"name": "own", "policy": "neuron", "sharded": sharded, **values})
        return Costs(study, own, emulation, planned(model, 1.0, 2))

    dense = seconds(model, 1.0, "ddp")
    own = "sdp-sharded" if sharded else "sdp"
    half, whole = (costs(model).policy(NeuronPolicy(coverage=share)).time for share in (0.5, 1.0))
    assert half == pytest.approx(seconds(model, 0.5, own) / dense)
    assert whole == pytest.approx(seconds(model, 1.0, own if sharded else "ddp") / dense)
    larger = costs(model, batch=32).policy(NeuronPolicy(coverage=0.5)).time  # of as many samples
    assert 4 * larger == pytest.approx(seconds(model, 0.5, own, samples=32) / dense)
    if not sharded:
        found = costs(small, share=0.5).policy(NeuronPolicy(coverage=1.0)).time
        assert found == pytest.approx(seconds(small, 1.0, "ddp") / dense)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"hardwear": "h100"}, "no field 'hardwear'"),
        ({"hardware": "h200"}, "hardware='h200' is not known"),
        ({"nodes": 3}, "divides workers=4"),
        ({"nodes": 0}, "nodes=0"),
        ({"nodes": 2.0}, "nodes=2.0"),
        ({"tflops": "30"}, "tflops='30' must be a number above 0"),
        ({"memory": 40.0}, "no field 'memory'"),
    ],
)
def test_clusters_that_cannot_be_are_named(cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        Study(task="teacher", steps=10, batch=8, learning_rates=(0.1,), contestants=(), cluster=cluster)
    with pytest.raises(PolicyError, match="leave one of them out"):
        Study(
            task="teacher",
            steps=10,
            batch=8,
            learning_rates=(0.1,),
            contestants=(),
            cluster={"nodes": 2},
            step_time={"forward 0.5": 0.6},
        )


def test_that_policies_that_do_not_fit_are_named_before_anything_runs(tmp_path: Path) -> None:
    check(load(tmp_path))
    for own, words in (
        ('policy = "block"', "no residual"),
        ('policy = "neuron"\n[contestant.rules]\n"blocks.2.*" = { coverage = 0.25 }', "matches no parameter"),
        (
            '[[contestant.phase]]\nshare = 0.5\npolicy = "neuron"\n[[contestant.phase]]\nshare = 0.5\npolicy = "block"',
            "",
        ),
    ):
        study = load(tmp_path, f'{STUDY}\n[[contestant]]\nname = "odd one"\n{own}\n')
        with pytest.raises(SDPError, match=f"The contestant 'odd one' cannot run.*{words}"):
            check(study)


def test_noise_scale_of_known_noise() -> None:
    """The gradient of w·x with x of mean m and variance v per entry is x: the scale is tr(S) / |G|² = v·n / (m²·n)."""

    class Mean(Teacher):
        def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            output: torch.Tensor = model(batch[0])
            return output.mean()

    torch.manual_seed(0)
    model = nn.Linear(400, 1, bias=False)
    batches = [(0.5 + 2.0 * torch.randn(8, 400), torch.empty(0)) for _ in range(32)]
    assert noise_scale(Mean(), model, batches) == pytest.approx(4.0 / 0.25, rel=0.1)
    assert model.weight.grad is None
    aimless = [(torch.randn(2, 400) * torch.tensor([[1.0], [-1.0]]), torch.empty(0)) for _ in range(2)]
    assert noise_scale(Mean(), model, aimless) > 100


def load_contestant(values: dict[str, Any]) -> Any:
    from sdp_compile.study.spec import Contestant

    own = {key: value for key, value in values.items() if key in Contestant.model_fields}
    return Contestant(**own, schedule={key: value for key, value in values.items() if key not in own})


@pytest.mark.parametrize("name", ["text", "digits", "teacher"])  # for the others see test_data_tasks.py
def test_that_tasks_train_and_their_parts_differ(name: str) -> None:
    task = make_task(name, {})
    torch.manual_seed(0)
    model, smaller = task.build(Shape()), task.build(Shape(share=0.5))
    assert 0.3 < sum(map(torch.numel, smaller.parameters())) / sum(map(torch.numel, model.parameters())) < 0.8
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    before = {part: task.evaluate(model.eval(), part) for part in ("tuning", "final")}
    assert before["tuning"] != before["final"] and task.goal in before["final"]
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(model, task.draw(32, generator)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if task.calibration():
        sdp.calibrate(model, task.calibration())
    assert task.evaluate(model.eval(), "final")["loss"] < before["final"]["loss"]
    dropping = task.build(Shape(dropout=0.5, drop_branch=0.5)).train()
    x = task.draw(4, generator)[0]
    assert not torch.equal(dropping(x), dropping(x)) and torch.equal(dropping.eval()(x), dropping(x))


def test_standings_compare_seed_by_seed() -> None:
    def row(name: str, seed: int, value: float, match: str = "time") -> dict[str, Any]:
        costs = {"peak": 0.1, "steps": 3, "time": 1.0, "flops": 1.0, "state": 0.5}
        return {"contestant": name, "match": match, "seed": seed, "result": {"loss": value}, **costs}

    rows = [row("a", 0, 1.0), row("a", 1, 3.0), row("b", 0, 0.5), row("b", 1, 3.25), row("c", 1, 9.0)]
    first, second, third = standings(rows, "loss", "a")
    assert (first.contestant, second.contestant, third.contestant) == ("b", "a", "c")
    assert first.difference == -0.125 and first.error == pytest.approx(0.375) and first.wins == 1
    assert second.difference is None and third.difference == 6.0 and third.error is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("task =", "tsk ="), "Study has no field 'tsk'"),
        (('"growing"\nschedule = "growing"', '"dense"'), "two contestants are called 'dense'"),
        (('schedule = "growing"', 'schedule = "growin"'), "no schedule 'growin'"),
        (("share = 0.5", "share = 1.5"), "share=1.5 is not valid"),
        (
            ("learning_rates = [0.01, 0.001]", "learning_rates = []"),
            "learning_rates, seeds and tuning_seeds need one entry",
        ),
        (('match = ["time", "flops", "steps"]', 'match = "money"'), "match"),
        (("steps = 24\n", ""), "steps"),
    ],
)
def test_that_mistakes_are_named(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in STUDY
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, STUDY.replace(*change))
    assert message in str(caught.value)


def test_that_tasks_and_results_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(SDPError, match="Did you mean 'digits'"):
        make_task("digit", {})
    with pytest.raises(SDPError, match="has no option 'depth'"):
        make_task("teacher", {"depth": 3})
    for name, options, words in (
        ("text", {"windows": 0}, "windows of the task 'text' must be a whole number from 1, got 0"),
        ("text", {"sequence": "48"}, "sequence .* got '48'"),
        ("text", {"heads": True}, "heads .* got True"),
        ("text", {"heads": 64}, "width=48 is too small for heads=64"),
        ("text", {"bytes": 100_000, "windows": 5_000}, "need 480001"),
        ("digits", {"noise": -0.1}, "noise .* number from 0"),
        ("digits", {"training": 1796}, "leaves nothing to hold out"),
        ("documents", {"folder": 3}, "folder .* must be text, got 3"),
    ):
        with pytest.raises(SDPError, match=words):
            make_task(name, options)
    assert make_task("digits", {"training": 1795, "noise": 0}).options()["training"] == 1795
    path = tmp_path / "rows.jsonl"
    path.write_text('{"no": "key"}\n{"key": "a"}\n')
    with pytest.raises(SDPError, match="line 1 is no result"):
        read_rows(path)
    path.write_text('{"key": "a"}\n{"key": "b')
    append_row(path, {"key": "c"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_that_a_key_changes_with_everything_that_the_result_depends_on(tmp_path: Path) -> None:
    study = load(tmp_path)
    one = Run("small", "time", 0, 0.01, False)
    keys = [study.key(one)]
    keys += [load(tmp_path, STUDY.replace("batch = 8", "batch = 9")).key(one)]
    keys += [load(tmp_path, STUDY.replace("share = 0.5", "share = 0.25")).key(one)]
    keys += [load(tmp_path, STUDY.replace("hidden = 32", "hidden = 64")).key(one)]
    keys += [study.key(Run("small", "steps", 0, 0.01, False)), study.key(Run("small", "time", 1, 0.01, False))]
    assert len(set(keys)) == len(keys)
    assert load(tmp_path, STUDY.replace("seeds = [0, 1]", "seeds = [0, 1, 2]")).key(one) == keys[0]
    assert load(tmp_path, STUDY.replace('"small"', '"half"')).key(Run("half", "time", 0, 0.01, False)) == keys[0]


def test_a_noise_scale_that_is_too_large_is_said() -> None:
    study = Study(task="teacher", steps=10, batch=8, learning_rates=(0.1,), contestants=())

    def words(*scales: float | None) -> str | None:
        return noise_words(study, [{"curve": [{"noise_scale": 1.0}, {"noise_scale": scale}]} for scale in scales])

    assert words() is None and noise_words(study, [{"curve": [{"loss": 1.0}]}]) is None
    assert words(7.0, None, 90.0) == "Noise scale at the end of dense training: 90 samples; a step has 32."
    assert "too large to be measured" in str(words(7.0, None, None))
