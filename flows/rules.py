"""The rules by which a recipe believes its teacher: what the recipe fixes, and what gold calibration cases decide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from distill.calibration import CALIBRATION, SMOOTHING_MM, ClassCalibration, calibrate
from distill.doubts import LEFT_BY
from distill.prompt_mix import PromptMix, prompt_mixes
from distill.refine import ClassRule, RefinePlan
from distill.reliability import SCORES, predict_quality
from flows.once import perform_once
from flows.plans import class_infos
from flows.recipe import Recipe
from flows.recipe_refine import CleaningBlock
from flows.results import CALIBRATE, StageResult
from storage import Archive, fingerprint

UNCALIBRATED_SMOOTHING_MM = 1.0
"""Makes neighbouring slices agree where there is no gold to choose a length on."""


class CalibrationFile(BaseModel):
    """``calibration.json`` in the report's folder: a person can read what was decided, and from how much.

    What was not measured is NaN here and ``null`` in the file, since JSON knows no NaN. Files of versions that knew no temperature, predicted
    Dice or guarantee are read without them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    classes: dict[int, ClassCalibration]

    @field_validator("classes", mode="before")
    @classmethod
    def _null_is_not_measured(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: _measured(each) if isinstance(each, dict) else each for key, each in value.items()}


def _measured(fields: dict[str, Any]) -> dict[str, Any]:
    """Put NaN where the file says ``null`` for one of the figures."""
    figures = ("dice_before", "dice_after", "volume_bias_before", "volume_bias_after")
    return {name: math.nan if name in figures and value is None else value for name, value in fields.items()}


def calibrate_rules(archive: Archive, recipe: Recipe, labels: dict[str, str], gold: dict[str, str]) -> StageResult:
    """Set thresholds on the calibration cases, once per state of their labels.

    Args:
        archive: Holds teacher's labels and gold.
        recipe: Fixes risk, guarantee, volumes and components.
        labels: Calibration case -> fingerprint of the teacher's labels.
        gold: Calibration case -> fingerprint of the expert's.
    """
    start, prompted = starting_rules(recipe), _prompted(archive, recipe)
    strange = {key: words for key, mix in prompted.items() if (words := mix.in_words())}
    result = perform_once(
        archive.ledger,
        stage=CALIBRATE,
        unit=recipe.student.name,
        fingerprint=fingerprint(
            calibration=CALIBRATION,
            rules=start,
            risk=recipe.refine.risk,
            guarantee=recipe.refine.guarantee,
            labels=labels,
            gold=gold,
            scores=_scores(archive, recipe, labels),
            patients={record.id: record.patient for record in archive.cases(part="calibration", with_labels=recipe.round.teacher_set)},
            **({"taught": taught} if (taught := taught_by_gold(recipe)) else {}),
            **({"prompted": strange} if strange else {}),
            **(
                {"weigh_edges": list(weighed), "intensity": recipe.intensity.model_dump(mode="json")}
                if (weighed := weighed_edges(recipe))
                else {}
            ),
        ),
        output=calibration_file(recipe),
        work=lambda: _calibrate(archive, recipe, prompted),
    )
    return replace(result, note=calibration_note(recipe)) if result.skipped else result


def _scores(archive: Archive, recipe: Recipe, labels: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the scores of the calibration cases: some are added to labels that are finished, and a predicted Dice depends on them."""
    known, heard = archive.catalog.scores(recipe.round.teacher_set), SCORES.keys() - unheard_scores(recipe)
    return {
        case: {name: value for name, value in known.get(case, {}).items() if name.partition("/")[0] in heard} for case in sorted(labels)
    }


def unheard_scores(recipe: Recipe) -> set[str]:
    """Return the scores of tests that the recipe does not ask for, which an earlier one may have left."""
    return {score for test, scores in LEFT_BY.items() if test not in recipe.refine.semantic for score in scores}


def _prompted(archive: Archive, recipe: Recipe) -> dict[int, PromptMix]:
    """How calibration and archive cases were prompted, by class."""
    return prompt_mixes(archive, list(recipe.classes), recipe.prompts.source, recipe.round.teacher_set)


def _calibrate(archive: Archive, recipe: Recipe, prompted: Mapping[int, PromptMix]) -> str:
    smoothing_mm = SMOOTHING_MM if recipe.refine.consistency == "3d" else (0.0,)
    found = calibrate(
        archive,
        class_infos(recipe),
        source=recipe.round.teacher_set,
        rules=starting_rules(recipe),
        risk=recipe.refine.risk,
        smoothing_mm=smoothing_mm,
        guarantee=recipe.refine.guarantee,
        taught=taught_by_gold(recipe),
        unheard=unheard_scores(recipe),
        prompted=prompted,
        intensity=recipe.intensity,
        weigh_edges=weighed_edges(recipe),
    )
    path = calibration_file(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CalibrationFile(classes=found).model_dump_json(indent=1), encoding="utf-8")
    return calibration_note(recipe)


def taught_by_gold(recipe: Recipe) -> tuple[str, ...]:
    """Return the recipe's sources of prompts that learn from gold of calibration patients."""
    learns = {"exemplar": True, "everything": recipe.prompts.everything.exemplars > 0}
    return tuple(name for name in recipe.whole.prompts.source if learns.get(name, False))


def calibration_note(recipe: Recipe) -> str:
    """What a person must know of the thresholds, as the last calibration left them; a note that differs by class names its class."""
    path = calibration_file(recipe)
    if not path.is_file():
        return ""
    found = CalibrationFile.model_validate_json(path.read_text(encoding="utf-8")).classes
    notes = {key: note for key, each in sorted(found.items()) if (note := _said(each))}
    if len(set(notes.values())) <= 1 and len(notes) == len(found):
        return next(iter(notes.values()), "")
    return "; ".join(f"{recipe.classes[key].name if key in recipe.classes else key}: {note}" for key, note in notes.items())


def _said(found: ClassCalibration) -> str:
    """What is not as the recipe wants it comes first, and loudly, on a line of its own; what to do about it on the next."""
    lines = (f"WARNING: {found.warning}" if found.warning else "", f"To do: {found.remedy}" if found.remedy else "", found.note)
    return "\n".join(each for each in lines if each)


def add_predicted_dice(archive: Archive, recipe: Recipe, cases: Sequence[str]) -> int:
    """Score masks as refined with the Dice that calibration predicts of them, and its error bars; nothing without calibration.

    Adds ``predicted_dice/ID``, ``predicted_dice_low/ID`` and ``predicted_dice_high/ID`` to the scores of the teacher's label set. What an
    earlier calibration predicted and this one does not becomes NaN.

    Returns:
        How many masks were scored.
    """
    path, scored = calibration_file(recipe), 0
    there = is_calibrated(archive, recipe) and path.is_file()
    found = CalibrationFile.model_validate_json(path.read_text(encoding="utf-8")).classes if there else {}
    known = archive.catalog.scores(recipe.round.teacher_set, list(cases))
    for case in cases:
        told = {key: predict_quality(each.quality, known.get(case, {}), key) for key, each in found.items() if each.quality is not None}
        scores = {
            f"{name}/{key}": value
            for key, each in told.items()
            if each is not None and f"pairwise_dice/{key}" in known.get(case, {})
            for name, value in (("predicted_dice", each.dice), ("predicted_dice_low", each.low), ("predicted_dice_high", each.high))
        }
        stale = {
            name: math.nan
            for name, value in known.get(case, {}).items()
            if name.startswith("predicted_dice") and name not in scores and not math.isnan(value)
        }
        if stale or any(known[case].get(name) != value for name, value in scores.items()):
            archive.catalog.add_scores(case, recipe.round.teacher_set, scores | stale)
        scored += len(scores) // 3
    return scored


def starting_rules(recipe: Recipe) -> dict[int, ClassRule]:
    """What the recipe says about each class before any gold is looked at."""
    return {
        key: ClassRule(
            largest_component=recipe.refine.largest_component,
            volume_mm3=block.volume_mm3,
            student_from=ClassRule().student_from if recipe.round.number == 1 else least_agreement(recipe),
            smooth_mm=UNCALIBRATED_SMOOTHING_MM if recipe.refine.consistency == "3d" else 0.0,
            **_cleaning(recipe, key),
        )
        for key, block in recipe.classes.items()
    }


def _cleaning(recipe: Recipe, class_id: int) -> dict[str, Any]:
    """Return the recipe's rules about pieces, holes and edges; what gold is to say of edges is not said yet."""
    said = recipe.refine.classes.get(class_id, CleaningBlock()).model_dump()
    return said | {"rectify_edges": False} if class_id in weighed_edges(recipe) else said


def weighed_edges(recipe: Recipe) -> tuple[int, ...]:
    """Return the classes for which gold is to say whether intensity is heard about edges."""
    return tuple(key for key, block in sorted(recipe.refine.classes.items()) if block.rectify_edges == "auto")


def least_agreement(recipe: Recipe) -> float:
    """Return the Dice with students that never saw the case below which a mask is rejected whatever gold says; 0 in the first round."""
    return recipe.rounds.agreement if recipe.round.number > 1 and "student" in recipe.refine.semantic else 0.0


def is_calibrated(archive: Archive, recipe: Recipe) -> bool:
    """Tell whether ``calibration.json`` is of the labels and gold as ``calibrate_rules`` last saw them, not one from before."""
    return archive.ledger.state(CALIBRATE, recipe.student.name) == "done"


def refine_plan(recipe: Recipe, *, calibrated: bool = True) -> RefinePlan:
    """What is to be believed of the teacher's drawing; calibrated rules if there are any.

    Args:
        recipe: The recipe.
        calibrated: Whether ``calibration.json`` counts, if there is one; not where it is of labels that have changed since.
    """
    path = calibration_file(recipe)
    rules = starting_rules(recipe)
    if calibrated and path.is_file():
        found = CalibrationFile.model_validate_json(path.read_text(encoding="utf-8"))
        rules |= {key: each.rule for key, each in found.classes.items()}
    rules = {key: _without_unasked(rule, recipe.refine.semantic, least_agreement(recipe)) for key, rule in rules.items()}
    return RefinePlan(
        classes=class_infos(recipe),
        rules=rules,
        source=recipe.round.teacher_set,
        target=recipe.round.refined_set,
        intensity=recipe.intensity,
    )


def _without_unasked(rule: ClassRule, asked: Sequence[str], least: float) -> ClassRule:
    """Scores of a test that the recipe no longer asks for stay in the catalog, and must not go on rejecting masks."""
    return replace(
        rule,
        prior_from=rule.prior_from if "prior" in asked else 0.0,
        student_from=max(rule.student_from, least) if "student" in asked else 0.0,
        reverse_from=rule.reverse_from if "reverse" in asked else 0.0,
    )


def calibration_file(recipe: Recipe) -> Path:
    """Where the decision is written down."""
    return recipe.report_folder / "calibration.json"
