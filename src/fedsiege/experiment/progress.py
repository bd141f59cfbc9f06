"""Progress with time to go, on standard error, or nothing at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """The bars of one run."""

    def __init__(self, shown: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=console,
            # In a file bars are noise: there is nobody to wait for them.
            disable=not (shown and (console.is_terminal or console.is_jupyter)),
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @contextmanager
    def counting(self, what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A bar of `total` steps; call the result with the number of steps made and, if it changes, a new text."""
        bar = self._progress.add_task(what, total=total, completed=done)

        def step(made: int = 1, text: str | None = None) -> None:
            self._progress.update(bar, advance=made, description=text or what)

        yield step
        self._progress.update(bar, description=what)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A bar for something that has no steps to count."""
        bar = self._progress.add_task(what, total=1)
        yield
        self._progress.update(bar, completed=1)
