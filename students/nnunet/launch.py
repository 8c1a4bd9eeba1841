"""Train an nnU-Net from an archive's labels, resumably, in a process of its own. Importing this costs no torch.

The process is a clean one, so it works also where the caller may not start children by ``multiprocessing``, as the workers of schedulers. It
ends with its caller, however that ends; the same call then goes on after the last whole epoch.
"""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from storage import Archive, CaseRecord, ClassInfo, fingerprint
from students.compact import TrainedStudent, check_channels, chosen_records, finished_card
from students.errors import TrainingError, WorkerError
from students.nnunet.job import JOB, LOG, Advance, Job, JobCase, Places, Refusal, understood, write_json
from students.spec import NnunetSpec, StudentSpec, TrainProgress

TRAINER = "1"
"""Raised whenever training from the same inputs gives other students, so that old ones are trained again."""

_FREE = ("threads", "device", "checkpoint_seconds", "cache_bytes")
_LAST_WORDS_S = 2.0
"""How long to listen on after the worker has ended."""

_SHOWN_LINES = 3
"""Of the log, in the message about a process that failed."""


def train(
    archive: Archive,
    *,
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    workdir: Path,
    cases: Sequence[str] | None = None,
    case_weights: Mapping[str, float] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedStudent:
    """Train an nnU-Net, or continue an interrupted training, or return at once if this very student is finished.

    Args: as of `students.compact.train`.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given.
        WorkerError: if the process that trains ends without a student.
    """
    records = chosen_records(archive, label_set, cases, case_weights or {})
    check_channels(records)
    job = _job(archive, records, label_set, classes, spec, case_weights or {})
    places = Places(workdir / spec.name)
    done = finished_card(places.folder, job.fingerprint)
    if done is not None:
        return TrainedStudent(path=places.folder, card=done, fresh=False, resumed=False)
    resumed = _prepare(job, places)
    _run(_command(places), places.environment(spec, archive.catalog_url), places, progress)
    card = finished_card(places.folder, job.fingerprint)
    if card is None:
        message = f"student {spec.name}: nnU-Net ended well, but {places.folder} holds no student of these inputs. Run again."
        raise WorkerError(message)
    shutil.rmtree(places.work, ignore_errors=True)
    return TrainedStudent(path=places.folder, card=card, fresh=True, resumed=resumed)


def _job(
    archive: Archive,
    records: Sequence[CaseRecord],
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    weights: Mapping[str, float],
) -> Job:
    """Return what the process is told, with the fingerprint of everything that decides the result."""
    labels = [archive[record.id].labels(label_set).history.fingerprint for record in records]
    asked = (spec.nnunet or NnunetSpec()).model_dump(exclude={"workers"}, mode="json")
    mark = fingerprint(
        trainer=TRAINER,
        spec={**spec.model_dump(include={"name", "kind", "budget_seconds", "seed"}, mode="json"), "nnunet": asked},
        classes=[(info.id, info.name) for info in classes],
        cases=[(r.id, r.fingerprint, own, weights.get(r.id, 1.0)) for r, own in zip(records, labels, strict=True)],
        label_set=label_set,
    )
    modalities = {record.modality for record in records}
    return Job(
        fingerprint=mark,
        archive=archive.url,
        label_set=label_set,
        classes=classes,
        cases=tuple(JobCase(id=record.id, patient=record.patient, weight=weights.get(record.id, 1.0)) for record in records),
        channels=(modalities.pop() if len(modalities) == 1 else "mixed",) * records[0].shape_czyx[0],
        flat=all(record.shape_czyx[1] == 1 for record in records),
        spec=spec,
    )


def _prepare(job: Job, places: Places) -> bool:
    """Make the work folder, unless it is there from an interrupted training of the same inputs; tell whether it is."""
    path = places.work / JOB
    with suppress(OSError, ValueError):
        if Job.model_validate_json(path.read_text(encoding="utf-8")).fingerprint == job.fingerprint:
            write_json(path, job.model_dump(mode="json"))  # how to compute may have changed
            return True
    shutil.rmtree(places.work, ignore_errors=True)
    write_json(path, job.model_dump(mode="json"))
    return False


def _command(places: Places) -> list[str]:
    """Return the command line of the worker; ``-P``, lest a file in the current folder be taken for a module."""
    return [sys.executable, "-P", "-m", "students.nnunet.worker", str(places.folder.resolve()), str(os.getpid())]


def _run(command: Sequence[str], environment: Mapping[str, str], places: Places, progress: Callable[[TrainProgress], None] | None) -> None:
    """Start the worker, pass on what it says, and see it and its own children end.

    Raises:
        TrainingError: if there is nothing to learn from.
        WorkerError: if it ends otherwise without a student.
    """
    # A group of its own: whatever nnU-Net starts can then be ended together, and Ctrl-C is ours to pass on.
    with subprocess.Popen(  # noqa: S603 - this interpreter with a module of ours
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as worker:
        if worker.stdout is None:  # for type checkers: it is a pipe
            return
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True)
        reader.start()
        try:
            refused = _follow(worker, lines, progress)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            reader.join()
    if refused:
        raise TrainingError(refused)
    if worker.returncode != 0:
        raise WorkerError(_accident(worker.returncode, places))


def _read(output: TextIO, lines: "queue.SimpleQueue[str | None]") -> None:
    for line in output:
        lines.put(line)
    lines.put(None)


def _follow(
    worker: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]", progress: Callable[[TrainProgress], None] | None
) -> str:
    """Pass on progress until the worker has ended; return why it refused, or nothing."""
    refused = ""
    while True:
        ended = worker.poll() is not None
        try:
            line = lines.get(timeout=_LAST_WORDS_S)
        except queue.Empty:
            if ended:  # what it started still holds its output
                return refused
            continue
        if line is None:
            worker.wait()
            return refused
        said = understood(line)
        if isinstance(said, Refusal):
            refused = said.refused
        elif isinstance(said, Advance) and progress:
            progress(TrainProgress(**said.model_dump()))


def _accident(code: int, places: Places) -> str:
    """Say how the worker ended, and what it said last."""
    log = places.work / LOG
    how = f"was killed by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with exit code {code}"
    last = ""
    with suppress(OSError):
        said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = f" It said last: {' | '.join(said[-_SHOWN_LINES:])}." if code > 0 and said else ""
    return f"student {places.folder.name}: the process that trains nnU-Net {how}.{last} Its log is {log}. The same command goes on from the last epoch."
