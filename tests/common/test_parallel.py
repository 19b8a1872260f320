"""Jobs in processes of their own: results as they end, their output in files, and a failure that is raised."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.parallel import in_processes


def work(number: int) -> tuple[int, int, int]:
    if number < 0:
        raise UserError("no such work")
    print(f"work {number}")
    return number**2, torch.get_num_threads(), os.getpid()


def test_results_come_with_their_places_and_output_goes_to_logs(tmp_path: Path) -> None:
    logs = [tmp_path / "logs" / f"{number}.log" for number in range(3)]
    results = dict(in_processes([partial(work, number) for number in range(3)], logs, jobs=2))
    assert {index: result[0] for index, result in results.items()} == {0: 0, 1: 1, 2: 4}
    assert {result[1] for result in results.values()} == {max(1, (os.cpu_count() or 1) // 2)}
    assert os.getpid() not in {result[2] for result in results.values()}
    assert [log.read_text() for log in logs] == [f"work {number}\n" for number in range(3)]


def test_a_failure_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such work"):
        list(in_processes([partial(work, -1)], [tmp_path / "log"], jobs=1))
