"""The processes that train one student together, one on each device, as torch's DistributedDataParallel has it.

Each learns from its own part of every batch. What a loss sums over a batch is summed over all parts, and gradients are averages of the processes', so that the
step is that of one device with the whole batch, up to rounding. One process, the chief, looks at held-out patients, keeps the clock and writes files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Stopped = Literal["budget", "steps", "early"] | None
"""Why training has ended; None while it goes on."""

_PATIENCE = timedelta(days=1)
"""Nobody waits so long: whoever started the processes ends all when one dies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """One process's place among those that train together; by default it is alone."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    """None: as the student's settings say."""

    @property
    def is_chief(self) -> bool:
        """Whether this process keeps the clock and writes files."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """Return which patches of a batch are this process's; parts differ by one at most."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def joined(self, network: nn.Module) -> nn.Module:
        """Return the network whose gradients are the averages over all processes; the weights are those of ``network``."""
        if self.size == 1:
            return network
        found: nn.Module = DistributedDataParallel(network)
        return found

    def total(self, here: Tensor) -> Tensor:
        """Return a sum over all processes, of which only what was summed here is learnt from: the others learn from theirs."""
        if self.size == 1:
            return here
        every = here.detach().clone()
        distributed.all_reduce(every)
        return here + (every - here.detach())

    def shared(self, loss: Tensor) -> Tensor:
        """Return what to take gradients of, so that their average over the processes is the gradient of ``loss``."""
        return loss if self.size == 1 else loss * self.size

    def told(self, seconds: float, stopped: Stopped) -> tuple[float, Stopped]:
        """Return the chief's clock, and why training stops if the chief says so."""
        if self.size == 1:
            return seconds, stopped
        said = [(seconds, stopped)]
        distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]


ALONE = Team()


@contextmanager
def meeting(rank: int, devices: tuple[str, ...], place: Path) -> Iterator[Team]:
    """Meet the other processes, at a file that is not there yet, and part from them in the end."""
    device = devices[rank]
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{place}", rank=rank, world_size=len(devices), timeout=_PATIENCE)
    try:
        yield Team(rank=rank, size=len(devices), device=device)
    finally:
        distributed.destroy_process_group()
