"""The labelling engine: read, prepare, encode, decode and write, overlapped, with memory that does not grow with the archive.

A case is one unit of the ledger: its arrays are written first, its ledger row last. What is due is gone through at most three times
(``distill.label_pass``), so that a fault that passes costs nothing; what fails each time is set aside.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.appoint import appoint
from distill.devices import DeviceError, resolve_devices
from distill.embedding_cache import cache_inputs
from distill.errors import PlanError
from distill.intensity import intensity_inputs
from distill.label_pass import LabelJob, Station, run_pass
from distill.label_plan import ENGINE, LabelPlan
from distill.prompts.choice import chosen_prompts
from distill.prompts.hints import usable_prompts
from distill.teachers.base import Teacher
from distill.teachers.checkpoints import inspect_checkpoint
from storage import Archive, CaseRecord, Prompt, fingerprint

__all__ = ["ENGINE", "LabelPlan", "LabelSummary", "label_archive"]

ATTEMPTS = 3


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
        PlanError: if the plan names no class, or a device that is none or not here.
        CheckpointError: if the teacher cannot be loaded.
        DeviceError: if every device broke down; what was finished is kept.
    """
    if not plan.classes:
        message = "the plan names no class; give at least one, such as classes: {1: {name: hippocampus}}."
        raise PlanError(message)
    return _LabelRun(archive, plan).run(cases, progress)


class _LabelRun:
    """One labelling run: what is due, with which teachers, and what came of it."""

    def __init__(self, archive: Archive, plan: LabelPlan) -> None:
        self.archive = archive
        self.plan = plan
        self.job = LabelJob(archive=archive, plan=plan, stage=f"label:{plan.label_set}")

    def run(self, cases: Sequence[str] | None, progress: Callable[[int, int], None] | None) -> LabelSummary:
        began = time.monotonic()
        job, ledger = self.job, self.archive.ledger
        wanted = None if cases is None else set(cases)
        records = {record.id: record for record in self.archive.cases() if wanted is None or record.id in wanted}
        stored = self.archive.catalog.prompts_by_case(list(records))
        job.prompts = {case: usable_prompts(chosen_prompts(each, self.plan.sources)) for case, each in stored.items()}
        prompted = [case for case in records if _usable(job.prompts.get(case, []), self.plan)]
        teacher = inspect_checkpoint(self.plan.teacher, base=self.plan.base).fingerprint
        job.prints = {case: self._fingerprint(records[case], job.prompts[case], teacher) for case in prompted}
        todo = ledger.plan(job.stage, job.prints)
        due = frozenset(todo)
        job.total, job.progress = len(due), progress
        todo = self._label(todo, records)
        quarantined = tuple(unit.unit for unit in ledger.quarantined(job.stage) if unit.unit in job.prints)
        return LabelSummary(
            label_set=self.plan.label_set,
            done=job.finished,
            skipped=sum(case not in due and case not in quarantined for case in prompted),
            without_prompts=tuple(case for case in records if case not in job.prints),
            quarantined=quarantined,
            unfinished=len(set(todo) - set(quarantined)),
            slices=job.slices,
            seconds=time.monotonic() - began,
        )

    def _label(self, todo: list[str], records: dict[str, CaseRecord]) -> list[str]:
        """Go through what is due until nothing is, or each case was tried often enough; return what is left.

        A pass in which a device broke down is not counted: the cases that it had are due again through no fault of theirs.

        Raises:
            DeviceError: if no device is left.
        """
        stations = self._stations() if todo else []
        broken: list[Station] = []
        attempts = 0
        while todo and stations and attempts < ATTEMPTS:
            run_pass(self.job, stations, [records[case] for case in todo])
            fallen = [station for station in stations if station.fault]
            broken += fallen
            stations = [station for station in stations if not station.fault]
            attempts += not fallen
            todo = self.archive.ledger.plan(self.job.stage, {case: self.job.prints[case] for case in todo})
        if todo and broken and not stations:
            faults = "; ".join(f"{station.device}: {station.fault}" for station in broken)
            message = (
                f"no device is left to label on, with {len(todo)} cases to go. {faults}. What was finished is kept: run the same command again, "
                "since a device that broke down is only usable in a new process. If one case breaks them all, set CUDA_LAUNCH_BLOCKING=1 to see where."
            )
            raise DeviceError(message)
        return todo

    def _stations(self) -> list[Station]:
        """Load one teacher per device."""
        return [Station(device=device, teacher=self._teacher(device)) for device in resolve_devices(self.plan.device)]

    def _teacher(self, device: str) -> Teacher:
        return appoint(self.plan, device)

    def _fingerprint(self, record: CaseRecord, prompts: list[Prompt], teacher: str) -> str:
        return fingerprint(
            engine=ENGINE,
            case=[record.fingerprint, record.modality],
            prompts=prompts,
            teacher=teacher,
            ask=self.plan.ask.inputs(),
            classes=self.plan.classes,
            profile=self.plan.profile or "",
            **({} if self.plan.precision == "auto" else {"precision": self.plan.precision}),  # the base is part of the teacher's hash
            **intensity_inputs(self.plan.intensity, record),
            **cache_inputs(self.plan.embedding_cache),
        )


def _usable(prompts: list[Prompt], plan: LabelPlan) -> bool:
    """Say whether any usable prompt (``usable_prompts``) is about a class of the plan, on an axial slice."""
    wanted = {info.id for info in plan.classes}
    return any(prompt.class_id in wanted and prompt.axis == "z" for prompt in prompts)
