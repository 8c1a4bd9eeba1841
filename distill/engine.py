"""The labelling engine: read, prepare, encode, decode and write, overlapped, with memory that does not grow with the archive.

A case is one unit of the ledger: its arrays are written first, its ledger row last. What is due is gone through at most three times
(``distill.label_pass``), so that a fault that passes costs nothing; what fails each time is set aside.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.appoint import appoint
from distill.devices import DeviceError, resolve_devices
from distill.errors import PlanError
from distill.label_inputs import label_inputs
from distill.label_pass import LabelJob, Station, run_pass
from distill.label_plan import ENGINE, LabelPlan
from distill.teachers.base import Teacher
from distill.withdrawal import Withdrawn, forget_given_up, withdraw_labels
from storage import Archive, CaseRecord
from storage.ledger import ATTEMPTS

__all__ = ["ENGINE", "LabelPlan", "LabelSummary", "label_archive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What a labelling run did."""

    label_set: str
    done: int
    """Cases labelled by this run."""
    skipped: int
    """Cases that already had these labels."""
    without_prompts: tuple[str, ...]
    """Cases that nobody prompted, and that have no labels therefore."""
    set_aside: dict[str, int] = field(default_factory=dict)
    """Case -> how many of its prompts were not asked, since their class is asked along another axis."""
    withdrawn: Withdrawn = field(default_factory=Withdrawn)
    """Labels that were taken back, since nobody prompts their cases any more."""
    quarantined: tuple[str, ...]
    unfinished: int
    """Cases neither done nor quarantined, such as those that another live run holds."""
    slices: int
    """Slices asked by this run."""
    seconds: float


def label_archive(
    archive: Archive, plan: LabelPlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> LabelSummary:
    """Label every prompted case that does not yet carry these labels, and take back those of cases that nobody prompts any more.

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
        job, ledger, inputs = self.job, self.archive.ledger, label_inputs(self.archive, self.plan, cases)
        job.prompts, job.prints = inputs.prompts, inputs.prints
        withdrawn = withdraw_labels(self.archive, self.plan.label_set, inputs.unprompted)
        forget_given_up(self.archive, job.stage, inputs.unprompted)
        todo = ledger.plan(job.stage, job.prints)
        due = frozenset(todo)
        job.total, job.progress = len(due), progress
        if due and progress is not None:
            progress(0, len(due))
        todo = self._label(todo, inputs.records)
        quarantined = tuple(unit.unit for unit in ledger.quarantined(job.stage) if unit.unit in job.prints)
        return LabelSummary(
            label_set=self.plan.label_set,
            done=job.finished,
            skipped=sum(case not in due and case not in quarantined for case in job.prints),
            without_prompts=inputs.unprompted,
            set_aside=inputs.set_aside,
            withdrawn=withdrawn,
            quarantined=quarantined,
            unfinished=len(set(todo) - set(quarantined)) + len(withdrawn.held),
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
