"""One of the two models that are compared: the eager original with masked parameters, or a subnetwork."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdp_compile.checking.oracle import scalar
from sdp_compile.planning.plan import Plan
from tools.fuzz.differences import Difference, differences, largest
from tools.fuzz.instance import Instance, assign, copied, find, is_plain
from tools.fuzz.steps import Step

_RATE = 0.05


@dataclass
class Result:
    """What one call returned and left behind.

    Attributes:
        output: What the model returned.
        inputs: The inputs after the call.
        gradients: The gradients by parameter, or by ``input NUMBER`` and ``unregistered PATH``.
        read: The attributes that the training loop reads; those that are missing are absent.
    """

    output: Any
    inputs: Any
    gradients: dict[str, Tensor]
    read: dict[str, Any]


@dataclass
class Side:
    """A model and what its training loop keeps.

    Attributes:
        instance: The namespace and the inputs.
        model: The module that is called.
        trained: Tensors that train although they are not registered, by path.
        plan: The plan, with whose masks the original's values are compared.
        rank: The worker.
        gradients: Those of the last call.
        seen: The results of earlier calls, whose graphs are gone.
        is_cast: Whether a step changed the dtype.
    """

    instance: Instance
    model: nn.Module
    trained: dict[str, Tensor]
    plan: Plan
    rank: int
    gradients: dict[str, Tensor] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)
    is_cast: bool = False

    @classmethod
    def of_original(cls, eager: Instance, plan: Plan, rank: int) -> Side:
        """Returns the original, its parameters multiplied by the worker's masks under forward masking."""
        side = cls(eager, eager.model, _unregistered(eager), plan, rank)
        if plan.masking == "forward":
            with torch.no_grad():
                for name, parameter in eager.model.named_parameters():
                    parameter.mul_(plan.mask(name, rank))
        return side

    @classmethod
    def of_subnetwork(cls, given: Instance, compiled: Any) -> Side:
        """Returns the compiled module of the model that was given to the compiler."""
        return cls(given, compiled, _unregistered(given), compiled.plan, compiled.rank)

    def do(self, step: Step, number: int) -> Result | None:
        """Does one step; a call returns a result."""
        word, *operands = step
        name = str(operands[0]) if operands else ""
        if word in ("train", "eval"):
            self.model.train(word == "train")
        elif word == "call":
            return self._call(name, number, str(operands[1]) if len(operands) > 1 else "")
        elif word == "sgd":
            self._descend()
        elif word == "set":
            assign(self.model, name, operands[1])
        elif word == "scale_tensor":
            assign(self.model, name, find(self.model, name) * operands[1])
        elif word == "global":
            self.instance.namespace[name] = operands[1]
        elif word == "environment":
            os.environ[name] = str(operands[1])
        elif word == "freeze":
            for key, parameter in self.model.named_parameters():
                if key == name:
                    parameter.requires_grad_(False)
        elif word == "cast":
            self.is_cast = True
            self.model.to(getattr(torch, name))
            self.instance.variants = pytree.tree_map_only(
                Tensor,
                lambda t: t.to(getattr(torch, name)) if t.is_floating_point() else t,
                self.instance.variants,
            )
        else:
            raise ValueError(f"no step {word!r}")
        return None

    def _call(self, variant: str, number: int, how: str) -> Result:
        inputs = [_other(value, number, how == "input_grad") for value in self.instance.variants[variant]]
        passed = [value * 1 if isinstance(value, Tensor) and value.requires_grad else value for value in inputs]
        with torch.set_grad_enabled(how != "no_grad"):
            output = self.model(*passed)
        read = {}
        for path in self.instance.namespace["READ"]:
            try:
                value = find(self.model, path)
            except AttributeError:
                continue
            read[path] = value if is_plain(value) else None
        leaves = {f"input {n}": value for n, value in enumerate(inputs) if getattr(value, "requires_grad", False)}
        wanted = {**dict(self.model.named_parameters()), **self.trained, **leaves}
        self.gradients = self._differentiated((output, read), wanted)
        return Result(copied_with_grad(output), copied(passed), self.gradients, copied_with_grad(read))

    def _differentiated(self, results: Any, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of a loss that depends on the output and on what was left to be read in this call."""
        known = {id(tensor) for tensor in self.seen}
        tensors = [one for one in pytree.tree_leaves(results) if isinstance(one, Tensor) and one.is_floating_point()]
        tensors = [one for one in tensors if one.requires_grad and one.grad_fn is not None and id(one) not in known]
        self.seen += tensors
        wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
        if not tensors or not wanted:
            return {}
        found = torch.autograd.grad(scalar(tensors), list(wanted.values()), retain_graph=True, allow_unused=True)
        return {name: one for name, one in zip(wanted, found, strict=True) if one is not None}

    def _descend(self) -> None:
        """A step of gradient descent, on the elements that the worker owns."""
        parameters = {**dict(self.model.named_parameters()), **self.trained}
        with torch.no_grad():
            for name, gradient in self.gradients.items():
                if name in parameters:
                    if name in self.plan.state and gradient.shape == self.plan.mask(name, self.rank).shape:
                        gradient = gradient * self.plan.mask(name, self.rank)
                    parameters[name].sub_(_RATE * gradient)

    def compared(
        self, actual: Result, expected: Result, original: Side, tolerance: float, above: float | None = None
    ) -> Iterator[Difference]:
        """Yields how a call of this side differs from the same call of the original.

        Args:
            actual: The result of this side.
            expected: The result of the original.
            original: The original, after the call.
            tolerance: The relative error of a tensor that is accepted.
            above: The largest error that is not yielded; None for the tolerance.
        """
        above = tolerance if above is None else above
        yield from differences("output", actual.output, expected.output, above)
        yield from differences("input", actual.inputs, expected.inputs, above)
        for path, value in expected.read.items():
            if path not in actual.read:
                yield Difference("missing attribute", path, "")
            else:
                wanted = self._as_held(path, value, actual.read[path])
                found = differences("attribute", actual.read[path], wanted, above)
                yield from (one.within(path) for one in found)
        yield from self._gradients(actual.gradients, expected.gradients, tolerance, above)
        for kind, ours, theirs in (
            ("parameter", self.model.named_parameters(), original.model.named_parameters()),
            ("buffer", self.model.named_buffers(), original.model.named_buffers()),
        ):
            known = dict(ours)
            for name, tensor in theirs:
                wanted = self._owned(name, tensor)
                if name in known:
                    found = differences(kind, self._owned(name, known[name]), wanted, above)
                    yield from (one.within(name) for one in found)
                elif wanted.numel():
                    yield Difference(kind, name, "is missing")

    def _as_held(self, path: str, expected: Any, actual: Any) -> Any:
        """Returns the original's attribute as the worker holds it: its slice of a plain tensor that the plan cuts."""
        if path not in self.plan.state or not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
            return expected
        mask, local = self.plan.mask(path, self.rank), self.plan.local_shape(path, self.rank)
        if actual.shape == expected.shape or mask.shape != expected.shape:
            return expected
        return expected[mask].reshape(local)

    def _owned(self, name: str, tensor: Tensor) -> Tensor:
        """The elements of a tensor of either side that the worker owns, flat."""
        tensor = tensor.detach()
        if name in self.plan.state and self.plan.mask(name, self.rank).shape == tensor.shape:
            return tensor[self.plan.mask(name, self.rank)]
        return tensor.reshape(-1)

    def _gradients(
        self, actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, above: float
    ) -> Iterator[Difference]:
        floor = max(1e-5, tolerance**0.5) * largest(expected.values())  # below, a gradient is only rounding
        for name in sorted({*actual, *expected}):
            if name in expected:
                wanted = self._owned(name, expected[name])
                got = self._owned(name, actual[name]) if name in actual else torch.zeros_like(wanted)
            else:
                got = self._owned(name, actual[name])
                wanted = torch.zeros_like(got)
            yield from (one.within(f"of {name}") for one in differences("gradient", got, wanted, above, floor))


def copied_with_grad(value: Any) -> Any:
    """Returns a value with copies of its tensors that still say whether they have a gradient."""
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), value
    )


def _other(value: Any, number: int, with_gradient: bool) -> Any:
    """Returns an input with other values in each call, so that a stale result differs."""
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        return value.roll(number, -1) if value.ndim else value.clone()
    return (value.detach() * (1 + number / 16) + number / 64).requires_grad_(with_gradient)


def _unregistered(instance: Instance) -> dict[str, Tensor]:
    return {f"unregistered {path}": find(instance.model, path) for path in instance.namespace["UNREGISTERED"]}
