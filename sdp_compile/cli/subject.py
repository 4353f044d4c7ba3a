"""From the words of the command line to a model that is captured, analysed and planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdp_compile.cli.model_line import tell_notes
from sdp_compile.command_words import check_file_words, check_passes_words, check_policy_words, policy_fields
from sdp_compile.errors import PolicyError
from sdp_compile.models.configuration import Loaded, Size
from sdp_compile.models.spec import check_inputs, load
from sdp_compile.models.words import check_words
from sdp_compile.progress import stages

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.passes import Pass
    from sdp_compile.planning.holdings import LoweringKind
    from sdp_compile.policies import Schedule


@dataclass(frozen=True)
class SubjectWords:
    """Which model, under which policy or schedule, for how many workers.

    With ``schedule``, the plan is that of its first phase. Raises `SDPError` for words that cannot be right.
    """

    model: str
    policy: str = "auto"
    coverage: float | None = None
    masking: str | None = None
    workers: int = 4
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    size: Size | None = None
    passes: str | None = None
    node_size: int | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        check_policy_words(self.policy, self.coverage, self.node_size, self.workers)
        if self.schedule is not None:
            if self.policy != "auto" or self.coverage is not None or self.masking is not None:
                raise PolicyError(
                    f"--schedule {self.schedule} has policies of its own. Leave out --policy, --coverage and --masking."
                )
            check_file_words("--schedule", self.schedule, "a schedule's name")
        check_passes_words(self.passes)
        check_words(self.model, self.inputs, self.overrides, self.size)


@dataclass(frozen=True)
class Planned:
    """A model that was planned, and the one line that says which it is."""

    subject: Subject
    loaded: Loaded
    description: str
    schedule: Schedule | None = None

    def pipeline(self, words: SubjectWords, lowering: LoweringKind = "sliced") -> tuple[Pass, ...]:
        """Returns the passes that ``--passes`` asks for; an empty tuple stands for the default ones."""
        from sdp_compile.passes import resolve_pipeline

        if words.passes is None:
            return ()
        return resolve_pipeline(words.passes, lowering, self.subject.plan.masking)


def subject_of(words: SubjectWords) -> Planned:
    """Builds the model without weights, captures, analyses and plans it, with a progress bar on a terminal."""
    from sdp_compile.policies import resolve_policy, resolve_schedule

    # Before torch is loaded, so that a wrong policy is refused at once.
    schedule = None
    if words.schedule is not None:
        schedule = resolve_schedule(words.schedule).on_nodes(words.node_size)
        policy = schedule.phases[0].policy
    else:
        policy = resolve_policy(words.policy, **policy_fields(words.coverage, words.masking, words.node_size))
    with stages(4) as begin:
        begin(f"building {words.model}")
        loaded = load(words.model, words.inputs, words.overrides, words.size, weights=False)
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
        subject = Subject(analysis, make_plan(analysis, policy, words.workers))
    tell_notes(loaded.configuration)
    return Planned(subject, loaded, loaded.describe(words.model), schedule)
