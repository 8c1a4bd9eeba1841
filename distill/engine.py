"""The labelling engine: read, prepare, encode, decode and write, overlapped, with memory that does not grow with the archive.

One thread reads cases ahead, the calling thread asks the teacher about a window of cases at a time, another thread writes.
Queues between them are bounded, so at most ``3 * window`` cases are in memory. A case is one unit of the ledger: its arrays are
written first, its ledger row last. A fourth thread renews the claims meanwhile, as a slow teacher may need longer for a window than a
claim is believed on other hosts.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from distill.embedding_cache import EmbeddingCachePlan, cache_inputs, with_cache
from distill.errors import PlanError
from distill.intensity import IntensitySpec, choose_window, intensity_inputs
from distill.planes import ask_other_planes
from distill.prompts.hints import hints_by_slice, usable_prompts
from distill.prompts.schedule import schedule_slices
from distill.quality import dice
from distill.teachers.base import Teacher
from distill.teachers.checkpoints import load_teacher
from distill.teachers.sam import Precision
from distill.uncertainty import LN2, binary_entropy
from distill.wavefront import AskSettings, CaseWork, ClassWork, run_wavefront
from storage import Archive, CaseRecord, ClassInfo, LabelHistory, LedgerError, Prompt, StorageError, fingerprint
from storage.heartbeat import beating

ENGINE = "4"
"""Raised whenever the engine's answers change, so that old labels are recomputed."""
ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPlan:
    """What to label, with which teacher, how."""

    classes: tuple[ClassInfo, ...]
    label_set: str = "teacher/r1"
    teacher: str = "bundled"
    profile: str | None = None
    base: str | None = None
    """Of a LoRA delta: the checkpoint it was trained on."""
    precision: Precision = "auto"
    ask: AskSettings = field(default_factory=AskSettings)
    intensity: IntensitySpec = field(default_factory=IntensitySpec)
    embedding_cache: EmbeddingCachePlan | None = None
    window: int = 8
    """Cases asked together. More fill batches better; memory grows with it."""
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What a labelling run did."""

    label_set: str
    done: int
    """Cases labelled by this run."""
    skipped: int
    """Cases that already had these labels."""
    without_prompts: tuple[str, ...]
    """Cases nobody prompted: they get no labels, which is not the same as an empty label. Negative points alone prompt nothing."""
    quarantined: tuple[str, ...]
    unfinished: int
    """Cases neither done nor quarantined, such as those that another live run holds."""
    slices: int
    """Slices asked by this run."""
    seconds: float


def label_archive(
    archive: Archive, plan: LabelPlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> LabelSummary:
    """Label every prompted case that does not yet carry these labels.

    Args:
        archive: where cases, prompts and labels live.
        plan: what to do.
        cases: restrict to these ids; default all.
        progress: called with (cases finished, cases to do).

    Raises:
        PlanError: if the plan names no class.
        CheckpointError: if the teacher cannot be loaded.
    """
    if not plan.classes:
        message = "the plan names no class; give at least one, such as classes: {1: {name: hippocampus}}."
        raise PlanError(message)
    return _LabelRun(archive, plan).run(cases, progress)


class _LabelRun:
    """One labelling run; holds what its threads share."""

    def __init__(self, archive: Archive, plan: LabelPlan) -> None:
        self.archive = archive
        self.plan = plan
        self.stage = f"label:{plan.label_set}"
        self.prints: dict[str, str] = {}
        self.finished = 0
        self.slices = 0
        self.held: set[str] = set()
        self.fatal: BaseException | None = None

    def run(self, cases: Sequence[str] | None, progress: Callable[[int, int], None] | None) -> LabelSummary:
        began = time.monotonic()
        wanted = None if cases is None else set(cases)
        records = {record.id: record for record in self.archive.cases() if wanted is None or record.id in wanted}
        stored = self.archive.catalog.prompts_by_case(list(records))
        prompts = {case: usable_prompts(each) for case, each in stored.items()}
        prompted = [case for case in records if _usable(prompts.get(case, []), self.plan)]
        from distill.teachers.checkpoints import inspect_checkpoint

        info = inspect_checkpoint(self.plan.teacher, base=self.plan.base)
        self.prints = {case: self._fingerprint(records[case], prompts[case], info.fingerprint) for case in prompted}
        todo = self.archive.ledger.plan(self.stage, self.prints)
        due = frozenset(todo)
        total = len(due)
        teacher = self._teacher() if todo else None
        for _ in range(ATTEMPTS):
            if not todo or teacher is None:
                break
            self._pass(teacher, [records[case] for case in todo], prompts, progress, total)
            todo = self.archive.ledger.plan(self.stage, {case: self.prints[case] for case in todo})
        quarantined = tuple(unit.unit for unit in self.archive.ledger.quarantined(self.stage) if unit.unit in self.prints)
        return LabelSummary(
            label_set=self.plan.label_set,
            done=self.finished,
            skipped=sum(case not in due and case not in quarantined for case in prompted),
            without_prompts=tuple(case for case in records if case not in self.prints),
            quarantined=quarantined,
            unfinished=len(set(todo) - set(quarantined)),
            slices=self.slices,
            seconds=time.monotonic() - began,
        )

    def _teacher(self) -> Teacher:
        plan = self.plan
        loaded = load_teacher(plan.teacher, profile=plan.profile, base=plan.base, device=plan.device, precision=plan.precision)
        if not loaded.profile.prompts:
            message = f"teacher {plan.teacher} ({loaded.profile.name}) segments without prompts, one mask per class of its own; labelling asks with prompts. Use a promptable teacher."
            raise PlanError(message)
        return with_cache(loaded, plan.embedding_cache)

    def _fingerprint(self, record: CaseRecord, prompts: list[Prompt], teacher: str) -> str:
        return fingerprint(
            engine=ENGINE,
            case=[record.fingerprint, record.modality],
            prompts=prompts,
            teacher=teacher,
            ask=self.plan.ask,
            classes=self.plan.classes,
            profile=self.plan.profile or "",
            **({} if self.plan.precision == "auto" else {"precision": self.plan.precision}),  # the base is part of the teacher's hash
            **intensity_inputs(self.plan.intensity, record),
            **cache_inputs(self.plan.embedding_cache),
        )

    def _pass(
        self,
        teacher: Teacher,
        records: list[CaseRecord],
        prompts: dict[str, list[Prompt]],
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        """Go once through ``records``: read ahead, ask, write behind, renew the claims. Whatever happens, no claim is left behind.

        Raises:
            BaseException: what stopped the reader, the writer or the heartbeat, such as a catalog that can no longer be written.
        """
        with beating(self.archive.ledger, on_loss=self._stop_with):
            self._pipe(teacher, records, prompts, progress, total)
        if self.fatal is not None:
            raise self.fatal

    def _pipe(
        self,
        teacher: Teacher,
        records: list[CaseRecord],
        prompts: dict[str, list[Prompt]],
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        """Connect reader, teacher and writer; end early once ``fatal`` is set."""
        loaded: queue.Queue[CaseWork | None] = queue.Queue(maxsize=self.plan.window)
        answered: queue.Queue[CaseWork | None] = queue.Queue(maxsize=self.plan.window)
        stop = threading.Event()
        reader = threading.Thread(target=self._read, args=(records, prompts, loaded, stop), name="samdistill-read", daemon=True)
        writer = threading.Thread(target=self._write, args=(answered, teacher, progress, total), name="samdistill-write", daemon=True)
        reader.start()
        writer.start()
        try:
            for window in _windows(loaded, self.plan.window):
                if self.fatal is not None:
                    break
                for work in self._ask(teacher, window):
                    answered.put(work)
        finally:
            stop.set()
            answered.put(None)
            writer.join()
            while reader.is_alive():
                _drain(loaded)
                reader.join(timeout=0.05)
            self._release_held()

    def _stop_with(self, error: BaseException) -> None:
        """Have the run stopped, and raise this error at its end; the first one is the cause."""
        self.fatal = self.fatal or error

    def _release_held(self) -> None:
        """Give back what was claimed and neither finished nor failed, so that the next run in this process finds it."""
        for case in sorted(self.held):
            with suppress(StorageError, SQLAlchemyError):
                self.archive.ledger.release(self.stage, case)
        self.held.clear()

    def _fail(self, case: str, error: BaseException) -> None:
        """Give a case back with its error, unless another run has taken it meanwhile: then it is that run's."""
        with suppress(LedgerError):
            self.archive.ledger.fail(self.stage, case, error)
        self.held.discard(case)

    def _read(
        self, records: list[CaseRecord], prompts: dict[str, list[Prompt]], loaded: "queue.Queue[CaseWork | None]", stop: threading.Event
    ) -> None:
        """Claim and load cases until told to stop; whatever happens, end the queue."""
        try:
            for record in records:
                if stop.is_set() or self.fatal is not None:
                    break
                if self.archive.ledger.claim(self.stage, record.id):
                    self.held.add(record.id)
                    self._load(record, prompts[record.id], loaded)
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            self.fatal = error
        finally:
            loaded.put(None)

    def _load(self, record: CaseRecord, prompts: list[Prompt], loaded: "queue.Queue[CaseWork | None]") -> None:
        try:
            work = self._prepare(record, prompts)
        except Exception as error:  # noqa: BLE001 - one bad case must not stop the others
            self._fail(record.id, error)
            return
        loaded.put(work)

    def _prepare(self, record: CaseRecord, prompts: list[Prompt]) -> CaseWork:
        volume = self.archive[record.id].read()
        hints = hints_by_slice(record, prompts)
        shape = record.shape_czyx[1:]
        classes = {
            info.id: ClassWork(plans=schedule_slices(hints[info.id], shape[0]), probability=np.zeros(shape, np.float32))
            for info in self.plan.classes
            if info.id in hints
        }
        return CaseWork(record=record, volume_czyx=volume, window=choose_window(record, volume, self.plan.intensity), classes=classes)

    def _ask(self, teacher: Teacher, window: list[CaseWork]) -> list[CaseWork]:
        """Ask about a window; if that fails, ask case by case, so that one poisoned case is found and the others go on."""
        try:
            run_wavefront(teacher, window, self.plan.ask)
            if self.plan.ask.planes == "three":
                ask_other_planes(teacher, window, self.plan.ask)
        except Exception as error:  # noqa: BLE001 - one bad case must not stop the others
            if len(window) == 1:
                self._fail(window[0].record.id, error)
                return []
            return [work for each in window for work in self._ask(teacher, [_fresh(each)])]
        return window

    def _write(
        self, answered: "queue.Queue[CaseWork | None]", teacher: Teacher, progress: Callable[[int, int], None] | None, total: int
    ) -> None:
        """Write until the queue ends; after a fault keep emptying it, so that nobody waits for a dead thread."""
        while (work := answered.get()) is not None:
            if self.fatal is not None:
                continue
            try:
                self._write_one(work, teacher)
                if progress is not None:
                    progress(self.finished, total)
            except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
                self.fatal = error

    def _write_one(self, work: CaseWork, teacher: Teacher) -> None:
        case = work.record.id
        try:
            self._store(work, teacher)
        except Exception as error:  # noqa: BLE001 - what one case cannot write is recorded; the others may still fit
            self._fail(case, error)
            return
        try:
            self.archive.ledger.done(self.stage, case)
        except LedgerError:
            self.held.discard(case)  # another run has taken the case meanwhile, and will finish it
            return
        self.held.discard(case)
        self.finished += 1
        self.slices += sum(len(target.summaries) for target in work.classes.values())

    def _store(self, work: CaseWork, teacher: Teacher) -> None:
        shape = work.record.shape_czyx[1:]
        stack = np.zeros((len(self.plan.classes), *shape), np.float32)
        for n, info in enumerate(self.plan.classes):
            if info.id in work.classes:
                stack[n] = work.classes[info.id].probability
        best = stack.argmax(axis=0)
        ids = np.where(stack.max(axis=0) > 0.5, np.array([c.id for c in self.plan.classes], np.uint8)[best], 0).astype(np.uint8)
        doubt = binary_entropy(stack).max(axis=0) / LN2
        self.archive[work.record.id].write_labels(
            self._history(work, teacher),
            ids,
            probability_kzyx=np.rint(255 * stack).astype(np.uint8),
            uncertainty_zyx=np.rint(255 * doubt).astype(np.uint8),
            scores=measure(work),
        )

    def _history(self, work: CaseWork, teacher: Teacher) -> LabelHistory:
        ask = self.plan.ask
        return LabelHistory(
            label_set=self.plan.label_set,
            classes=self.plan.classes,
            made_by=f"distill.engine/{ENGINE}",
            teacher=teacher.fingerprint,
            prompt_source="weak",
            parameters={
                "boxes": ask.boxes,
                "jitter": ask.jitter,
                "flips": ask.flips,
                "planes": ask.planes,
                "seed": ask.seed,
                **work.window.history(),
                **cache_inputs(self.plan.embedding_cache),
            },
            fingerprint=self.prints[work.record.id],
        )


def measure(work: CaseWork) -> dict[str, float]:
    """Return the scores of one labelled case, per class as ``name/class``: ensemble agreement, stability, predicted IoU, slice consistency, volume.

    Slice scores are averaged with the slice's area as weight, as a case is as good as its voxels. ``slice_consistency`` is the
    mean Dice of neighbouring slices' masks. Volume is in mm3.
    """
    voxel_mm3 = float(np.prod(work.record.geometry.spacing_zyx_mm))
    scores: dict[str, float] = {}
    for class_id, target in work.classes.items():
        zs = sorted(target.summaries)
        weights = np.array([target.summaries[z].area_px for z in zs], float) + 1e-6
        for name, values in (
            ("pairwise_dice", [target.summaries[z].pairwise_dice for z in zs]),
            ("stability", [target.summaries[z].stability for z in zs]),
            ("predicted_iou", [target.iou[z] for z in zs]),
        ):
            scores[f"{name}/{class_id}"] = float(np.average(values, weights=weights)) if zs else 0.0
        masks = target.probability > 0.5
        pairs = [dice(masks[z], masks[z + 1]) for z in zs if z + 1 in target.summaries]
        scores[f"slice_consistency/{class_id}"] = float(np.nanmean(pairs)) if np.isfinite(pairs).any() else 1.0
        scores[f"volume_mm3/{class_id}"] = float(masks.sum()) * voxel_mm3
        scores[f"slices_asked/{class_id}"] = float(len(zs))
        if target.plane_agreement is not None:
            scores[f"plane_agreement/{class_id}"] = target.plane_agreement
    return scores


def _usable(prompts: list[Prompt], plan: LabelPlan) -> bool:
    """Say whether any usable prompt (``usable_prompts``) is about a class of the plan, on an axial slice."""
    wanted = {info.id for info in plan.classes}
    return any(prompt.class_id in wanted and prompt.axis == "z" for prompt in prompts)


def _fresh(work: CaseWork) -> CaseWork:
    """Return the work as it was before a failed attempt."""
    classes = {key: ClassWork(plans=target.plans, probability=np.zeros_like(target.probability)) for key, target in work.classes.items()}
    return CaseWork(record=work.record, volume_czyx=work.volume_czyx, window=work.window, classes=classes)


def _windows(loaded: "queue.Queue[CaseWork | None]", size: int) -> Iterator[list[CaseWork]]:
    window: list[CaseWork] = []
    while (work := loaded.get()) is not None:
        window.append(work)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _drain(loaded: "queue.Queue[CaseWork | None]") -> None:
    while True:
        try:
            loaded.get_nowait()
        except queue.Empty:
            return
