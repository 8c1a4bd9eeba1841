"""How many cores this process may use, and PyTorch told so.

PyTorch computes with every core that the process may run on. It does not see a container's quota: with 4 of 64 cores' time it starts 64
threads, which the kernel then stops for most of each period. ``OMP_NUM_THREADS`` in the environment, where it is set, decides alone.
"""

import os
from contextlib import suppress
from math import ceil
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
BY_HAND = "OMP_NUM_THREADS"


def available_cores() -> int:
    """Return the cores that the process's affinity and its container's quota leave; at least one."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([mine, *_quota()]))


def fit_threads() -> int:
    """Have PyTorch start no more threads than there are cores to run them, and return how many it starts; more are never set."""
    cores = available_cores()
    if BY_HAND not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    return torch.get_num_threads()


def _quota() -> list[int]:
    """Return how many cores' time the container may take, if that is limited: cgroup v2's ``cpu.max``, or what v1 had in its place."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return [] if quota == "max" else [ceil(int(quota) / int(period))]
    with suppress(OSError, ValueError):
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [ceil(int(quota) / int(period))] if int(quota) > 0 else []
    return []
