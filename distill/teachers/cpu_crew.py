"""Share many small pieces of work out to the cores, each of which computes its pieces alone.

PyTorch divides every operation among the cores, and waits for all of them after each. Where operations take less than a millisecond, such as
those on blocks that stay in the cache, a tenth of the time goes into waking and waiting. Here each thread takes whole pieces, one after the
other, and PyTorch's own division is off inside it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

Piece = TypeVar("Piece")


def share_out(work: Callable[[Iterator[Piece]], None], pieces: Iterable[Piece]) -> None:
    """Call ``work`` in as many threads as PyTorch may use here, all taking from the same iterator of pieces.

    A single piece is left to the calling thread, where PyTorch divides its operations; so is everything while a mode of PyTorch's is looking on
    there (a counter of operations, say), which sees its own thread only. Which thread gets which piece is left to chance, so a piece's
    result must not depend on it. Inference mode is that of the caller; nothing is recorded for gradients.

    Raises:
        Exception: the first that a piece raised, once every thread has ended.
    """
    every = list(pieces)
    taken = _Taken(iter(every))
    threads = min(torch.get_num_threads(), len(every))
    if threads <= 1 or _get_current_dispatch_mode() is not None:
        work(taken)
        return
    inference = torch.is_inference_mode_enabled()

    def shift() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(taken)

    crew = _crew(os.getpid(), torch.get_num_threads())
    try:
        shifts = [crew.submit(shift) for _ in range(threads)]
        errors = [error for each in shifts if (error := each.exception()) is not None]
    except BaseException:  # Ctrl-C: nobody waits for the rest any more
        taken.drop()
        raise
    if errors:
        raise errors[0]


class _Taken(Iterator[Piece]):
    """An iterator that several threads may advance."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.pieces = pieces
        self.lock = threading.Lock()

    def __next__(self) -> Piece:
        with self.lock:
            return next(self.pieces)

    def drop(self) -> None:
        """Leave what nobody has taken yet."""
        with self.lock:
            self.pieces = iter(())


@cache
def _crew(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001 - after a fork the parent's threads are not there
    """Return threads in which PyTorch's operations do not divide themselves."""
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # makes PyTorch set this thread up, which would undo the next line later
        torch.set_num_threads(1)
        ready.wait()

    crew = ThreadPoolExecutor(threads, "samdistill-crew")
    try:
        for _ in range(threads):
            crew.submit(begin)
        ready.wait()
    except BaseException:  # a thread that cannot be started, or Ctrl-C: the others would wait for ever, and the process at its end for them
        ready.abort()
        raise
    finally:
        torch.set_num_threads(threads)  # it is also what threads begin with that PyTorch has not seen yet
    return crew
