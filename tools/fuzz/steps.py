"""What is done with a module after it was compiled: calls at several sizes, and changes from outside between them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from tools.fuzz.draft import Layout, Shared

Step = tuple[object, ...]
"""A word and its operands.

``("train",)``, ``("eval",)``; ``("call", NAME[, "no_grad" | "input_grad"])`` with a variant's inputs; ``("sgd",)``,
a step along the last gradients; ``("set", PATH, VALUE)``; ``("scale_tensor", PATH, FACTOR)``;
``("global", NAME, VALUE)``; ``("environment", NAME, VALUE)``; ``("freeze", PARAMETER, None)``; ``("cast", DTYPE)``.
"""

_SIZES: dict[Layout, dict[str, tuple[int, ...]]] = {
    "rows": {"B7": (7,), "B1": (1,), "B5": (5,)},
    "sequence": {"T7": (3, 7), "T4": (3, 4), "T8": (3, 8), "T1": (3, 1), "B1": (1, 6), "B6": (6, 6)},
    "image": {"S8": (2, 8, 8), "S7": (2, 7, 5), "B1": (1, 6, 6), "B7": (7, 6, 6)},
}
"""The sizes of variants by name: the batch, then the free dimensions."""


def variants_of(layout: Layout, tokens: bool, inputs: Mapping[str, str]) -> dict[str, str]:
    """Returns the inputs of the calls other than the example's, by name, as expressions for tuples.

    Args:
        layout: The shape of the hidden tensor.
        tokens: Whether the first input holds token numbers.
        inputs: The parameters of ``forward``, with the expression of their example; those without one are optional.
    """
    required = {name: value for name, value in inputs.items() if value}
    variants = {}
    for name, sizes in _SIZES[layout].items():
        shape = {
            "rows": f"{sizes[0]}, 5",
            "sequence": ", ".join(map(str, (*sizes, 5))),
            "image": ", ".join(map(str, (sizes[0], 3, *sizes[1:]))),
        }[layout]
        values = [f"torch.randint(0, 20, ({', '.join(map(str, sizes))}))" if tokens else f"torch.randn({shape})"]
        if "w" in required:
            values.append(re.sub(r"\(\d+", f"({sizes[0]}", required["w"], count=1))
        variants[name] = f"({', '.join(values)},)"
    if "w" in required and layout == "sequence":
        variants["equal"] = "(" + ", ".join([*list(required.values())[:1], "torch.randn(3, 6, 5)"]) + ")"
    given = ", ".join(required.values())
    if "bias=None" in inputs:
        nothing = "0.5, " if list(inputs)[-1] == "bias=None" and "alpha=0.5" in inputs else ""
        variants["bias"] = f"({given}, {nothing}torch.ones(1))"
    if "alpha=0.5" in inputs:
        nothing = "None, " if list(inputs)[-1] == "alpha=0.5" and "bias=None" in inputs else ""
        variants["alpha"] = f"({given}, {nothing}1.5)"
    return variants


def draw_steps(chance: random.Random, variants: Sequence[str], shared: Shared) -> tuple[Step, ...]:
    """Returns what is done with the module.

    Args:
        chance: Makes the choices.
        variants: The names of further inputs.
        shared: Tells what can be changed from outside.
    """
    changes = list(shared.changes)
    chance.shuffle(changes)

    def call(name: str = "example") -> Step:
        how = chance.choices(((), ("no_grad",), ("input_grad",)), (80, 10, 10))[0]
        return ("call", name, *how)

    other = [chance.choice(list(variants)) for _ in range(3)]
    special = [name for name in ("bias", "alpha", "equal") if name in variants]
    steps: list[Step] = [("train",), ("call", "example")]
    if chance.random() < 0.6:
        steps.append(("sgd",))
    steps.append(call())
    steps += changes[:1]
    steps += [call(), call(other[0])]
    if chance.random() < 0.3:
        steps.append(("sgd",))
    steps += [("eval",), call(), call(other[1])]
    steps += changes[1:]
    if changes:
        steps.append(call())
    steps += [call(name) for name in special]
    if chance.random() < 0.04:
        steps.append(("cast", chance.choice(("float32", "float64"))))
    steps += [("train",), call(), call(other[2]), call()]
    return tuple(steps)
