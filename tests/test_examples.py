"""Each example runs: one as its first line says, under torchrun, the others in the same environment."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.scripts import run_script

pytestmark = pytest.mark.timeout(500)

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def torchrun(example: str, *arguments: str, workers: int = 4, through: Sequence[str] = ()) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*command, *through, str(EXAMPLES / example), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(example: str, *arguments: str, workers: int = 4) -> str:
    """Runs an example in the environment that torchrun makes."""
    result = run_script(EXAMPLES / example, *arguments, workers=workers)
    assert result.returncode == 0, result.stderr
    return result.stdout


def figure(printed: str) -> float:
    """The last number that an example prints: its result."""
    return float(re.findall(r"\d+\.\d+", printed)[-1])


def test_digits_resnet_is_as_good_as_data_parallel() -> None:
    subnetworks = figure(run("digits_resnet.py", "0.5", "70"))
    dense = figure(run("digits_resnet.py", "1.0", "70"))
    assert dense > 0.9
    assert subnetworks > dense - 0.02


def test_llama() -> None:
    """The assembled model must have learnt more than that the text is ASCII."""
    assert figure(torchrun("llama.py", "40")) < 3.3


def test_custom_policy() -> None:
    """A quarter of the 256 hidden units is everyone's, the rest is dealt out: 64 + 192 / 4 each."""
    printed = run("custom_policy.py")
    assert "trains 112 of 256 hidden units" in printed
    assert figure(printed) > 0.9


def test_digits_fabric() -> None:
    assert figure(run("digits_fabric.py", workers=2)) > 0.9


def test_digits_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for its checkpoints
    assert figure(run("digits_lightning.py", workers=2)) > 0.9


def test_hf_trainer(tmp_path: Path) -> None:
    """The second call goes on where the first one stopped."""
    assert "after 20 steps" in run("hf_trainer.py", str(tmp_path), "20", workers=2)
    printed = run("hf_trainer.py", str(tmp_path), "40", workers=2)
    assert "after 40 steps" in printed
    assert figure(printed) < 3.3
    assert {path.name for path in (tmp_path / "final").iterdir()} >= {"config.json", "model.safetensors"}


def test_accelerate_loop(tmp_path: Path) -> None:
    """The second call goes on where the first one stopped."""
    run("accelerate_loop.py", str(tmp_path), "2", workers=2)
    assert figure(run("accelerate_loop.py", str(tmp_path), "4", workers=2)) > 0.9


@pytest.mark.skipif(
    find_spec("torchtitan") is None, reason="torchtitan is not installed: pip install 'sdp-compile[torchtitan]'"
)
def test_titan_llama(tmp_path: Path) -> None:
    """The second call goes on where the first one stopped. torchtitan must be told that it runs on a CPU."""
    through = ("-m", "tests.integrations.titan")
    assert "after 20 steps" in torchrun("titan_llama.py", str(tmp_path), "20", workers=2, through=through)
    printed = torchrun("titan_llama.py", str(tmp_path), "40", workers=2, through=through)
    assert "after 40 steps" in printed
    assert figure(printed) < 3.0


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(f'run("{path.name}"' in tested for path in EXAMPLES.glob("*.py"))
