"""Second looks at what the teacher has drawn: the tests of a recipe's ``refine.semantic``, each once per state of the labels."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.doubts import DOUBTS, DoubtSummary, add_answers, add_priors, add_qualities, add_reverse
from distill.refine import RefinePlan, drawn_mask
from distill.reverse import REVERSE
from flows.console import Follow
from flows.once import perform_once
from flows.plans import class_infos, fold_plan
from flows.recipe import Recipe
from flows.results import StageResult, counted, doubt_unit, merged
from flows.rules import starting_rules
from storage import Archive, fingerprint

_ANSWERS = {"prior": "firmness", "student": "oof_dice", "reverse": "rca_dice"}
"""The score that each test leaves with every mask."""


def doubt_labels(archive: Archive, recipe: Recipe) -> StageResult:
    """Run the tests that the recipe asks for, and sum up what they and the teacher itself say of each mask.

    A test whose answers are in the catalog is not made again; labels that were drawn anew have lost theirs.
    """
    tests: dict[str, Callable[[], DoubtSummary]] = {
        "prior": lambda: _ask_prior(archive, recipe),
        "student": lambda: _ask_students(archive, recipe),
        "reverse": lambda: add_reverse(archive, _plan(recipe), progress=Follow("doubts")),
    }
    results = [_once(archive, recipe, name, tests[name]) for name in recipe.refine.semantic]
    add_qualities(archive, _plan(recipe), recipe.refine.semantic)
    return merged("doubt", results)


def _plan(recipe: Recipe) -> RefinePlan:
    return RefinePlan(
        classes=class_infos(recipe), rules=starting_rules(recipe), source=recipe.round.teacher_set, intensity=recipe.intensity
    )


def _once(archive: Archive, recipe: Recipe, name: str, test: Callable[[], DoubtSummary]) -> StageResult:
    plan, marker = _plan(recipe), _marker(recipe, name)
    if _is_forgotten(archive, name, plan):
        marker.unlink(missing_ok=True)
    depends = fingerprint(
        doubts=DOUBTS,
        labels=archive.catalog.fingerprints(plan.source),
        patients={record.id: [record.patient, record.part] for record in archive.cases(with_labels=plan.source)},
        rules=plan.rules,
        intensity=recipe.intensity.model_dump(mode="json"),
        students=_witnesses(archive, recipe) if name == "student" else None,
        gold=[REVERSE, _gold(archive)] if name == "reverse" else None,
    )

    def work() -> str:
        summary = test()
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"{summary.masks} masks scored. {summary.note}\n", encoding="utf-8")
        return summary.note

    result = perform_once(
        archive.ledger, stage=recipe.round.doubt, unit=doubt_unit(recipe.student.name, name), fingerprint=depends, output=marker, work=work
    )
    return replace(result, stage="doubt", note=_note(marker) if result.skipped else result.note)


def _witnesses(archive: Archive, recipe: Recipe) -> object:
    """Return what decides about what students say: how they are trained or, where they have answered in this round already, these answers."""
    if recipe.round.number > 1:
        return archive.catalog.fingerprints(recipe.round.answers_set)
    return fold_plan(recipe).spec.model_dump(mode="json")


def _gold(archive: Archive) -> dict[str, str]:
    """Return the fingerprints of gold that reverse classification may look at."""
    known = archive.catalog.fingerprints("gold")
    return {record.id: known[record.id] for record in archive.cases(part="calibration", with_labels="gold")}


def _is_forgotten(archive: Archive, name: str, plan: RefinePlan) -> bool:
    """Tell whether labels that the teacher has drawn are without the answers of a test, as those that were written anew are."""
    return any(
        f"pairwise_dice/{info.id}" in known and f"{_ANSWERS[name]}/{info.id}" not in known
        for known in archive.catalog.scores(plan.source).values()
        for info in plan.classes
    )


def _marker(recipe: Recipe, name: str) -> Path:
    """What a test leaves beside the report, so that it is made again where somebody deletes the results."""
    return recipe.report_folder / f"doubt-{name}.txt"


def _note(marker: Path) -> str:
    return marker.read_text(encoding="utf-8").partition(" masks scored. ")[2].strip() if marker.is_file() else ""


def _ask_prior(archive: Archive, recipe: Recipe) -> DoubtSummary:
    return add_priors(archive, _plan(recipe), progress=Follow("doubts"))


def _ask_students(archive: Archive, recipe: Recipe) -> DoubtSummary:
    if recipe.round.number > 1:
        return add_answers(archive, _plan(recipe), recipe.round.answers_set)
    from students.errors import TrainingError
    from students.out_of_fold import judge_out_of_fold, train_folds

    plan, cut = fold_plan(recipe), _plan(recipe)
    follow = Follow("doubts", percent=True)

    def mask_of(case: str, class_id: int) -> np.ndarray | None:
        drawn = drawn_mask(archive[case], cut, class_id)
        return None if drawn is None else drawn[1]

    try:
        students = train_folds(archive, plan, lambda fold, now: follow(round(100 * (fold + now.fraction) / plan.folds), 100, "students"))
    except TrainingError:
        _forget_students(archive, plan.label_set)
        raise
    scored, unheard = 0, 0
    for case, scores in judge_out_of_fold(archive, plan, students, mask_of):
        archive.catalog.add_scores(case, plan.label_set, scores)
        scored += sum(not math.isnan(value) for value in scores.values())
        unheard += all(math.isnan(value) for value in scores.values())
    note = f"students have nothing to say of {counted(unheard, 'case', 'cases')}: all of them know the patient, or see as little there as the teacher"
    return DoubtSummary(masks=scored, note=note if unheard else "")


def _forget_students(archive: Archive, label_set: str) -> None:
    """Drop what earlier students said: there are none now that could say it again."""
    for case, told in archive.catalog.scores(label_set).items():
        old = {name: math.nan for name, value in told.items() if name.startswith("oof_dice/") and not math.isnan(value)}
        if old:
            archive.catalog.add_scores(case, label_set, old)
