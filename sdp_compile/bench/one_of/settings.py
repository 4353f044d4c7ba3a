"""The settings of ``sdp-compile bench --one-of``, which the process of each variant receives as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdp_compile.bench.one_of.variants import VARIANTS
from sdp_compile.bench.settings import GPT
from sdp_compile.bench.variants import Variant, choose
from sdp_compile.command_words import DEFAULT_COVERAGE, check_file, check_folder, check_policy_words
from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.configuration import Size
from sdp_compile.models.words import check_words

NAMED = ("gpt2-124m", "gpt2-350m", "llama-134m", "llama-500m", "llama-1b", "resnet-50", "swin-t")
"""The models of the paper; images are 3 x 224 x 224."""

BATCH = 8
"""Samples of the one worker where --batch is not given."""

DTYPES = ("float32", "bfloat16", "float16")

LINKS = ("nvlink", "infiniband", "10gbe")


@dataclass(frozen=True)
class OneOfSettings:
    """The settings of a run with one worker of many.

    Args:
        one_of: Number of workers, of which one runs.
        model: One of `NAMED`, or a MODEL of the command line.
        device: Type of the device; None takes an accelerator if there is one, else the CPU.
        dtype: The dtype of autocast; float32 for none.
        batch, length: Samples, and tokens in each, of the one worker; None for the model's own.
        rounds: Timed rounds of each variant.
        steps: Steps per round.
        warmup: Steps before the first round.
        coverages: The coverages of the SDP variants.
        variants: Names or patterns of variants; empty for all.
        compile: Whether compiled variants take part.
        bucket_bytes: Size of a gradient bucket; None takes each library's default.
        links: Between the workers, for the predicted communication; some of `LINKS`.
        timeout: Longest time, in seconds, for a variant.
        seed: Random seed for weights and data.
        inputs: ``--input`` options, for a MODEL.
        overrides: ``--set`` options, for a MODEL.
        size: Configuration of a MODEL.
        json_path, plot_path: Files to write.
        profile_path: Folder for a trace of each variant; None for no profile.
        delay: Collectives end only after the time that they would take over this one of `LINKS`, or at this many
            milliseconds per MiB that the worker sends; None ends them at once.

    Raises:
        SDPError: If a setting is out of range or two settings exclude each other.
    """

    one_of: int
    model: str = GPT
    device: str | None = None
    dtype: str = "float32"
    batch: int | None = None
    length: int | None = None
    rounds: int = 5
    steps: int = 2
    warmup: int = 3
    coverages: tuple[float, ...] = (DEFAULT_COVERAGE,)
    variants: tuple[str, ...] = ()
    compile: bool = True
    bucket_bytes: int | None = None
    links: tuple[str, ...] = LINKS
    timeout: float = 300.0
    seed: int = 0
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    size: Size | None = None
    json_path: str | None = None
    plot_path: str | None = None
    profile_path: str | None = None
    delay: str | None = None

    def __post_init__(self) -> None:
        if self.one_of < 2:
            raise SDPError(f"--one-of {self.one_of}: one worker of how many? Give at least 2.")
        if not self.coverages:
            raise SDPError("--coverages: name at least one, such as 1,0.75,0.5,0.25.")
        for coverage in self.coverages:
            check_policy_words("neuron", coverage)
        for option, value, known in (("--dtype", self.dtype, DTYPES), *(("--links", one, LINKS) for one in self.links)):
            if value not in known:
                raise SDPError(f"{option} {value}: choose among {', '.join(known)}.{did_you_mean(value, known)}")
        choose(self.variants, self.compile, VARIANTS)
        self._check_model()
        check_file("--json", self.json_path)
        check_file("--plot", self.plot_path)
        check_folder("--profile", self.profile_path)
        self._check_delay()

    def _check_delay(self) -> None:
        if self.delay is None or self.delay in LINKS:
            return
        try:
            good = 0 < float(self.delay) < float("inf")
        except ValueError:
            good = False
        if not good:
            raise SDPError(
                f"--delay {self.delay}: name a link ({', '.join(LINKS)}), or the milliseconds that a MiB takes."
                f"{did_you_mean(self.delay, LINKS)}"
            )

    def _check_model(self) -> None:
        language = self.model == GPT or self.model.startswith(("gpt2-", "llama-"))
        if self.model in (GPT, *NAMED):
            if self.inputs or self.overrides or self.size:
                raise SDPError(f"{self.model} has a fixed size. Leave --input, --set, --small and --full out.")
        else:
            language = False
            try:
                check_words(self.model, self.inputs, self.overrides, self.size)
            except SDPError as error:
                raise SDPError(f"{error} With --one-of also {', '.join(NAMED)}.") from None
        if self.length is not None and not language:
            raise SDPError(f"--length {self.length}: {self.model} takes no tokens of a chosen length. Leave it out.")

    @property
    def chosen(self) -> tuple[Variant, ...]:
        """The variants that take part."""
        return choose(self.variants, self.compile, VARIANTS)

    @property
    def runs(self) -> tuple[tuple[Variant, float | None], ...]:
        """Each variant with each coverage, which only those of SDP have."""
        return tuple(
            (variant, coverage)
            for variant in self.chosen
            for coverage in (self.coverages if variant.kind == "sdp" else (None,))
        )

    def trace_path(self, variant: Variant, coverage: float | None) -> Path | None:
        """Returns the file of a variant's trace, if traces are asked for."""
        if self.profile_path is None:
            return None
        return Path(self.profile_path).resolve() / f"{variant.name}{'' if coverage is None else f'-{coverage:g}'}.json"

    def dumps(self) -> str:
        """Returns the settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> OneOfSettings:
        """Returns the settings that ``dumps`` wrote."""
        fields: dict[str, Any] = json.loads(text)
        for name in ("coverages", "variants", "links", "inputs", "overrides"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
