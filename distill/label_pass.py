"""One way through the cases that are due: read ahead, ask on every device, write behind.

One thread reads, one asks on each device a window of cases at a time, another one writes. Queues between them are bounded, so at most
three windows per device are in memory. The first device is asked in the calling thread, which is where Ctrl-C arrives. A last thread renews the
claims meanwhile, as a slow teacher may need longer for a window than a claim is believed on other hosts.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from sqlalchemy.exc import SQLAlchemyError

from distill.casework import CaseWork, by_axis, prepare_case
from distill.devices import has_died, made_current
from distill.embedding_memory import EmbeddingMemory
from distill.label_plan import LabelPlan
from distill.label_store import store_labels
from distill.planes import ask_other_planes
from distill.round_trip import check_round_trips
from distill.teachers.base import Teacher
from distill.wavefront import run_wavefront, sizes_of
from distill.withdrawal import drop_outdated
from storage import Archive, CaseRecord, LedgerError, Prompt, StorageError
from storage.heartbeat import beating

LOG = logging.getLogger("samdistill.labels")


@dataclass(slots=True, kw_only=True, eq=False)
class Station:
    """A device and the teacher on it."""

    device: str
    teacher: Teacher
    fault: str = ""
    """Why it can compute no more, once that is so."""


@dataclass(slots=True, kw_only=True)
class LabelJob:
    """What the passes and threads of one labelling run share."""

    archive: Archive
    plan: LabelPlan
    stage: str
    """Of the ledger."""
    prints: Mapping[str, str] = field(default_factory=dict)
    """Case -> fingerprint of everything its labels depend on."""
    prompts: Mapping[str, list[Prompt]] = field(default_factory=dict)
    total: int = 0
    """Cases to do."""
    progress: Callable[[int, int], None] | None = None
    finished: int = 0
    slices: int = 0
    held: set[str] = field(default_factory=set)
    """Cases that were claimed and are neither finished nor failed."""
    fatal: BaseException | None = None

    def stop_with(self, error: BaseException) -> None:
        """Have the run stopped, and raise this error at its end; the first one is the cause."""
        self.fatal = self.fatal or error

    def fail(self, case: str, error: BaseException) -> None:
        """Give a case back with its error, unless another run has taken it meanwhile: then it is that run's.

        Labels that it carries from other inputs go: they would be believed in place of those that could not be drawn.
        """
        with suppress(StorageError, SQLAlchemyError, OSError):
            drop_outdated(self.archive, self.stage, case, self.plan.label_set)
        with suppress(LedgerError):
            self.archive.ledger.fail(self.stage, case, error)
        self.held.discard(case)

    def release_held(self) -> None:
        """Give back what was claimed and neither finished nor failed, so that the next pass or run in this process finds it."""
        for case in sorted(self.held):
            with suppress(StorageError, SQLAlchemyError):
                self.archive.ledger.release(self.stage, case)
        self.held.clear()

    def finish(self, work: CaseWork, teacher: str) -> None:
        """Write a case that was answered by the teacher of this fingerprint, arrays first, ledger row last."""
        case = work.record.id
        try:
            store_labels(self.archive, self.plan, work, teacher=teacher, inputs=self.prints[case])
        except Exception as error:  # noqa: BLE001 - what one case cannot write is recorded; the others may still fit
            self.fail(case, error)
            return
        try:
            self.archive.ledger.done(self.stage, case)
        except LedgerError:
            self.held.discard(case)  # another run has taken the case meanwhile, and will finish it
            return
        self.held.discard(case)
        self.finished += 1
        self.slices += sum(len(target.summaries) for target in work.targets.values())


def run_pass(job: LabelJob, stations: Sequence[Station], records: Sequence[CaseRecord]) -> None:
    """Label each case once, on whichever device is free; whatever happens, no claim is left behind.

    A device that breaks down is noted in its station; the cases that it had are given back, for another pass.

    Raises:
        BaseException: what stopped the reader, the writer or the heartbeat, such as a catalog that can no longer be written.
    """
    with beating(job.archive.ledger, on_loss=job.stop_with):
        _Pass(job, stations).run(records)
    if job.fatal is not None:
        raise job.fatal


class _StopError(Exception):
    """The run is being stopped: leave what is in hand."""


class _BrokenError(Exception):
    """The device can compute no more."""


class _Pass:
    """The threads of one pass and the queues between them."""

    def __init__(self, job: LabelJob, stations: Sequence[Station]) -> None:
        self.job = job
        self.stations = stations
        room = job.plan.window * len(stations)
        self.loaded: queue.Queue[CaseWork | None] = queue.Queue(maxsize=room)
        self.answered: queue.Queue[CaseWork | None] = queue.Queue(maxsize=room)
        self.stop = threading.Event()

    def run(self, records: Sequence[CaseRecord]) -> None:
        """Connect reader, askers and writer; end early once the job has a fatal error."""
        reader = _thread("read", self._read, records)
        writer = _thread("write", self._write)
        first, *others = self.stations
        askers = [_thread(f"ask-{station.device}", self._ask_in_thread, station, torch.get_num_threads()) for station in others]
        try:
            self._ask_on(first)
            for asker in askers:
                asker.join()
        finally:
            self.stop.set()
            for asker in askers:
                asker.join()
            self.answered.put(None)
            writer.join()
            while reader.is_alive():
                _drain(self.loaded)
                reader.join(timeout=0.05)
            self.job.release_held()

    def _is_stopping(self) -> bool:
        return self.stop.is_set() or self.job.fatal is not None

    def _go_on(self) -> None:
        """Let an asker go on to its next group of slices, or stop it there."""
        if self._is_stopping():
            raise _StopError

    def _read(self, records: Sequence[CaseRecord]) -> None:
        """Claim and load cases until told to stop; whatever happens, end the queue for every asker."""
        try:
            for record in records:
                if self._is_stopping():
                    break
                if self.job.archive.ledger.claim(self.job.stage, record.id):
                    self.job.held.add(record.id)
                    self._load(record)
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            self.job.stop_with(error)
        finally:
            for _ in self.stations:
                self.loaded.put(None)

    def _load(self, record: CaseRecord) -> None:
        plan = self.job.plan
        try:
            work = prepare_case(
                self.job.archive,
                record,
                self.job.prompts[record.id],
                classes=[info.id for info in plan.classes],
                intensity=plan.intensity,
                propagate=plan.ask.propagate,
            )
        except Exception as error:  # noqa: BLE001 - one bad case must not stop the others
            self.job.fail(record.id, error)
            return
        self.loaded.put(work)

    def _ask_in_thread(self, station: Station, threads: int) -> None:
        """Ask with as many threads as the calling one: a thread that is new to PyTorch begins with what was set last anywhere."""
        try:
            torch.get_num_threads()  # sets this thread up, which would undo the next line later
            torch.set_num_threads(threads)
            self._ask_on(station)
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            self.job.stop_with(error)

    def _ask_on(self, station: Station) -> None:
        """Ask one device window after window, until there is no more, the run stops, or the device breaks down."""
        with made_current(station.device):
            for window in self._windows(station.teacher):
                if self._is_stopping():
                    return
                try:
                    for work in self._ask(station.teacher, window):
                        self.answered.put(work)
                except _StopError:
                    return
                except _BrokenError as error:
                    station.fault = _told(error.__cause__, window)
                    LOG.warning("%s can compute no more, and its cases are given to others: %s", station.device, station.fault)
                    return

    def _windows(self, teacher: Teacher) -> Iterator[list[CaseWork]]:
        """Yield cases as they come, so many that they are a plan's window and fill an encoder call."""
        window: list[CaseWork] = []
        while (work := self.loaded.get()) is not None:
            window.append(work)
            if len(window) >= self.job.plan.window and sum(each.record.shape_czyx[1] for each in window) >= sizes_of(teacher).pictures:
                yield window
                window = []
        if window:
            yield window

    def _ask(self, teacher: Teacher, window: list[CaseWork]) -> list[CaseWork]:
        """Ask about a window; if that fails, ask case by case, so that one poisoned case is found and the others go on."""
        ask, memory = self.job.plan.ask, EmbeddingMemory()
        try:
            for works in by_axis(window):
                run_wavefront(teacher, works, ask, check=self._go_on, memory=memory)
                if ask.propagate:
                    check_round_trips(teacher, works, ask, check=self._go_on, memory=memory)
                if ask.planes == "three":
                    ask_other_planes(teacher, works, ask, check=self._go_on, memory=memory, unasked_mm=self.job.plan.unasked_mm)
        except _StopError:
            raise
        except Exception as error:
            if has_died(error):
                raise _BrokenError from error
            if len(window) == 1:
                self.job.fail(window[0].record.id, error)
                return []
        else:
            return window
        memory.forget()
        # Outside the handler: the error's traceback would keep the failed call's tensors alive.
        return [work for each in window for work in self._ask(teacher, [each.fresh()])]

    def _write(self) -> None:
        """Write until the queue ends; after a fault keep emptying it, so that nobody waits for a dead thread."""
        teacher = self.stations[0].teacher.fingerprint
        while (work := self.answered.get()) is not None:
            if self.job.fatal is not None:
                continue
            try:
                self.job.finish(work, teacher)
                if self.job.progress is not None:
                    self.job.progress(self.job.finished, self.job.total)
            except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
                self.job.stop_with(error)


def _thread(name: str, work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Start a thread of the pass."""
    thread = threading.Thread(target=work, args=arguments, name=f"samdistill-{name}", daemon=True)
    thread.start()
    return thread


def _told(error: BaseException | None, window: Sequence[CaseWork]) -> str:
    """Say on one line what broke a device, and what it was at."""
    cases = [work.record.id for work in window]
    which = cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"
    return f"{(str(error).splitlines() or [type(error).__name__])[0]} (while asked about {which})"


def _drain(loaded: "queue.Queue[CaseWork | None]") -> None:
    while True:
        try:
            loaded.get_nowait()
        except queue.Empty:
            return
