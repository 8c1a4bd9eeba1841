"""Bring arrays to a GPU and answers back without either side waiting for the other.

A GPU computes while the program goes on, until something has to be looked at. A plain copy is such a thing: it waits for everything
before it. So arrays go up from page-locked memory on a stream of their own, while the batch before them is still computed, and only what is
computed from them waits for them; answers come down on another one, many at a time, and are waited for once, when they are needed. On a CPU the same
calls hand over the same memory.

Rules this module keeps (CUDA C++ Programming Guide, "Asynchronous Concurrent Execution"; PyTorch, "CUDA semantics" and
``Tensor.record_stream``):

- whoever reads on another stream than wrote, waits for it (``wait_stream``);
- memory that another stream reads is not handed out again before it has (``record_stream``); PyTorch does the same by itself for page-locked memory
  that is let go while a copy is under way;
- nothing looks at an answer before its event.

Not run on a GPU yet: none was at hand. The tests run the same code over stand-ins of streams that copy as late as they may.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch

from distill.teachers.cores import available_cores

MOST_THREADS = 16
"""That prepare pictures for one GPU. One makes about 50 squares of 1024 px per second by SAM's rules, and 6 by MedSAM's (512 px in, Zen 4)."""

Item = TypeVar("Item")
Made = TypeVar("Made")


class Arriving:
    """Tensors on their way into this process's memory."""

    def __init__(self, tensors: Sequence[torch.Tensor], event: "torch.cuda.Event | None" = None) -> None:
        self._tensors = tuple(tensors)
        self._event = event

    def wait(self) -> list[np.ndarray]:
        """Return them once they are there, in ordinary memory: page-locked memory is used again for the next ones."""
        if self._event is None:
            return [tensor.numpy() for tensor in self._tensors]
        self._event.synchronize()
        return [tensor.numpy().copy() for tensor in self._tensors]


class Transfer:
    """The way to one device and back. Threads may share it.

    Args:
        device: where to.
        overlaps: copy on streams of their own; None does on CUDA.
    """

    def __init__(self, device: torch.device, *, overlaps: bool | None = None) -> None:
        self.device = device
        self.overlaps = device.type == "cuda" if overlaps is None else overlaps
        self._up = torch.cuda.Stream(device) if self.overlaps else None
        self._down = torch.cuda.Stream(device) if self.overlaps else None
        self._crew = _crew_for(device) if self.overlaps else None

    def send(self, there: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return an array on the device. It may be computed with at once, on the stream that is current now."""
        return self._arrived(self._on_its_way(torch.as_tensor(there)))

    def prepare(self, make: Callable[[Item], tuple[torch.Tensor, Made]], items: Iterable[Item]) -> list[tuple[torch.Tensor, Made]]:
        """Return what ``make`` gives for every item, in order, its tensor on the device; made by several threads where a GPU would wait for one."""

        def made(item: Item) -> tuple[torch.Tensor, Made]:
            tensor, rest = make(item)
            return self._on_its_way(tensor), rest

        each = map(made, items) if self._crew is None else self._crew.map(made, items)
        return [(self._arrived(tensor), rest) for tensor, rest in each]

    def _on_its_way(self, host: torch.Tensor) -> torch.Tensor:
        """Begin a copy; in any thread."""
        if self._up is None:
            return host.to(self.device)
        locked = host.pin_memory()
        with torch.cuda.stream(self._up):
            return locked.to(self.device, non_blocking=True)

    def _arrived(self, sent: torch.Tensor) -> torch.Tensor:
        """Have the stream that is current in this thread wait for the copies that were begun."""
        if self._up is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._up)
            sent.record_stream(computing)
        return sent

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Arriving:
        """Have tensors brought here once they are computed; nobody waits before ``Arriving.wait``."""
        if self._down is None:
            return Arriving([tensor.cpu() for tensor in tensors])
        tensors = [tensor.contiguous() for tensor in tensors]
        hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            for host, tensor in zip(hosts, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._down)
            event = torch.cuda.Event(blocking=True)
            event.record(self._down)
        return Arriving(hosts, event)


def _crew_for(device: torch.device) -> ThreadPoolExecutor:
    """Return threads that prepare pictures for a GPU."""

    def enter() -> None:  # page-locked memory belongs to the device that is current in a thread
        if device.index is not None:
            torch.cuda.set_device(device)

    return ThreadPoolExecutor(min(MOST_THREADS, available_cores()), "samdistill-prepare", enter)


@cache
def transfer_to(device: torch.device) -> Transfer:
    """Return the process's way to a device."""
    return Transfer(device)
