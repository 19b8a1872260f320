"""How far long work is, on standard error: bars on a terminal, elsewhere a plain line every half a minute."""

import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines of a log; work that takes less leaves none."""
_LOOKED_BACK = 600.0
"""Seconds over which a log's speed is taken, since a single video may take minutes."""


class Bars(Progress):
    """Rich's bars; where standard error is no terminal, a line about the newest task every `every` seconds.

    Args:
        more: columns before the time that is left.
        shown: False shows nothing anywhere.
        transient: take the bars away at the end.
        every: seconds between two lines.
    """

    def __init__(
        self, *more: ProgressColumn, shown: bool = True, transient: bool = False, every: float = EVERY
    ) -> None:
        console = Console(stderr=True)
        terminal = console.is_terminal
        super().__init__(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn()),
            console=console,
            transient=transient,
            speed_estimate_period=30.0 if terminal else _LOOKED_BACK,
            disable=not (shown and terminal),
        )
        self._every, self._spoken = every, shown and not terminal
        self._ended = threading.Event()

    def start(self) -> None:
        """Show them, or begin to tell."""
        super().start()
        if self._spoken:
            threading.Thread(target=self._tell, daemon=True).start()

    def stop(self) -> None:
        """End; harmless where nothing was started."""
        self._ended.set()
        super().stop()

    def counted(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """The same items under a bar of their own; `total` is for those that do not know their number."""
        task = self.add_task(label, total=len(items) if isinstance(items, Sized) else total)
        for item in items:
            yield item
            self.advance(task)

    def _tell(self) -> None:
        while not self._ended.wait(self._every):
            if self.tasks:
                print(_line(self.tasks[-1]), file=sys.stderr, flush=True)


def counted(items: Iterable[T], label: str, total: int | None = None, *, transient: bool = False) -> Iterator[T]:
    """The same items, counted by `Bars` that are there until the last of them is done."""
    with Bars(transient=transient) as bars:
        yield from bars.counted(items, label, total)


def _line(task: Task) -> str:
    """`faces in a.mp4: 120 of 480 after 30 s, about 90 s left`."""
    count = f"{task.completed:.0f}" + ("" if task.total is None else f" of {task.total:.0f}")
    left = "" if task.time_remaining is None else f", about {_duration(task.time_remaining)} left"
    return f"{task.description}: {count} after {_duration(task.elapsed or 0.0)}{left}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
