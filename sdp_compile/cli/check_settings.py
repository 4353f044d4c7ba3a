"""The options of ``sdp-compile check``."""

from __future__ import annotations

from dataclasses import dataclass

from sdp_compile.command_words import check_file, check_passes_words, check_policy_words, check_ranks
from sdp_compile.errors import SDPError
from sdp_compile.models.configuration import Size
from sdp_compile.models.words import LIBRARIES, check_words


@dataclass(frozen=True)
class CheckSettings:
    """The options of one run of ``sdp-compile check``. Raises `SDPError` for words that cannot be right."""

    model: str | None = None
    zoo: str | None = None
    policy: str = "auto"
    coverage: float | None = None
    masking: str | None = None
    node_size: int | None = None
    passes: str | None = None
    workers: int = 4
    ranks: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    size: Size | None = None
    limit: int | None = None
    seed: int = 0
    json_path: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.zoo is None):
            raise SDPError("Name one MODEL to check, or a whole library with --zoo torchvision, timm or transformers.")
        check_policy_words(self.policy, self.coverage, self.node_size, self.workers)
        check_passes_words(self.passes)
        check_ranks(self.ranks, self.workers)
        check_file("--json", self.json_path)
        if self.zoo is not None and self.zoo not in LIBRARIES:
            raise SDPError(f"--zoo {self.zoo}: the libraries are {', '.join(LIBRARIES)}.")
        if self.zoo is not None and (self.inputs or self.overrides or self.passes or self.size == "full"):
            raise SDPError("--input, --set, --passes and --full belong to one MODEL, not to --zoo.")
        if self.model is not None:
            check_words(self.model, self.inputs, self.overrides, self.size)
