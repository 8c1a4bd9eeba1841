"""The rules by which a recipe believes its teacher: what the recipe fixes, and what gold calibration cases decide."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from distill.calibration import SMOOTHING_MM, ClassCalibration, calibrate
from distill.refine import ClassRule, RefinePlan
from flows.once import perform_once
from flows.plans import class_infos
from flows.recipe import Recipe
from flows.results import PSEUDO_SET, TEACHER_SET, StageResult
from storage import Archive, fingerprint

UNCALIBRATED_SMOOTHING_MM = 1.0
"""Makes neighbouring slices agree where there is no gold to choose a length on."""


class CalibrationFile(BaseModel):
    """``calibration.json`` in the report's folder: a person can read what was decided, and from how much."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    classes: dict[int, ClassCalibration]


def calibrate_rules(archive: Archive, recipe: Recipe, labels: dict[str, str], gold: dict[str, str]) -> StageResult:
    """Set thresholds on the calibration cases, once per state of their labels.

    Args:
        archive: Holds teacher's labels and gold.
        recipe: Fixes risk, volumes and components.
        labels: Calibration case -> fingerprint of the teacher's labels.
        gold: Calibration case -> fingerprint of the expert's.
    """
    start = starting_rules(recipe)
    return perform_once(
        archive.ledger,
        stage="calibrate",
        unit=recipe.student.name,
        fingerprint=fingerprint(rules=start, risk=recipe.refine.risk, labels=labels, gold=gold),
        output=calibration_file(recipe),
        work=lambda: _calibrate(archive, recipe),
    )


def _calibrate(archive: Archive, recipe: Recipe) -> str:
    smoothing_mm = SMOOTHING_MM if recipe.refine.consistency == "3d" else (0.0,)
    found = calibrate(
        archive, class_infos(recipe), source=TEACHER_SET, rules=starting_rules(recipe), risk=recipe.refine.risk, smoothing_mm=smoothing_mm
    )
    path = calibration_file(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CalibrationFile(classes=found).model_dump_json(indent=1), encoding="utf-8")
    return "; ".join(each.note for each in found.values() if each.note)


def starting_rules(recipe: Recipe) -> dict[int, ClassRule]:
    """What the recipe says about each class before any gold is looked at."""
    return {
        key: ClassRule(
            largest_component=recipe.refine.largest_component,
            volume_mm3=block.volume_mm3,
            smooth_mm=UNCALIBRATED_SMOOTHING_MM if recipe.refine.consistency == "3d" else 0.0,
        )
        for key, block in recipe.classes.items()
    }


def refine_plan(recipe: Recipe) -> RefinePlan:
    """What is to be believed of the teacher's drawing; calibrated rules if there are any."""
    path = calibration_file(recipe)
    rules = starting_rules(recipe)
    if path.is_file():
        calibrated = CalibrationFile.model_validate_json(path.read_text(encoding="utf-8"))
        rules |= {key: each.rule for key, each in calibrated.classes.items()}
    return RefinePlan(classes=class_infos(recipe), rules=rules, source=TEACHER_SET, target=PSEUDO_SET)


def calibration_file(recipe: Recipe) -> Path:
    """Where the decision is written down."""
    return recipe.report_folder / "calibration.json"
