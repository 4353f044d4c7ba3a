"""From the words of the command line to what is inspected: a model, captured, analysed and planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdp_compile.models.spec import check_inputs, check_words, load
from sdp_compile.progress import stages
from sdp_compile.train.settings import check_policy_words, policy_fields

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject


@dataclass(frozen=True)
class SubjectWords:
    """Which model, under which policy, for how many workers; what words alone can be wrong in is checked at once."""

    model: str
    policy: str = "auto"
    coverage: float | None = None
    masking: str | None = None
    workers: int = 4
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_policy_words(self.policy, self.coverage)
        check_words(self.model, self.inputs, self.overrides)


def subject_of(words: SubjectWords) -> Subject:
    """Build, capture, analyse and plan, with a progress bar at a terminal. No rank is rewritten, no weight is read."""
    from sdp_compile.policies import resolve_policy

    policy = resolve_policy(
        words.policy, **policy_fields(words.coverage, words.masking)
    )  # refused before torch is loaded
    with stages(4) as begin:
        begin(f"building {words.model}")
        loaded = load(words.model, words.inputs, words.overrides)
        if loaded.example_inputs is None:
            check_inputs(words.model, loaded.model)
        from sdp_compile.capture import capture
        from sdp_compile.inspector.subject import Subject
        from sdp_compile.planning.making import make_plan
        from sdp_compile.structure.analysis import analyse

        begin(f"capturing {type(loaded.model).__name__}")
        captured = capture(loaded.model, loaded.example_inputs)
        begin("analysing its structure")
        analysis = analyse(captured)
        begin("planning")
        return Subject(analysis, make_plan(analysis, policy, words.workers))
