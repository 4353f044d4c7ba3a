"""For each dimension of a tensor, the families that cut it or the reason why it stays whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdp_compile.inspector.modules import TensorInfo, Why


@dataclass(frozen=True)
class Reason:
    """Dimensions with the same explanation: the families that cut them, or why they stay whole."""

    dims: tuple[int, ...]
    cut: tuple[str, ...]
    frozen: Why | None

    @property
    def where(self) -> str:
        """``dim 0`` or ``dims 0, 1``."""
        return f"dim {self.dims[0]}" if len(self.dims) == 1 else f"dims {', '.join(map(str, self.dims))}"


def reasons(tensor: TensorInfo) -> list[Reason]:
    """Explains a tensor's dimensions: neighbours with the same explanation together, unexplained ones left out."""

    def explanation(number: int) -> tuple[tuple[str, ...], Why | None]:
        dim = tensor.dims[number]
        return tuple(dim.cut), None if dim.cut else dim.frozen

    grouped = ((explained, tuple(numbers)) for explained, numbers in groupby(range(len(tensor.dims)), key=explanation))
    return [Reason(dims, cut, frozen) for (cut, frozen), dims in grouped if cut or frozen]
