"""Order, bounds, exceptions and endings of work in other threads; stages of a stopwatch."""

import threading
import time
from collections.abc import Iterator

import pytest

from common.background import ahead, behind
from common.stopwatch import Stopwatch


def test_items_come_in_order_from_one_other_thread_and_not_too_early() -> None:
    made: list[int] = []
    names: set[str] = set()

    def items() -> Iterator[int]:
        for k in range(20):
            made.append(k)
            names.add(threading.current_thread().name)
            yield k

    taken = []
    for k in ahead(items(), 3):
        taken.append(k)
        time.sleep(0.001)
        assert len(made) <= len(taken) + 4
    assert taken == list(range(20))
    assert len(names) == 1
    assert threading.current_thread().name not in names


def test_none_and_nothing_are_items_like_others() -> None:
    assert list(ahead([None, 0, None], 5)) == [None, 0, None]
    assert list(ahead([], 2)) == []


def test_what_fails_while_reading_ahead_fails_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("gone")

    stream = ahead(items(), 4)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="gone"):
        next(stream)


def test_reading_ahead_ends_with_its_reader() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        k = 0
        while True:
            made.append(k)
            yield k
            k += 1

    stream = ahead(endless(), 2)
    assert next(stream) == 0
    stream.close()
    count = len(made)
    time.sleep(0.02)
    assert len(made) == count <= 5


def test_calls_are_made_in_order_and_all_of_them() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        time.sleep(0.001)
        done.append(k)

    with behind(work, 3) as call:
        for k in range(12):
            call(k)
            assert k - len(done) <= 4
    assert done == list(range(12))


def test_a_failing_call_ends_the_block_and_drops_the_others() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        if k == 2:
            raise OSError("disk full")
        done.append(k)

    def run() -> None:
        with behind(work, 4) as call:
            for k in range(100):
                call(k)
                time.sleep(0.001)

    with pytest.raises(OSError, match="disk full"):
        run()
    assert 2 not in done
    assert len(done) < 20


def test_an_exception_in_the_block_wins() -> None:
    done: list[int] = []

    def work(k: int) -> None:
        time.sleep(0.01)
        done.append(k)

    def run() -> None:
        with behind(work, 50) as call:
            for k in range(20):
                call(k)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert len(done) < 5


def test_inner_stages_stop_the_outer_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 8.0, 20.0, 21.0, 21.5])
    monkeypatch.setattr("common.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch("outer"):  # from 0
        with watch("inner"):  # 1 to 3
            pass
        watch.around("inner", lambda: None)()  # 7 to 8
    assert watch.seconds == {"outer": 1 + 4 + 12, "inner": 2 + 1}
    assert list(watch.each("each", [])) == []
    assert watch.seconds["each"] == 0.5


def test_making_items_is_timed_and_using_them_is_not() -> None:
    def items() -> Iterator[int]:
        for k in range(2):
            time.sleep(0.01)
            yield k

    watch = Stopwatch()
    for _ in watch.each("make", items()):
        time.sleep(0.05)
    assert 0.02 <= watch.seconds["make"] < 0.09
