"""PyTorch starts as many threads as there are cores to run them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.teachers import cores
from distill.teachers.cores import available_cores, fit_threads


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of 64 cores; yields the folder in which its container's limits stand."""
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


def test_without_a_quota_the_affinity_counts(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() == 64
    (machine / "cpu.max").write_text("max 100000\n")
    assert available_cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert available_cores() == 3


@pytest.mark.parametrize(("limit", "count"), [("400000 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("9900000 100000", 64)])
def test_a_container_s_quota_counts_in_whole_cores(limit: str, count: int, machine: Path) -> None:
    (machine / "cpu.max").write_text(f"{limit}\n")
    assert available_cores() == count


@pytest.mark.parametrize(("quota", "count"), [("300000", 3), ("-1", 64)])
def test_so_does_the_older_kind_of_limit(quota: str, count: int, machine: Path) -> None:
    (machine / "cpu").mkdir()
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores() == count


def test_threads_that_no_core_would_run_are_not_started(machine: Path) -> None:
    torch.set_num_threads(3)
    (machine / "cpu.max").write_text("200000 100000\n")
    assert fit_threads() == 2
    assert torch.get_num_threads() == 2


def test_fewer_threads_than_cores_are_left_as_they_were_set(machine: Path) -> None:
    torch.set_num_threads(1)
    assert fit_threads() == 1


def test_what_the_environment_says_decides_alone(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (machine / "cpu.max").write_text("200000 100000\n")
    assert fit_threads() == 3
