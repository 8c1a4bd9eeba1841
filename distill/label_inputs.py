"""What each case's labels depend on: who is prompted, and the fingerprint by which finished labels are known as those of the same inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.embedding_cache import cache_inputs
from distill.intensity import intensity_inputs
from distill.label_plan import ENGINE, LabelPlan
from distill.planes import plane_inputs
from distill.prompts.axes import axis_inputs, set_aside
from distill.prompts.choice import chosen_prompts
from distill.prompts.hints import piece_inputs, point_inputs, usable_prompts
from distill.teachers.checkpoints import inspect_checkpoint
from distill.unasked import unasked_inputs
from storage import Archive, CaseRecord, Prompt, fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelInputs:
    """The cases of a labelling run."""

    records: dict[str, CaseRecord]
    """Case -> record, of all that the run is about."""
    prompts: dict[str, list[Prompt]]
    """Case -> the prompts of the plan's sources that a teacher can be asked with."""
    prints: dict[str, str]
    """Prompted case -> fingerprint of everything its labels depend on."""
    teacher: str
    """Fingerprint of the weights."""
    set_aside: dict[str, int]
    """Case -> how many of the sources' prompts are not asked, since their class is asked along another axis."""

    @property
    def unprompted(self) -> tuple[str, ...]:
        """Return the cases that nobody prompted: they get no labels, which is not the same as an empty label. Negative points alone prompt nothing."""
        return tuple(case for case in self.records if case not in self.prints)


def label_inputs(archive: Archive, plan: LabelPlan, cases: Sequence[str] | None = None) -> LabelInputs:
    """Look up what the labels of these cases, or of all, depend on.

    Raises:
        CheckpointError: if the teacher's file cannot be read.
    """
    wanted = None if cases is None else set(cases)
    records = {record.id: record for record in archive.cases() if wanted is None or record.id in wanted}
    stored = archive.catalog.prompts_by_case(list(records))
    prompts = {case: usable_prompts(chosen_prompts(each, plan.sources)) for case, each in stored.items()}
    teacher = inspect_checkpoint(plan.teacher, base=plan.base).fingerprint
    prints = {
        case: label_fingerprint(plan, record, prompts[case], teacher)
        for case, record in records.items()
        if _usable(prompts.get(case, []), plan)
    }
    aside = {case: len(found) for case, each in prompts.items() if (found := set_aside(_of_plan(each, plan)))}
    return LabelInputs(records=records, prompts=prompts, prints=prints, teacher=teacher, set_aside=aside)


def label_fingerprint(plan: LabelPlan, record: CaseRecord, prompts: list[Prompt], teacher: str) -> str:
    """Return the fingerprint of everything that the labels of one case depend on; ``prompts`` are those that the teacher is asked with."""
    return fingerprint(
        engine=ENGINE,
        case=[record.fingerprint, record.modality],
        prompts=prompts,
        teacher=teacher,
        ask=plan.ask.inputs(),
        classes=plan.classes,
        profile=plan.profile or "",
        **piece_inputs(record, prompts, [info.id for info in plan.classes]),
        **point_inputs(prompts, [info.id for info in plan.classes]),
        **plane_inputs(record, plan.ask),
        **axis_inputs(prompts, [info.id for info in plan.classes]),
        **unasked_inputs(record, prompts, [info.id for info in plan.classes], limit_mm=plan.unasked_mm, propagate=plan.ask.propagate),
        **({} if plan.precision == "auto" else {"precision": plan.precision}),  # the base is part of the teacher's hash
        **intensity_inputs(plan.intensity, record),
        **cache_inputs(plan.embedding_cache),
    )


def _of_plan(prompts: list[Prompt], plan: LabelPlan) -> list[Prompt]:
    """Return the prompts about a plan's classes."""
    wanted = {info.id for info in plan.classes}
    return [prompt for prompt in prompts if prompt.class_id in wanted]


def _usable(prompts: list[Prompt], plan: LabelPlan) -> bool:
    """Say whether any usable prompt (``usable_prompts``) is about a class of the plan."""
    return bool(_of_plan(prompts, plan))
