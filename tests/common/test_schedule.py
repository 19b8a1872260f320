"""Learning rates rise and fall as they should."""

import pytest

from common.schedule import rate


def test_the_rate_rises_and_falls() -> None:
    assert [rate(step, 100, 4, False) for step in (0, 1, 3, 50)] == [0.25, 0.5, 1.0, 1.0]
    assert rate(0, 100, 0, True) == 1.0
    assert rate(50, 100, 0, True) == pytest.approx(0.51)
    assert rate(100, 100, 0, True) == pytest.approx(0.02)
