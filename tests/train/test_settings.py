"""The settings of ``train``: to the workers and back, and under torchrun."""

import pytest

from sdp_compile.errors import DistributedError
from sdp_compile.train.settings import TrainSettings, joined_workers


def test_settings_survive_the_way_to_the_workers() -> None:
    settings = TrainSettings(workers=3, coverage=0.25, policy="block", baseline=True)
    assert TrainSettings.loads(settings.dumps()) == settings


def test_under_torchrun_the_number_of_workers_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined_workers(3) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert joined_workers(None) == joined_workers(6) == 6
    with pytest.raises(DistributedError, match="WORLD_SIZE=6"):
        joined_workers(3)
