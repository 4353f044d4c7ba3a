"""The contract with weights: the mean over all tokens of the owners, however uneven their batches are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.contract.contract import Contract, Sum, rescale
from sdp_compile.runtime.contract.window import Found, Window
from sdp_compile.runtime.waiting.patience import complete
from sdp_compile.runtime.waiting.words import workers_text

_OUTSIDE = "ran a backward outside `with model.weighted(tokens):`"
_A_PART = "zeroed the gradients of some parameters and not of others since the last backward"


class Tokens(Contract):
    """The mean over the owners' tokens, from gradients that are means over the tokens of one micro-batch each.

    ``.grad`` holds what was accumulated in units of the last micro-batch's weight, so that the first micro-batch of a
    step costs nothing, and later ones rescale what is there. After a reduction it holds the owners' common mean, whose
    weight is this worker's own tokens: the owners' parts of it sum to the whole, so later micro-batches join the mean.

    Args:
        holdings: Which tensors the worker holds.
        groups: The workers' process groups.
    """

    name = "tokens"
    watches = True

    def __init__(self, holdings: Holdings, groups: Groups) -> None:
        self._holdings, self._groups = holdings, groups
        self._window = Window()
        self._unit = 1.0  # the weight of .grad
        self._tokens = 0.0  # of this worker since its gradients were zeroed
        self._reference = 0.0  # a typical weight, so that gradients keep their magnitude on the way
        self._everyone: list[float] = []  # the tokens of all workers at this reduction
        self._before: list[float] = []  # and at the last one since gradients were zeroed
        self._weight: float | None = None
        self._is_counted = False
        self._problem: str | None = None
        self.is_ready = False  # until a typical weight is known

    @contextmanager
    def weighted(self, tokens: Any) -> Iterator[None]:
        """Within this context, what backward accumulates is the mean over ``tokens`` tokens."""
        weight = _number(tokens)
        before = self._weight, self._is_counted
        self._weight, self._is_counted = weight, False
        try:
            yield
        finally:
            self._weight, self._is_counted = before

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(partial(self._window.note, parameters))
        found, weight = self._window.find(parameters), self._weight
        if found == Found.NOTHING:
            self._tokens, self._before, self._is_counted, self._problem = 0.0, [], False, None
        if found == Found.A_PART:
            self._problem = self._problem or _A_PART
        if weight is None:
            self._problem = self._problem or _OUTSIDE
        elif not (math.isfinite(weight) and weight >= 0):
            self._problem = self._problem or f"passed {weight} to model.weighted()"
        self.ignores = weight == 0
        if self._problem is None and weight:
            if found != Found.NOTHING:
                rescale(parameters, self._unit / weight)
            self._unit = weight
            if not self._is_counted:
                self._tokens += weight
                self._is_counted = True

    def scale(self) -> float:
        return self._unit / self._reference

    def agree(self) -> None:
        self._everyone = self._gathered()
        if not all(self._everyone):
            self._check_owners()
        if not self._reference:
            self._reference = self._typical()

    def abandon(self) -> None:
        problem, self._problem = self._problem, "had an error in a backward"
        try:
            with suppress(SDPError):  # it is for the others; this worker has its own
                self._gathered()
        finally:
            self._problem = problem

    def factor(self, owners: OwnerSet) -> float:
        return len(owners) * self._reference / self._sum(self._everyone, owners)

    def own_factor(self) -> float:
        return self._unit / self._tokens if self._tokens else 1.0  # without tokens nothing is its own

    def kept(self, owners: OwnerSet) -> float:
        return self._sum(self._before, owners) / self._sum(self._everyone, owners) if self._before else 1.0

    def end(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._unit, self._before, self._reference = self._tokens, self._everyone, self._typical()
        self.is_ready = True
        self._window.note(parameters)

    def dropped(self, names: Iterable[str]) -> None:
        self._window.forget(names)

    def _gathered(self) -> list[float]:
        """Returns the tokens of all workers; raises on all of them if any had a problem. Collective."""
        groups, own = self._groups, math.nan if self._problem else self._tokens
        everyone = torch.full((groups.workers,), own, dtype=torch.float64)
        if groups.workers > 1:
            with explained(tuple(range(groups.workers)), "the weights of gradients", groups.rank):
                parts, mine = list(everyone.split(1)), everyone[:1].clone()
                complete(dist.all_gather(parts, mine, group=groups.control, async_op=True), everyone)
            groups.traffic.add("control", "all_gather", everyone.nbytes, groups.workers)
        if everyone.isnan().any():
            problems = groups.gather_json(self._problem) if groups.workers > 1 else [self._problem]
            texts = [f"worker {rank} {text}" for rank, text in enumerate(problems) if text]
            raise SDPError(
                f"Gradients cannot be weighed (reduction='tokens'): {'; '.join(texts)}. Run each micro-batch's "
                "backward within `with model.weighted(tokens):`, with its number of tokens (0 if it has none), and "
                "zero all gradients of the model together. Nothing was averaged; zero the gradients now."
            )
        result: list[float] = everyone.tolist()
        return result

    def _check_owners(self) -> None:
        """Raises the same error on all workers if all owners of a unit have no tokens."""
        plan = self._holdings.plan
        for name, tensor in plan.state.items():
            if tensor.kind != "parameter" or not tensor.requires_grad:
                continue
            for piece in plan.pieces(name):
                if piece.numel and piece.owners and not self._sum(self._everyone, piece.owners):
                    owners = list(piece.owners)
                    raise SDPError(
                        f"The gradient of the units of {name!r} that {workers_text(owners)} own would be a mean over 0 "
                        "tokens. Give one of these workers a batch with tokens, or skip this step on all workers. "
                        "Nothing was averaged; zero the gradients now."
                    )

    def _typical(self) -> float:
        """Returns the mean weight of all workers, rounded to a power of two so that scaling by it is exact."""
        return float(2.0 ** round(math.log2(sum(self._everyone) / len(self._everyone))))

    @staticmethod
    def _sum(weights: list[float], owners: OwnerSet) -> float:
        return math.fsum(weights[owner] for owner in owners)


def contract_of(reduction: str, holdings: Holdings, groups: Groups) -> Contract:
    """Returns the contract of this name."""
    if reduction == "tokens":
        return Tokens(holdings, groups)
    return Sum(groups.workers) if reduction == "sum" else Contract()


def tokens_of(contract: Contract) -> Tokens:
    """Returns the contract; raises `SDPError` if it is another one than that of ``reduction="tokens"``."""
    if not isinstance(contract, Tokens):
        raise SDPError(
            f"The model was compiled with reduction={contract.name!r}, for which weights mean nothing. Leave "
            "model.weighted() out, or pass reduction='tokens' to sdp.compile()."
        )
    return contract


def _number(tokens: Any) -> float:
    if isinstance(tokens, Tensor) and tokens.numel() == 1 and not tokens.is_complex() and tokens.dtype != torch.bool:
        return float(tokens.item())
    if not isinstance(tokens, bool) and isinstance(tokens, Real):
        return float(tokens)
    raise SDPError(
        f"model.weighted() takes the number of tokens of a micro-batch, got {_text(tokens)}. Pass a number or a tensor "
        "with one element."
    )


def _text(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else repr(value)
