"""Whose labels a run is about to replace, said before the teacher draws and before anything is refined: two recipes on one archive write the same label sets."""

import re
from collections import Counter
from dataclasses import replace

from distill.label_changes import LabelChanges, foreseen_changes
from flows.console import warn
from flows.learnt import taught_sets
from flows.plans import label_plans
from flows.recipe import Recipe
from flows.results import TEACHER_SET, StageResult, counted
from storage import Archive, StudentRecord

MOST_DIFFERENCES = 3
"""Named in one sentence; with prompts of many sources there are as many as combinations of them."""


def announce(archive: Archive, recipe: Recipe) -> StageResult:
    """Print and return what is to be known of finished labels that this recipe would draw otherwise; nothing where there are none."""
    said = sentence(foreseen(archive, recipe), archive, recipe)
    if said:
        warn(said)
    return StageResult(stage="label", note=said)


def foreseen(archive: Archive, recipe: Recipe) -> LabelChanges:
    """Return what all teachers of the recipe would replace; of several, also what a single one has drawn under the name of the fused set."""
    plans = label_plans(recipe)
    found = [foreseen_changes(archive, plan) for plan in plans]
    alone = _drawn_by_one(archive) if len(plans) > 1 else 0
    differences: Counter[str] = Counter({f"teachers: 1 -> {len(plans)}": alone} if alone else {})
    for each in found:
        differences |= Counter(each.differences)
    return LabelChanges(
        redrawn=max(alone, *(each.redrawn for each in found)),
        withdrawn=max(each.withdrawn for each in found),
        differences=dict(differences.most_common()),
    )


def _drawn_by_one(archive: Archive) -> int:
    """Count the cases whose labels of the fused set's name a single teacher has drawn."""
    drawn = archive.catalog.fingerprints(TEACHER_SET)
    return sum(archive[case].labels(TEACHER_SET).history.made_by.startswith("distill.engine") for case in drawn)


def sentence(changes: LabelChanges, archive: Archive, recipe: Recipe) -> str:
    """Put it in words: a warning where the labels are another recipe's."""
    parts = [
        f"{counted(changes.redrawn, 'case is', 'cases are')} drawn anew" if changes.redrawn else "",
        f"{counted(changes.withdrawn, 'case loses its labels', 'cases lose their labels')}" if changes.withdrawn else "",
    ]
    what = " and ".join(part for part in parts if part)
    if not what:
        return ""
    several = len(changes.differences) > MOST_DIFFERENCES
    why = "; ".join([*list(changes.differences)[:MOST_DIFFERENCES], *(["..."] if several else [])])
    if not changes.of_another_recipe:
        return f"{what}: {why}"
    taught = sorted(student.name for student in archive.catalog.students() if student.name != recipe.student.name)
    students = f" (taught so far: {', '.join(taught)})" if taught else ""
    return (
        f"WARNING: {what}: the archive holds labels that this recipe would not draw ({why}). They are replaced, with what was refined from them"
        f"{students}; if two recipes are both needed, give each an archive of its own"
    )


def announce_refined(archive: Archive, recipe: Recipe) -> StageResult:
    """Print and return what is to be known of refined labels that this recipe would decide otherwise; nothing where no other recipe's student learnt from them."""
    said = refined_sentence(archive, recipe)
    if said:
        warn(said)
    return StageResult(stage="refine", note=said)


def refined_sentence(archive: Archive, recipe: Recipe) -> str:
    """Name the students of other recipes whose labels are about to be refined anew; empty where there are none."""
    from distill.refine import replaced_cases
    from flows.rules import is_calibrated, refine_plan

    taught = [student.name for student in archive.catalog.students() if _learnt_here(student, recipe)]
    count = len(replaced_cases(archive, refine_plan(recipe, calibrated=is_calibrated(archive, recipe)))) if taught else 0
    if not count:
        return ""
    those = f"the {'student' if len(taught) == 1 else 'students'} {', '.join(sorted(taught))}"
    return (
        f"WARNING: {counted(count, 'case is', 'cases are')} refined anew: {recipe.round.refined_set} of the archive is of masks, rules or thresholds that are not this recipe's. "
        f"It is replaced, and {those} of another recipe, which learnt from it, will be outdated; if two recipes are both needed, give each an archive of its own"
    )


def _learnt_here(student: StudentRecord, recipe: Recipe) -> bool:
    """Tell whether a student of another recipe learnt from the labels that a round of this one refines."""
    if re.fullmatch(rf"{re.escape(recipe.whole.student.name)}(-r[1-9]\d*)?", student.name):
        return False
    return any(student.label_set in taught_sets(student.name, of) for of in (recipe.round, replace(recipe.round, relabel="both")))
