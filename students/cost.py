"""What an answer costs: parameters, arithmetic, seconds, memory."""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod
from typing import Any, Self

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from storage import Archive
from students.predict import Student
from students.spec import Cost

_SAMPLE_SECONDS = 0.002
"""How often resident memory is looked at; a shorter allocation than this can be missed."""

_VISIBLE_BYTES = 1 << 20
"""A smaller rise is the noise of a process, and says that the answer fitted into memory the process held already."""


class _PeakMemory:
    """Watches how far resident (or CUDA) memory rises while the block runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.rise_bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            _give_back_free_memory()
            self._before = self._process.memory_info().rss
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.rise_bytes = torch.cuda.max_memory_allocated(self._device) - self._before
            return
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.rise_bytes = max(self.rise_bytes, self._process.memory_info().rss - self._before)


def _give_back_free_memory() -> None:
    """Return memory that was freed before to the system: an answer that reuses it would seem to need none. Only glibc can."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure_cost(
    name: str, modules: Iterable[nn.Module], answer: Callable[[], object], *, device: torch.device, repeats: int = 3, cases: int = 1
) -> Cost:
    """Measure what a call costs: once for memory (cold), once for arithmetic, then a few times for time.

    Args:
        name: Whose cost this is.
        modules: All networks that take part; shared parameters count once.
        answer: Answers for typical cases, reading included or not as the caller decides.
        device: Where it computes.
        repeats: Timed runs.
        cases: How many cases one call answers for; arithmetic and time are shared out among them, memory is not.
    """
    with _PeakMemory(device) as memory:
        answer()
    with FlopCounterMode(display=False, custom_mapping=_packed_products()) as counter:
        answer()
    return Cost(
        name=name,
        parameters=sum({id(p): p.numel() for module in modules for p in module.parameters()}.values()),
        flops_per_case=counter.get_total_flops() / cases,
        seconds_per_case=min(_seconds(answer, device) for _ in range(repeats)) / cases,
        peak_memory_bytes=memory.rise_bytes if memory.rise_bytes >= _VISIBLE_BYTES else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
    )


def _packed_products() -> dict[Any, Any]:
    """Return how oneDNN's products with packed weights, in which a teacher computes on a CPU, are counted: PyTorch's counter passes them over."""
    names = ((torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.onednn, "qlinear_pointwise"))
    found = (getattr(library, name, None) for library, name in names)
    return {operator: _product_flops for operator in found if operator is not None}


def _product_flops(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """Count the multiplications and additions of ``x``, by its shape ``(rows, in)``, times a weight."""
    return 2 * prod(x) * out_shape[-1]


def _seconds(answer: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    answer()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def student_cost(student: Student, archive: Archive, case: str) -> Cost:
    """Measure a student on one case, reading not included."""
    stored = archive[case]
    image, spacing, hints = student.image_of(stored), stored.spacing_zyx_mm, student.hints_of(stored)

    def answer() -> object:
        return student.predict(image, spacing, hints=hints)

    return measure_cost(f"student {student.name}", [student.network], answer, device=student.device)
