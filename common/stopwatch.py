"""Where the time of a pipeline goes, stage by stage."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds by stage. A stage inside another one stops the outer one's clock, so that the stages sum up to the whole.

    Attributes:
        seconds: of each stage, in the order of their first use.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the block's time for a stage."""
        self.seconds.setdefault(stage, 0.0)
        self._turn()
        self._running.append(stage)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; what it takes to make them is counted for a stage."""
        iterator = iter(items)
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def around(self, stage: str, function: Callable[..., object]) -> Callable[..., None]:
        """The same function; its time is counted for a stage."""

        def timed(*args: Any) -> None:
            with self(stage):
                function(*args)

        return timed

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
