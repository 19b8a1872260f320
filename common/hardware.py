"""What this software runs on: in one line beside a measurement, and as a number of cores."""

import os
import platform
from pathlib import Path

import torch


def describe_hardware() -> str:
    """Processor, threads, accelerators and torch version, such as `AMD EPYC, 2 threads; torch 2.11.0`."""
    threads = torch.get_num_threads()
    parts = [f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"]
    parts += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(parts)}; torch {torch.__version__}"


def _processor(info: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
