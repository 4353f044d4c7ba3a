"""Draws a module from a seed and writes it as Python source."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tools.fuzz.draft import LAYOUTS, Draft, Layout, Shared
from tools.fuzz.fragments import FRAGMENTS
from tools.fuzz.steps import draw_steps, variants_of

HEADER = """\
import dataclasses
import functools
import itertools
import math
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
"""

_ORDINARY = ("layers", "blocks")
"""The groups of fragments that half of the lines are drawn from."""

_CUT = ("residual", "residual_list", "gated")
"""Fragments that every policy can cut; each module has one."""

_INPUTS: dict[Layout, tuple[str, int]] = {
    "rows": ("torch.randn(4, 5)", 5),
    "sequence": ("torch.randn(3, 6, 5)", 5),
    "image": ("torch.randn(2, 3, 6, 6)", 3),
}
"""The first input, and its number of features."""


@dataclass(frozen=True)
class Gene:
    """One fragment of a module; for ``child``, a module of its own with further genes inside.

    Attributes:
        name: The name of the fragment.
        seed: Decides what the fragment leaves open.
        number: Makes names unique; it stays when other genes are removed.
        inside: The genes of a child.
    """

    name: str
    seed: int
    number: str
    inside: tuple[Gene, ...] = ()


@dataclass(frozen=True)
class Design:
    """All that decides a module and what is done with it.

    Attributes:
        seed: The seed that it was drawn from.
        layout: The shape of the hidden tensor.
        tokens: Whether the first input holds token numbers.
        genes: The fragments, in order.
        settings: The constants of the source, such as the policy.
    """

    seed: int
    layout: Layout
    tokens: bool
    genes: tuple[Gene, ...]
    settings: tuple[tuple[str, Any], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fragments."""
        return tuple(gene.name for gene in self.all_genes)

    @property
    def all_genes(self) -> tuple[Gene, ...]:
        """The fragments, each child before those inside of it."""
        return tuple(_walk(self.genes))

    def without(self, number: str) -> Design:
        """Returns the design without one gene."""
        return replace(self, genes=_without(self.genes, number))


def draw(seed: int, wanted: Sequence[str] = (), alone: bool = False) -> Design:
    """Returns the design of a seed.

    Args:
        seed: The seed; the same one gives the same design.
        wanted: Names of fragments, one of which the module must have; consecutive seeds take them in turn.
        alone: Whether the module has nothing else but a residual branch.
    """
    chance = random.Random(f"module {seed}")
    if alone and not wanted:
        wanted = sorted(FRAGMENTS)
    name = wanted[seed % len(wanted)] if wanted else ""
    layouts = FRAGMENTS[name].layouts if name else LAYOUTS
    layout = chance.choice([one for one in layouts for _ in range(2 if one == "sequence" else 1)])
    count = 0 if alone else chance.choice((1, 2, 2, 3, 3, 4, 5))
    genes = [_gene(chance, str(number), layout, deep=False) for number in range(count)]
    if name:
        genes.insert(chance.randrange(count + 1), Gene(name, chance.randrange(10**6), str(count)))
    if not any(one.name in _CUT for one in genes):
        genes.insert(chance.randrange(len(genes) + 1), Gene("residual", chance.randrange(10**6), str(count + 1)))
    tokens = layout == "sequence" and chance.random() < 0.25
    return Design(seed, layout, tokens, tuple(genes), tuple(_settings(chance).items()))


def write(design: Design) -> str:
    """Returns the source of a design: the module, ``build()``, ``variants()`` and what is done with it."""
    shared = Shared()
    model = Draft(random.Random(design.seed), design.layout, 8, shared)
    example, features = _INPUTS[design.layout]
    if design.tokens:
        example = "torch.randint(0, 20, (3, 6))"
        model.init.append("self.embed = nn.Embedding(20, 8)")
    else:
        model.init.append(f"self.embed = {model.dense(8, of=features)}")
    model.add("h = self.embed(x)")
    for gene in design.genes:
        _write(gene, model)
    model.init.append(f"self.head = {model.dense(3)}")
    result = ", ".join(["self.head(h)", *shared.outputs])
    form = random.Random(f"result {design.seed}").choice(("({0},)", "{{'y': ({0},)}}", "[{0}]"))
    model.add(f"return {form.format(result) if shared.outputs else result}")
    inputs = dict(sorted({"x": example, **shared.arguments}.items(), key=lambda one: not one[1]))  # optional ones last
    variants = variants_of(design.layout, design.tokens, inputs)
    steps = draw_steps(random.Random(f"steps {design.seed}"), list(variants), shared)
    constants = {
        **dict(design.settings),
        "READ": tuple(shared.read),
        "UNREGISTERED": tuple(shared.unregistered),
        "IS_RANDOM": shared.is_random,
        "STEPS": steps,
    }
    parts = [
        f"# Seed {design.seed}: {', '.join(design.names)}.\n{HEADER}",
        *shared.top,
        _class("Model", model, ", ".join(inputs)),
        _build(", ".join(value for value in inputs.values() if value), shared.after),
        _variants(variants),
        "\n".join(f"{name} = {_literal(value)}" for name, value in constants.items()),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _gene(chance: random.Random, number: str, layout: Layout, deep: bool) -> Gene:
    if not deep and chance.random() < 0.15:
        inside = [_gene(chance, f"{number}_{n}", layout, deep=True) for n in range(chance.choice((1, 2, 3)))]
        return Gene("child", chance.randrange(10**6), number, tuple(inside))
    ordinary = chance.random() < 0.4
    fitting = {
        name: one
        for name, one in FRAGMENTS.items()
        if layout in one.layouts and not (deep and one.only_in_root) and (one.group in _ORDINARY) == ordinary
    }
    name = chance.choices(list(fitting), [one.weight for one in fitting.values()])[0]
    return Gene(name, chance.randrange(10**6), number)


def _settings(chance: random.Random) -> dict[str, Any]:
    workers = chance.choice((2, 3, 4))
    level = chance.choice(("neuron", "neuron", "block", "auto"))
    policy: dict[str, Any] = {"policy": level, "coverage": chance.choice((0.5, 0.75))}
    policy["masking"] = chance.choice(("forward", "backward"))
    if workers > 2 and chance.random() < 0.25:  # axes that meet need more owners
        policy = {"policy": level, "replicas": workers - 1, "masking": policy["masking"], "axes": "all", "scope": "all"}
    return {
        "DTYPE": chance.choices(("float64", "float32", "autocast"), (86, 8, 6))[0],
        "POLICY": policy,
        "WORKERS": workers,
        "RANK": chance.randrange(workers),
        "LOWERING": chance.choice(("sliced",) * 7 + ("masked",)),
    }


def _write(gene: Gene, draft: Draft) -> None:
    draft.chance, draft.number = random.Random(gene.seed), gene.number
    if gene.name != "child":
        FRAGMENTS[gene.name].write(draft)
        return
    name = draft.name("child")
    inner = Draft(draft.chance, draft.layout, draft.width, draft.shared, path=f"{draft.path}{name}.")
    for one in gene.inside:
        _write(one, inner)
    inner.add("return h")
    draft.shared.top.append(_class(draft.name("Child"), inner, "h"))
    layer = draft.set("child", f"{draft.name('Child')}()")
    calls = [f"h = {layer}(h)"]
    if inner.width == draft.width:
        calls += [f"h = h + {layer}(h)", f"h = {layer}({layer}(h))", f"for _ in range(2):\n    h = h + {layer}(h)"]
    draft.add(random.Random(gene.seed).choice(calls))
    draft.width = inner.width


def _class(name: str, draft: Draft, arguments: str) -> str:
    init = "\n".join(["super().__init__()", *draft.init])
    forward = "\n".join(draft.forward)
    methods = "".join(f"{textwrap.indent(method, ' ' * 4)}\n\n" for method in draft.methods)
    return (
        f"class {name}(nn.Module):\n"
        f"    def __init__(self):\n{textwrap.indent(init, ' ' * 8)}\n\n{methods}"
        f"    def forward(self, {arguments}):\n{textwrap.indent(forward, ' ' * 8)}"
    )


def _build(example: str, after: Sequence[str]) -> str:
    lines = "".join(f"    {line}\n" for line in after)
    return f"def build():\n    model = Model()\n{lines}    return model, ({example},)"


def _variants(variants: dict[str, str]) -> str:
    lines = "".join(f"        {name!r}: {value},\n" for name, value in variants.items())
    return f"def variants():\n    return {{\n{lines}    }}"


def _literal(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "(\n" + "".join(f"    {item!r},\n" for item in value) + ")"
    return repr(value)


def _walk(genes: Sequence[Gene]) -> Iterator[Gene]:
    for gene in genes:
        yield gene
        yield from _walk(gene.inside)


def _without(genes: Sequence[Gene], number: str) -> tuple[Gene, ...]:
    kept = [replace(gene, inside=_without(gene.inside, number)) for gene in genes if gene.number != number]
    return tuple(gene for gene in kept if gene.name != "child" or gene.inside)
