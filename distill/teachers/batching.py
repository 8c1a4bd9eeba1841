"""How many pictures or prompts to compute at once: from the memory that is free, and fewer after it ran out, without losing work."""

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What PyTorch's errors say when an allocation fails on a CPU or inside a library of CUDA's; their type is only RuntimeError."""

Part = TypeVar("Part")


PROBED = (1, 4)
"""Items in the two calls that ``footprint`` compares."""


class OutOfMemoryError(TeacherError, MemoryError):
    """Even one picture or prompt does not fit into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory that a call takes at its peak: ``fixed_bytes`` and ``bytes_each`` per item."""

    fixed_bytes: int
    bytes_each: int


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
    def from_memory(cls, cost: Footprint, ceiling: int, device: torch.device, what: str = "items") -> "BatchSize":
        """Take as many items as ``SHARE`` of the free memory holds, a power of two, at most ``ceiling``."""
        fitting = (int(SHARE * free_memory(device)) - cost.fixed_bytes) // max(1, cost.bytes_each)
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
    let_go()


def let_go() -> None:
    """Give back what a failed call left behind; call it outside the handler, whose error keeps the call's tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def footprint(call: Callable[[int], object], device: torch.device) -> Footprint | None:
    """Measure on a GPU what ``call`` takes for a number of items, from two small calls after one that warms up.

    Returns:
        None where not even these fit.
    """
    few, more = PROBED
    try:
        call(few)  # libraries take their workspaces with the first call, and keep them
        least, most = (_peak_bytes(call, count, device) for count in PROBED)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        least = most = 0
    if not most:
        let_go()
        return None
    each = max(1, (most - least) // (more - few))
    return Footprint(fixed_bytes=max(0, least - few * each), bytes_each=each)


def fit(call: Callable[[int], object], device: torch.device, *, usual: int, most: int, what: str) -> BatchSize:
    """Return how many items to compute at once: the usual number, or on a GPU what its memory holds.

    Args:
        call: computes so many items; asked on a GPU only.
        device: where.
        usual: items per call elsewhere.
        most: items per call beyond which a GPU gains nothing.
        what: the items' name.
    """
    if device.type != "cuda":
        return BatchSize(usual, what)
    cost = footprint(call, device)
    return BatchSize(1, what) if cost is None else BatchSize.from_memory(cost, most, device, what)


def _peak_bytes(call: Callable[[int], object], count: int, device: torch.device) -> int:
    """Return how far a call raises the memory that PyTorch has given out on a GPU."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(count)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


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
