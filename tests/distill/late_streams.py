"""Stand-ins for CUDA's streams that copy as late as they may, so that a wait that is missing shows as wrong numbers; read with ``runpy``.

A copy "without blocking" leaves ``POISON`` in its target until somebody waits for its stream.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

POISON = 113


class Stream:
    """Keeps its copies until it is waited for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.copies: list[Callable[[], object]] = []

    def wait_stream(self, other: "Stream") -> None:
        other.flush()

    def flush(self) -> None:
        copies, self.copies = self.copies, []
        for copy in copies:
            copy()


class Event:
    """Of one stream."""

    def __init__(self, *, blocking: bool = False) -> None:
        self.blocking = blocking
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.flush()


class Streams:
    """Puts the stand-ins in place and notes what was done with them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computing = Stream("computing")
        self._here = threading.local()
        self.locked: list[int] = []
        """Addresses of page-locked memory."""
        self.recorded: list[tuple[int, str]] = []
        """Address of a tensor, and the stream for which it is kept."""
        self.copied: list[tuple[str, bool]] = []
        """Name of the stream of each copy, and whether its host side was page-locked."""
        names = iter(["up", "down"] * 100)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(next(names)))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.current)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: self.recorded.append((t.data_ptr(), stream.name)))
        own_to, own_copy, own_empty = torch.Tensor.to, torch.Tensor.copy_, torch.empty

        def to(tensor: torch.Tensor, *args: Any, non_blocking: bool = False, **options: Any) -> torch.Tensor:
            if not non_blocking:
                return own_to(tensor, *args, **options)
            target = torch.full_like(tensor, POISON)
            self._later(lambda: own_copy(target, tensor), tensor)
            return target

        def copy_(target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool = False) -> torch.Tensor:
            if not non_blocking:
                return own_copy(target, source)
            target.fill_(POISON)
            self._later(lambda: own_copy(target, source), target)
            return target

        def empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            made = own_empty(*args, **options)
            if pin_memory:
                self.locked.append(made.data_ptr())
            return made

        def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
            pinned = tensor.clone()
            self.locked.append(pinned.data_ptr())
            return pinned

        monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(torch, "empty", empty)

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self._here.stream = self.current, stream
        try:
            yield
        finally:
            self._here.stream = before

    @property
    def current(self) -> Stream:
        """Of the thread that asks, as in PyTorch."""
        found: Stream = getattr(self._here, "stream", self.computing)
        return found

    def _later(self, copy: Callable[[], object], host: torch.Tensor) -> None:
        self.copied.append((self.current.name, host.data_ptr() in self.locked))
        self.current.copies.append(copy)
