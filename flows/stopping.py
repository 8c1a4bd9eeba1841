"""Stopping a run: Ctrl-C and SIGTERM end it within seconds, every unit given back, and the same command goes on.

Prefect's server is a child of the run. A terminal, ``timeout`` or a container that is stopped sends the signal to both, and what Prefect then has to
tell its server is tried for minutes. So the stage that is interrupted gives back what it holds, and the process leaves from there; Prefect's own
record of the run stays where it was, which nothing here reads. With a server of somebody's own (``PREFECT_API_URL``) Prefect is left to tell it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

import psutil

from flows.console import BARS, show_error

P = ParamSpec("P")
R = TypeVar("R")

STOPPED = "stopped. The same command goes on where it was."
SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHILDREN_S = 3.0
"""How long the server may take to end; Prefect itself gives it five seconds."""
TOGETHER_S = 1.0
"""Signals that come within so long of each other are one: a shell, ``timeout`` and a terminal may all send theirs."""
AGAIN_S = 0.05
"""After which an interruption is repeated that Python could not deliver."""
PATIENCE_S = 20.0
"""How long a stage may take to give its units back; the next run finds those of a process that is gone by itself."""


class _Stop:
    """What the handler of signals has to know."""

    def __init__(self) -> None:
        self.listening = False
        self.working = False
        """A stage is at work, and has units to give back."""
        self.asked_by: int | None = None
        self.asked_at = 0.0
        """Seconds of the monotonic clock."""
        self.hook = sys.unraisablehook
        """Who was told before of what an object raises while it is destroyed."""
        self.patience: threading.Timer | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Interrupt the stage that is at work, once; without one, or when somebody insists, leave."""
        if self.working and self.asked_by is not None and time.monotonic() - self.asked_at < TOGETHER_S:
            return
        if not self.working or self.asked_by is not None:
            leave(number)
        self.interrupt(number)

    def interrupt(self, number: int) -> NoReturn:
        """Interrupt the stage that is at work, and leave without it if it takes too long."""
        self.asked_by, self.asked_at = number, time.monotonic()
        if self.patience is not None:
            self.patience.cancel()
        self.patience = _later(PATIENCE_S, self.insist)
        raise KeyboardInterrupt

    def insist(self) -> None:
        """Leave, if the stage that was interrupted has not."""
        if self.listening and self.asked_by is not None:
            leave(self.asked_by)

    def unheard(self, lost: "sys.UnraisableHookArgs") -> None:
        """Repeat an interruption that came while an object was being destroyed: Python drops what is raised there, and the stage would go on."""
        number = self.asked_by
        if number is None or lost.exc_type is not KeyboardInterrupt:
            self.hook(lost)
            return
        _later(AGAIN_S, lambda: self.repeat(number))

    def repeat(self, number: int) -> None:
        """Send a signal to the main thread once more, if the run is still there."""
        if self.listening:
            self.asked_by = None
            signal.pthread_kill(threading.main_thread().ident or 0, number)


_STOP = _Stop()


@contextmanager
def listening() -> Iterator[None]:
    """Have signals end this process as said above, while the block runs."""
    if os.environ.get("PREFECT_API_URL") or threading.current_thread() is not threading.main_thread():
        yield
        return
    _STOP.listening, _STOP.asked_by = True, None
    _STOP.hook, sys.unraisablehook = sys.unraisablehook, _STOP.unheard
    try:
        with _handled():
            yield
    finally:
        _STOP.listening, sys.unraisablehook = False, _STOP.hook


def stoppable(stage: Callable[P, R]) -> Callable[P, R]:
    """Have a stage that is interrupted give its units back, and then leave."""

    @wraps(stage)
    def work(*args: P.args, **options: P.kwargs) -> R:
        if not _STOP.listening or threading.current_thread() is not threading.main_thread():
            return stage(*args, **options)
        _STOP.working = True
        try:
            with _handled():  # once more: Prefect's flows have their own way with SIGTERM
                return stage(*args, **options)
        except KeyboardInterrupt:
            leave(_STOP.asked_by or signal.SIGINT)
        finally:
            _STOP.working = False

    return work


def guarded(flow: Callable[P, R]) -> Callable[P, R]:
    """Have signals end the process between the tasks of a flow too: Prefect has its own way with SIGTERM there, which asks a server that is gone."""

    @wraps(flow)
    def work(*args: P.args, **options: P.kwargs) -> R:
        if not _STOP.listening or threading.current_thread() is not threading.main_thread():
            return flow(*args, **options)
        with _handled():
            return flow(*args, **options)

    return work


def _later(seconds: float, what: Callable[[], None]) -> threading.Timer:
    """Do something from another thread, which keeps nobody waiting."""
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def _handled() -> Iterator[None]:
    before = {number: signal.signal(number, _STOP) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int) -> NoReturn:
    """End this process and its children now, and say how far it came and that it goes on from there; the exit code is the signal's, as shells write it."""
    if threading.current_thread() is threading.main_thread():
        for known in SIGNALS:
            signal.signal(known, signal.SIG_IGN)
    BARS.close()
    show_error(f"stopped. Done so far: {BARS.reached}. The same command goes on from there." if BARS.reached else STOPPED)
    children = psutil.Process().children(recursive=True)
    for child in children:
        _end(child.terminate)
    for child in psutil.wait_procs(children, timeout=CHILDREN_S)[1]:
        _end(child.kill)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


def _end(how: Callable[[], None]) -> None:
    try:
        how()
    except psutil.NoSuchProcess:
        return
