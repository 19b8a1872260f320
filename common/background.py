"""Work beside other work, in order: reading ahead and writing behind, each in one thread of its own.

Decoders, encoders and networks leave Python's lock while they work, so that threads do run at the same time.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int) -> Generator[T]:
    """The same items, made by a thread that is at most `depth` of them ahead. What it raises is raised here."""
    iterator, end = iter(items), object()
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            waiting.extend(thread.submit(next, iterator, end) for _ in range(max(1, depth)))
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def behind(function: Callable[..., object], depth: int) -> Iterator[Callable[..., None]]:
    """A stand-in for `function` that returns at once; a thread makes the calls, in their order.

    At most `depth` calls wait, then the next one does. What a call raises is raised by a later call or at the end of
    the block, which waits for all of them; after an exception in the block the waiting ones are dropped.
    """
    waiting: deque[Future[object]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def call(*args: Any) -> None:
            while waiting and (len(waiting) >= depth or waiting[0].done()):
                waiting.popleft().result()
            waiting.append(thread.submit(function, *args))

        try:
            yield call
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
