"""A process of ours that trains: how it is started and followed, what it says, and how it ends with whoever started it. Free of torch."""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter

from students.errors import TrainingError
from students.frozen import Frozen
from students.spec import TrainProgress

REFUSED = 3
"""Exit code where there is nothing to learn from."""

_LAST_WORDS_S = 2.0
"""How long to listen on after the process has ended."""

_SHOWN_LINES = 3
"""Of the log, in the message about a process that failed."""

_WATCH_S = 1.0


class Advance(Frozen):
    """One line that the process says: how far it is."""

    step: int = 0
    fraction: float = 0.0
    seconds: float = 0.0
    loss: float = 0.0
    lr: float = 0.0
    agreement: float | None = None
    resumed: bool = False
    phase: str = ""
    """What it does before it trains; empty while it trains."""


class Refusal(Frozen):
    """Its last line if there is nothing to learn from; any other end without a student is an accident."""

    refused: str


class Accident(Frozen):
    """Its last line where one of its own processes has died."""

    accident: str


Said = Advance | Refusal | Accident
_SAID: TypeAdapter[Said] = TypeAdapter(Said)
Say = Callable[[Said], None]
Progress = Callable[[TrainProgress], None]


def understood(line: str) -> Said | None:
    """Return what a line means; None for anything that is not one of the process's own lines."""
    try:
        return _SAID.validate_json(line)
    except ValueError:
        return None


def run_process(command: Sequence[str], environment: Mapping[str, str], progress: Progress | None) -> tuple[int, Said | None]:
    """Start a process, pass on what it says, and see it and its own children end.

    Returns:
        Its exit code, and its last words if they were not about progress.

    Raises:
        TrainingError: if it refuses.
    """
    # A group of its own: whatever it starts can then be ended together, and Ctrl-C is ours to pass on.
    with subprocess.Popen(  # noqa: S603 - this interpreter with a module of ours
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as worker:
        if worker.stdout is None:  # for type checkers: it is a pipe
            return 1, None
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True)
        reader.start()
        try:
            last = _follow(worker, lines, progress)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            reader.join()
    if isinstance(last, Refusal):
        raise TrainingError(last.refused)
    return worker.returncode, last


def _read(output: TextIO, lines: "queue.SimpleQueue[str | None]") -> None:
    for line in output:
        lines.put(line)
    lines.put(None)


def _follow(worker: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]", progress: Progress | None) -> Said | None:
    """Pass on progress until the process has ended; return its last words that were not about it."""
    last: Said | None = None
    while True:
        ended = worker.poll() is not None
        try:
            line = lines.get(timeout=_LAST_WORDS_S)
        except queue.Empty:
            if ended:  # what it started still holds its output
                return last
            continue
        if line is None:
            worker.wait()
            return last
        said = understood(line)
        if isinstance(said, Advance):
            if progress:
                progress(TrainProgress(**said.model_dump()))
        elif said is not None:
            last = said


def accident_words(code: int, log: Path) -> str:
    """Say how a process ended, and what its log says last."""
    if code < 0:
        return f"was killed by signal {-code}, perhaps for want of memory."
    last = ""
    with suppress(OSError):
        said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = f" It said last: {' | '.join(said[-_SHOWN_LINES:])}." if said else ""
    return f"ended with exit code {code}.{last}"


def own_output(log: Path) -> TextIO:
    """Send all that this process prints from here on to the log, by whomever; return what was standard output."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    return ours


def voice(output: TextIO) -> Say:
    """Return what says things to whoever started this process."""

    def say(what: Said) -> None:
        output.write(json.dumps(what.model_dump(mode="json")) + "\n")
        output.flush()

    return say


def end_with(parent: int) -> None:
    """End this process and those that it started once its parent is gone: nobody would use what it makes, and another start would meet it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
