"""Remembered results that survive the way into a worker process."""

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """`read(key)`, computed once a key and process.

    Unlike `functools.lru_cache` it can be pickled, which a loader does with its dataset wherever workers are spawned
    rather than forked. What is remembered stays behind.
    """

    def __init__(self, read: Callable[[Key], Value]) -> None:
        self.read = read
        self._known: dict[Key, Value] = {}

    def __call__(self, key: Key) -> Value:
        if key not in self._known:
            self._known[key] = self.read(key)
        return self._known[key]

    def __getstate__(self) -> dict[str, object]:
        return {"read": self.read, "_known": {}}
