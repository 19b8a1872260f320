"""Progress where standard error is a log: lines while work is long, none while it is short; bars on a terminal."""

import re
import time

import pytest

from common.progress import Bars, counted


def spoken(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return [line for line in err.splitlines() if line]


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(every=0.05) as bars:
        for _ in bars.counted(iter("abc"), "faces", 3):
            time.sleep(0.12)
        for _ in bars.counted([1], "lips"):
            time.sleep(0.12)
    lines = spoken(capsys)
    assert all(re.fullmatch(r"(faces: [012] of 3|lips: 0 of 1) after 0 s(, about \d s left)?", line) for line in lines)
    assert {line.partition(" after")[0] for line in lines} >= {"faces: 0 of 3", "faces: 2 of 3", "lips: 0 of 1"}
    time.sleep(0.12)
    assert spoken(capsys) == []


def test_short_or_hidden_work_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted([1, 2], "clips")) == [1, 2]
    with Bars(every=0.01, shown=False) as bars:
        for _ in bars.counted([1], "clips"):
            time.sleep(0.05)
    assert spoken(capsys) == []


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bars(every=0.01) as bars:
        for _ in bars.counted(range(2), "clips"):
            time.sleep(0.03)
    shown = capsys.readouterr().err
    assert "clips" in shown
    assert "2/2" in shown
    assert "after" not in shown
