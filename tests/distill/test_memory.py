"""Freed memory is kept, and used again without asking the kernel."""

import subprocess
import sys

import pytest

from distill.teachers.memory import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
from distill.teachers.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
assert not kept or keep_freed_memory()

def allocate():
    for _ in range(20):
        torch.ones(12_000_000)  # 48 MB: above glibc's largest threshold

allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[bool, int]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **environment},
    )
    kept, count = run.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_large_blocks_cost_no_page_faults_the_second_time() -> None:
    kept, few = faults("keep")
    if not kept:
        pytest.skip("not glibc")
    _, many = faults("leave")
    if many < 20 * 48_000_000 // 4096 // 2:
        pytest.skip("this kernel hands out huge pages, which hide what is measured")
    assert few < many / 100


def test_it_can_be_switched_off() -> None:
    kept, _ = faults("keep", SAMDISTILL_MALLOC="default")
    assert not kept


def test_on_other_systems_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()
