"""What one training step learns from, where it comes from, and how it is ready in time."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from jaxtyping import Float, Integer, UInt8

_AHEAD = 2
"""Batches that are ready or being drawn while one is learnt from: two, so that a volume which is read for the first time holds nobody up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one training step learns from."""

    image: Float[torch.Tensor, "b c z y x"]
    ids: Integer[torch.Tensor, "b z y x"]
    """0 background, 1.. the position of the class in the student's list, ``IGNORE`` outside the image and where labels say so."""
    weight: Float[torch.Tensor, " b"]
    """How much each patch's case counts."""
    soft: UInt8[torch.Tensor, "b k z y x"] | None = None
    """Probability of each class, 255 = certain, where it is learnt from."""
    plain: Float[torch.Tensor, "b c z y x"] | None = None
    """The image without changes of its intensities, where another network is asked about it."""


class BatchSource(Protocol):
    """Where batches come from."""

    def batch(self, seed: int, step: int, fraction: float = 0.0, own: slice = slice(None)) -> Batch:
        """Return the batch of a step, the same each time it is asked for with the same share of the training behind it, or part of it."""
        ...


@contextmanager
def batches_ahead(
    draw: Callable[[int, float], Batch], first_step: int, fraction_at: Callable[[int], float] = lambda _: 0.0
) -> Iterator[Iterator[Batch]]:
    """Give the batches from a step on, drawn by a thread while those before are learnt from."""

    def ahead(pool: ThreadPoolExecutor) -> Iterator[Batch]:
        coming: deque[Future[Batch]] = deque()
        for step in count(first_step):
            coming.append(pool.submit(draw, step, fraction_at(step)))
            if len(coming) > _AHEAD:
                yield coming.popleft().result()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="patches") as pool:
        try:
            yield ahead(pool)
        finally:
            pool.shutdown(cancel_futures=True)
