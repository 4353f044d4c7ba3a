"""What becomes of each dimension of a tensor: cut by families, or kept whole, and why."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdp_compile.inspector.modules import TensorInfo, Why


@dataclass(frozen=True)
class Reason:
    """Dimensions of one fate: the families that cut them, or why they are whole."""

    dims: tuple[int, ...]
    cut: tuple[str, ...]
    frozen: Why | None

    @property
    def where(self) -> str:
        return f"dim {self.dims[0]}" if len(self.dims) == 1 else f"dims {', '.join(map(str, self.dims))}"


def reasons(tensor: TensorInfo) -> list[Reason]:
    """The fates of a tensor's dimensions; neighbours of one fate together, those that nothing is known of left out."""

    def fate(number: int) -> tuple[tuple[str, ...], Why | None]:
        dim = tensor.dims[number]
        return tuple(dim.cut), None if dim.cut else dim.frozen

    grouped = ((fate, tuple(numbers)) for fate, numbers in groupby(range(len(tensor.dims)), key=fate))
    return [Reason(dims, cut, frozen) for (cut, frozen), dims in grouped if cut or frozen]
