"""The source of a module while it is written, and the table of fragments that write it."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Layout = Literal["rows", "sequence", "image"]
"""The shape of the hidden tensor ``h``: ``(batch, width)``, ``(batch, time, width)`` or ``(batch, width, y, x)``."""

LAYOUTS: tuple[Layout, ...] = ("rows", "sequence", "image")

FREE: dict[Layout, tuple[int, int]] = {"rows": (0, 4), "sequence": (1, 6), "image": (2, 6)}
"""The dimension whose size calls change, and its size in the example."""


@dataclass
class Shared:
    """What a module and its children write together.

    Attributes:
        top: Definitions before the classes.
        after: Lines of ``build()`` that follow the construction of ``model``.
        arguments: Parameters of the model's ``forward`` after ``x``, with the expression of their example.
        read: Paths of attributes that a training loop reads after a call.
        unregistered: Paths of tensors that train although the model does not register them.
        changes: Steps that change something from outside between calls.
        outputs: Expressions that the model returns beside its result.
        is_random: Whether torch draws random numbers in training mode.
    """

    top: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    unregistered: list[str] = field(default_factory=list)
    changes: list[tuple[object, ...]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    is_random: bool = False


@dataclass
class Draft:
    """A class that is being written; its ``forward`` keeps the hidden tensor in ``h``.

    Attributes:
        chance: Random choices of the current fragment.
        layout: The shape of ``h``.
        width: The number of features of ``h``.
        number: Makes the names of the current fragment unique.
        path: The module's path in the model, with a dot at the end; empty for the model itself.
        init: Lines of the constructor.
        methods: Further methods.
        forward: Lines of ``forward``.
    """

    chance: random.Random
    layout: Layout
    width: int
    shared: Shared
    number: str = ""
    path: str = ""
    init: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)

    @property
    def features(self) -> int:
        """The dimension of the features of ``h``."""
        return 1 if self.layout == "image" else -1

    @property
    def is_root(self) -> bool:
        """Whether this is the model itself, whose ``forward`` has the input ``x``."""
        return not self.path

    @property
    def free(self) -> int:
        """The dimension of ``h`` whose size calls change."""
        return FREE[self.layout][0]

    @property
    def size(self) -> int:
        """The size of that dimension in the example."""
        return FREE[self.layout][1]

    def name(self, stem: str) -> str:
        """Returns ``stem`` with the number of the fragment."""
        return f"{stem}{self.number}"

    def set(self, stem: str, value: str) -> str:
        """Adds ``self.STEM = value`` to the constructor, and returns ``self.STEM``."""
        name = self.name(stem)
        self.init.append(f"self.{name} = {value}")
        return f"self.{name}"

    def buffer(self, stem: str, value: str) -> str:
        """Registers a buffer, persistent or not, and returns ``self.STEM``."""
        name = self.name(stem)
        extra = self.chance.choice(("", "", ", persistent=False"))
        self.init.append(f'self.register_buffer("{name}", {value}{extra})')
        return f"self.{name}"

    def add(self, text: str) -> None:
        """Adds lines to ``forward``."""
        self.forward += textwrap.dedent(text).strip("\n").splitlines()

    def add_one(self, texts: Sequence[str]) -> None:
        """Adds one of several texts to ``forward``."""
        self.add(self.chance.choice(texts))

    def add_assertion(self, conditions: Sequence[str], message: str) -> None:
        """Adds an assertion of one of several conditions."""
        self.add(f'assert {self.chance.choice(conditions)}, "{message}"')

    def top(self, text: str) -> None:
        """Adds a definition before the classes, once."""
        text = textwrap.dedent(text).strip("\n")
        if text not in self.shared.top:
            self.shared.top.append(text)

    def read(self, stem: str) -> None:
        """Notes that the training loop reads the attribute after each call."""
        self.shared.read.append(self.path + self.name(stem))

    def change(self, stem: str, *values: object) -> None:
        """Notes that the attribute may be set to one of the values between calls."""
        self.shared.changes.append(("set", self.path + self.name(stem), self.chance.choice(values)))

    def dense(self, out: int, *, of: int = 0, bias: bool = True) -> str:
        """Returns the constructor of a linear layer over the features."""
        bias_text = "" if bias else ", bias=False"
        size = of or self.width
        return (
            f"nn.Conv2d({size}, {out}, 1{bias_text})"
            if self.layout == "image"
            else f"nn.Linear({size}, {out}{bias_text})"
        )

    def activation(self) -> str:
        """Returns the name of an activation function."""
        return self.chance.choice(("F.relu", "F.gelu", "F.silu", "torch.tanh", "torch.sigmoid"))

    def hidden(self) -> int:
        """Draws a width that heads and groups of 2 and 4 divide."""
        return self.chance.choice((8, 12, 16))

    def per_feature(self, name: str) -> str:
        """Returns an expression that makes a tensor of one number per feature broadcast over ``h``."""
        return f"{name}.view(-1, 1, 1)" if self.layout == "image" else name


Write: TypeAlias = Callable[[Draft], None]


@dataclass(frozen=True)
class Fragment:
    """One kind of lines.

    Attributes:
        write: Adds the lines to a draft.
        layouts: The shapes of ``h`` for which it can.
        weight: How often it is drawn, compared with others.
        only_in_root: Whether it needs the model's inputs.
        group: The file that it stands in.
    """

    write: Write
    layouts: tuple[Layout, ...]
    weight: float
    only_in_root: bool
    group: str

    def fits(self, draft: Draft) -> bool:
        """Whether the fragment can extend the draft."""
        return draft.layout in self.layouts and (draft.is_root or not self.only_in_root)


FRAGMENTS: dict[str, Fragment] = {}


def fragment(*layouts: Layout, weight: float = 1.0, only_in_root: bool = False) -> Callable[[Write], Write]:
    """Adds the decorated function to `FRAGMENTS` under its name; without ``layouts`` it fits all of them."""

    def register(write: Write) -> Write:
        group = write.__module__.rpartition(".")[2]
        FRAGMENTS[write.__name__] = Fragment(write, layouts or LAYOUTS, weight, only_in_root, group)
        return write

    return register
