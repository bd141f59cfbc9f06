"""Progress with time to go, on standard error, or nothing at all."""

import copy
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
        self._shown, self._named = shown, ""
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

    def say(self, text: str) -> None:
        """A line above the bars, also where there are none because nobody waits for them."""
        if self._shown:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def part(self, name: str) -> Iterator["Bars"]:
        """Bars that are named after a part of the run, and gone when it is done."""
        before = set(self._progress.task_ids)
        own = copy.copy(self)
        own._named = f"{self._named}{name}: "
        try:
            yield own
        finally:
            for bar in set(self._progress.task_ids) - before:
                self._progress.remove_task(bar)

    @contextmanager
    def counting(self, what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A bar of `total` steps; call the result with the number of steps made and, if it changes, a new text."""
        bar = self._progress.add_task(self._named + what, total=total, completed=done)

        def step(made: int = 1, text: str | None = None) -> None:
            self._progress.update(bar, advance=made, description=self._named + (text or what))

        yield step
        self._progress.update(bar, description=self._named + what)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """A bar for something that has no steps to count."""
        bar = self._progress.add_task(self._named + what, total=1)
        yield
        self._progress.update(bar, completed=1)
