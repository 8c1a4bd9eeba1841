"""How many pictures or prompts to compute at once: from the memory that is free, and fewer after it ran out, without losing work."""

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from distill.errors import TeacherError

SHARE = 0.6
"""Of the free memory that batches may take; the rest is for fragmentation and for what runs beside them."""
CGROUP = Path("/sys/fs/cgroup")
REFUSALS = (
    "can't allocate memory",
    "not enough memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What PyTorch's errors say when an allocation fails on a CPU or inside a library of CUDA's; their type is only RuntimeError."""

Part = TypeVar("Part")


class OutOfMemoryError(TeacherError, MemoryError):
    """Even one picture or prompt does not fit into memory."""


class BatchSize:
    """A number of items per call that shrinks when memory runs out, and stays shrunk.

    Args:
        size: items per call to begin with.
        what: the items' name for messages, such as ``"pictures"``.
    """

    def __init__(self, size: int, what: str = "items") -> None:
        self.size = max(1, size)
        self.what = what

    @classmethod
    def from_memory(cls, bytes_each: int, ceiling: int, device: torch.device, what: str = "items") -> "BatchSize":
        """Take as many items of ``bytes_each`` as ``SHARE`` of the free memory holds, a power of two, at most ``ceiling``."""
        fitting = int(SHARE * free_memory(device)) // max(1, bytes_each)
        size = 1
        while 2 * size <= min(fitting, ceiling):
            size *= 2
        return cls(size, what)

    def halve(self) -> bool:
        """Halve; return False where nothing smaller is left."""
        if self.size == 1:
            return False
        self.size //= 2
        return True


def in_batches(call: Callable[[slice], Part], count: int, batch: BatchSize) -> list[Part]:
    """Return ``call``'s results over ``range(count)``, in order, in slices of the batch's size.

    When memory runs out, what was computed is kept, the size is halved, and the same place is tried again.

    Args:
        call: computes the items of one slice.
        count: how many items there are.
        batch: the size; changed where it proves too large.

    Raises:
        OutOfMemoryError: if one item alone does not fit.
    """
    parts: list[Part] = []
    done = 0
    while done < count:
        some = slice(done, min(count, done + batch.size))
        failure = None
        try:
            parts.append(call(some))
            done = some.stop
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failure = str(error).splitlines()[0] if str(error) else type(error).__name__
        if failure is not None:  # outside the handler: the error's traceback would keep the failed call's tensors alive
            _give_way(batch, failure)
    return parts


def _give_way(batch: BatchSize, failure: str) -> None:
    if not batch.halve():
        message = f"out of memory with one of the {batch.what} at a time: {failure}. Use a smaller teacher, precision bf16, or a machine with more memory."
        raise OutOfMemoryError(message)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ran_out(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return not isinstance(error, OutOfMemoryError)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in REFUSALS)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device: unused ones, and those that PyTorch holds without using."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return min([int(psutil.virtual_memory().available), *_container_limit()])


def _container_limit() -> list[int]:
    """Return what a container's limit leaves, if there is one (cgroup v2)."""
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        return [max(0, limit - int((CGROUP / "memory.current").read_text()))]
    return []
