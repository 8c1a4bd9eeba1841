"""Ask sources for prompts, before any teacher is asked: case by case, in the order of the chain, kept in the catalog beside the weak ones.

A case and a source are one unit of the ledger. A source is asked about the classes that no earlier source of the chain has prompted, so that a
hand-drawn box is never overruled by a guess. A later run asks again where the case, the source or what is open has changed.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from distill.errors import PromptError
from distill.intensity import intensity_inputs, seen_channel
from distill.label_plan import LabelPlan
from distill.prompts.choice import PROPOSED, WEAK, drawing_sources, open_classes
from distill.prompts.sources import PromptSource, SourceContext, Subject, channel_version_of, make_source, warning_of
from storage import Archive, CaseRecord, Prompt, fingerprint
from storage.working import Worked, work_through

PROPOSE = "1"
"""Raised whenever what is asked of sources changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan:
    """Which sources to ask, in which order."""

    sources: tuple[str, ...]
    """As the recipe names them."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Source -> what it is made with."""
    label: LabelPlan
    """About which classes, with which teacher and intensity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeSummary:
    """What a run of all sources did."""

    done: int
    """Cases about which a source was asked, over all sources."""
    skipped: int
    prompts: int
    """Prompts that were proposed by this run."""
    absent: int
    """Classes that were said not to be in a case, by this run."""
    quarantined: tuple[str, ...]
    unfinished: int
    seconds: float
    warnings: tuple[str, ...] = ()
    """What sources could not learn, one sentence each without its full stop."""


def stage_of(source: str) -> str:
    """Return the ledger's name of one source's stage."""
    return f"prompts:{source}"


def propose_prompts(
    archive: Archive, plan: PromptPlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> ProposeSummary:
    """Ask every source of the chain about every case that is due.

    Args:
        archive: where cases and prompts live.
        plan: whom to ask.
        cases: restrict to these ids; default all.
        progress: called with (cases finished, cases to do) of the source that is asked.

    Raises:
        PlanError: if a source is unknown, or cannot be made from its options or the archive.
    """
    began = time.monotonic()
    wanted = None if cases is None else set(cases)
    records = {record.id: record for record in archive.cases() if wanted is None or record.id in wanted}
    context = SourceContext(archive=archive, plan=plan.label)
    warnings: list[str] = []
    names = [name for name in drawing_sources(plan.sources) if name != WEAK]
    runs = [
        _SourceRun(archive, plan, context, name, warnings).run(records, progress) for name in names
    ]  # in order: each hears those before it
    said = [each for run in runs for each in run.done.values()]
    return ProposeSummary(
        done=len(said),
        skipped=sum(run.skipped for run in runs),
        prompts=sum(each.prompts for each in said),
        absent=sum(each.absent for each in said),
        quarantined=tuple(sorted({case for run in runs for case in run.quarantined})),
        unfinished=sum(run.unfinished for run in runs),
        seconds=time.monotonic() - began,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """How much a source said about one case."""

    prompts: int
    absent: int


class _SourceRun:
    """One source and the cases it is asked about."""

    def __init__(self, archive: Archive, plan: PromptPlan, context: SourceContext, name: str, warnings: list[str]) -> None:
        self.archive, self.plan, self.context, self.name, self.warnings = archive, plan, context, name, warnings

    def run(self, records: Mapping[str, CaseRecord], progress: Callable[[int, int], None] | None) -> Worked[_Said]:
        """Ask about what is due, three times at most."""
        stored = self.archive.catalog.prompts_by_case(list(records))
        open_to = {case: self._open(stored[case]) for case in records}
        due_for_it = {case: classes for case, classes in open_to.items() if classes}
        if not due_for_it:
            return Worked(done={}, skipped=0, quarantined=(), unfinished=0)
        source = make_source(self.name, self.context, self.plan.options.get(self.name, {}))
        if warning := warning_of(source):
            self.warnings.append(warning)
        prints = {case: self._fingerprint(source, records[case], classes) for case, classes in due_for_it.items()}
        return work_through(
            self.archive.ledger,
            stage_of(self.name),
            prints,
            lambda case: self._ask(source, records[case], due_for_it[case], stored[case]),
            progress=progress,
        )

    def _open(self, stored: Sequence[Prompt]) -> tuple[int, ...]:
        """Return the classes that no source before this one in the chain has prompted."""
        chain = drawing_sources(self.plan.sources)
        before = chain[: chain.index(self.name)]
        classes = [info.id for info in self.plan.label.classes]
        return open_classes(stored, before, classes) if before else tuple(classes)

    def _fingerprint(self, source: PromptSource, record: CaseRecord, classes: Sequence[int]) -> str:
        infos = [info for info in self.plan.label.classes if info.id in classes]
        return fingerprint(
            propose=PROPOSE,
            source=[source.name, source.fingerprint],
            case=[record.fingerprint, record.modality],
            classes=infos,
            **intensity_inputs(self.plan.label.intensity, record),
            **self._channel_inputs(source, record),
        )

    def _channel_inputs(self, source: PromptSource, record: CaseRecord) -> dict[str, str]:
        version = channel_version_of(source)
        return {"of_channels": version} if version and seen_channel(record, self.plan.label.intensity) is not None else {}

    def _ask(self, source: PromptSource, record: CaseRecord, classes: Sequence[int], stored: Sequence[Prompt]) -> _Said:
        """Ask about one case and keep the answer; what was said before, from other inputs, is kept in no case."""
        infos = [info for info in self.context.classes if info.id in classes]
        found: list[Prompt] = []
        try:
            subject = self.context.subject(record, infos, stored)
            found = as_proposed(source.name, subject, source.propose(subject))
        finally:
            self.archive.catalog.replace_prompts(found, file=_key(record.id, source.name), source=f"{PROPOSED}{source.name}")
        absent = sum(prompt.kind == "absent" for prompt in found)
        return _Said(len(found) - absent, absent)


def as_proposed(name: str, subject: Subject, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return what a source proposes as the catalog keeps it, after a look at whether it can be meant.

    Raises:
        PromptError: if a prompt is about another case, a class that was not asked for, or a slice that is not there.
    """
    asked = {info.id for info in subject.classes}
    depth = subject.record.shape_czyx[1]
    kept = []
    for prompt in prompts:
        where = f"source {name!r}, case {subject.record.id}"
        if prompt.case != subject.record.id:
            message = f"{where}: a prompt is about case {prompt.case!r}. A source may only speak about the case it is asked about."
            raise PromptError(message)
        if prompt.class_id not in asked:
            message = f"{where}: a prompt is about class {prompt.class_id}, but the open classes are {sorted(asked)}."
            raise PromptError(message)
        if prompt.axis == "z" and prompt.slice is not None and not 0 <= prompt.slice < depth:
            message = f"{where}: a prompt is on slice {prompt.slice}, but the case has slices 0 to {depth - 1}."
            raise PromptError(message)
        kept.append(replace(prompt, source=f"{PROPOSED}{name}"))
    return kept


def _key(case: str, source: str) -> str:
    """Return under which key the catalog remembers that these prompts are one statement."""
    return blake2b(f"{PROPOSED}{source}/{case}".encode(), digest_size=16).hexdigest()
