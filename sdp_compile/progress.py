"""Progress bars on a terminal; silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:  # the command line shows progress before torch is loaded
    from torch import Tensor


@contextmanager
def stages(count: int) -> Iterator[Callable[[str], None]]:
    """Shows a bar over ``count`` stages on standard error. Call the yielded function as each stage begins."""
    console = Console(stderr=True)
    bars = RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bars.add_task("", total=count, completed=-1, visible=False)
    with bars:
        yield lambda description: bars.update(task, description=description, advance=1, visible=True)


class Progress:
    """One line per stage on standard error, where ``shown``: pass True on one rank only."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._bars.stop()

    def stage(self, description: str, steps: int | None = None) -> None:
        """Begins the next stage; ``steps`` is its number of steps, if known."""
        self._finish()
        self._task = self._bars.add_task(description, total=steps, note="")

    def step(self, done: int, loss: Tensor) -> None:
        """Shows that ``done`` steps of this stage are finished, with this worker's loss."""
        if self._task is not None and not self._bars.disable:
            self._bars.update(self._task, completed=done, note=f"loss {loss.item():.3f}")

    def note(self, text: str) -> None:
        """Shows a text beside this stage until the next step."""
        if self._task is not None and not self._bars.disable:
            self._bars.update(self._task, note=text)

    def _finish(self) -> None:
        if self._task is not None:
            total = self._bars.tasks[self._task].total or 1
            self._bars.update(self._task, total=total, completed=total)
            self._bars.stop_task(self._task)
