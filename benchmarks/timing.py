"""Side-by-side timing: the things compared take turns, so that a busy machine slows them alike."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def interleaved_medians(
    functions: dict[str, Callable[[], object]], repeats: int = 15, warmup: int = 3
) -> dict[str, tuple[float, float]]:
    """(median, least) seconds of each function over `repeats` rounds in which each runs once.

    A GPU is waited for before and after every call.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            _wait()
            begin = time.perf_counter()
            function()
            _wait()
            seconds[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(times), min(times)) for name, times in seconds.items()}


def machine() -> str:
    """One line: processor, threads, torch, and the GPU if there is one."""
    parts = [f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)


def print_table(title: str, rows: dict[str, tuple[float, float]], *, scale: float = 1e3, unit: str = "ms") -> None:
    """Print medians and minima of `interleaved_medians`, multiplied by `scale`, under the title and the machine."""
    print(f"\n{title}\n{machine()}")
    width = max(len(name) for name in rows)
    print(f"{'':{width}}  {'median':>10}  {'min':>10}  {unit}")
    for name, (median, least) in rows.items():
        print(f"{name:{width}}  {median * scale:10.3f}  {least * scale:10.3f}")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
