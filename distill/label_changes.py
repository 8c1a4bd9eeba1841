"""What a labelling run is about to replace: labels that are there, and that this plan would draw otherwise.

Two recipes on one archive write the same label sets. Each draws what the other has drawn anew, so a person is told beforehand whose labels go, and
by what the two differ.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distill.label_inputs import LabelInputs, label_inputs
from distill.label_plan import ENGINE, LabelPlan
from distill.prompts.choice import REVIEW, source_of
from distill.withdrawal import stage_that_made
from storage import Archive, ClassInfo, LabelHistory

SAME_RECIPE = "prompts, scans or settings have changed"
"""Where no difference in classes, teacher, sources or ways of asking is to be seen."""
REMOVED = "prompts were removed"
"""Where the sources are the same, and nothing of theirs is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChanges:
    """Labels that are there, and will not be afterwards."""

    redrawn: int = 0
    """Cases that carry labels of other inputs."""
    withdrawn: int = 0
    """Cases that carry labels and that nobody prompts any more."""
    differences: dict[str, int] = field(default_factory=dict)
    """What differs, such as ``classes: liver -> spleen`` -> in how many of these cases."""

    @property
    def of_another_recipe(self) -> bool:
        """Tell whether more differs than what comes of working on with the same recipe, such as a prompt that was corrected."""
        return bool(self.differences.keys() - {SAME_RECIPE, REMOVED})


def foreseen_changes(archive: Archive, plan: LabelPlan, cases: Sequence[str] | None = None) -> LabelChanges:
    """Say which finished labels ``label_archive`` would replace or take back, without doing anything.

    Raises:
        CheckpointError: if the teacher's file cannot be read.
    """
    there = archive.catalog.fingerprints(plan.label_set)
    if not there:
        return LabelChanges()
    inputs = label_inputs(archive, plan, cases)
    redrawn = [case for case, mark in inputs.prints.items() if there.get(case, mark) != mark]
    histories = {case: archive[case].labels(plan.label_set).history for case in (*redrawn, *inputs.unprompted) if case in there}
    withdrawn = [case for case in inputs.unprompted if case in there and stage_that_made(histories[case])]
    found: Counter[str] = Counter()
    for case in [*redrawn, *withdrawn]:
        found.update(_differences(histories[case], plan, inputs, case) or [SAME_RECIPE])
    return LabelChanges(redrawn=len(redrawn), withdrawn=len(withdrawn), differences=dict(found.most_common()))


def _differences(old: LabelHistory, plan: LabelPlan, inputs: LabelInputs, case: str) -> list[str]:
    """Return by what the labels of one case differ from those that the plan asks for."""
    maker, _, version = old.made_by.partition("/")
    if maker != "distill.engine":
        return [f"made by {'several teachers' if maker == 'distill.fuse' else maker}"]
    prompting = {source_of(prompt) for prompt in inputs.prompts[case] if prompt.class_id in {info.id for info in plan.classes}}
    asked_by = _without_reviews(prompting) if prompting else f"none of {', '.join(plan.sources)}"
    asked_before = _without_reviews(old.prompt_source.split(", "))
    pairs = (("classes", _named(old.classes), _named(plan.classes)), ("prompts", asked_before, asked_by))
    found = [f"{what}: {before} -> {now}" for what, before, now in pairs if before != now]
    if not prompting and set(old.prompt_source.split(", ")) <= {*plan.sources, REVIEW}:
        found[-1] = REMOVED
    asked = {name: old.parameters.get(name) for name in plan.ask.history()}
    found += ["another teacher"] if old.teacher != inputs.teacher else []
    found += ["uncertainty"] if asked != plan.ask.history() else []
    return found + (["an earlier version of samdistill"] if version != ENGINE else [])


def _without_reviews(sources: Iterable[str]) -> str:
    """Name sources of prompts, without people's own boxes: those come of working on with the same recipe."""
    return ", ".join(sorted({*sources} - {REVIEW})) or REVIEW


def _named(classes: Iterable[ClassInfo]) -> str:
    return ", ".join(f"{info.id} {info.name}" for info in classes)
