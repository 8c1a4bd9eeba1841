"""What the report shows beyond its tables of scores, made ready for the template: curves of confidence, groups of patients, what gold is worth."""

from dataclasses import dataclass

from distill.audit_records import CalibrationPlot
from students.curve_plot import curve_plot
from students.filter_plots import reliability_plot, risk_coverage_plot
from students.findings import FailureDetection, Gap, GroupScore, OwnCalibration
from students.results import Evaluation

_SMALL_P = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidencePart:
    """One class."""

    class_name: str
    calibration: OwnCalibration | None
    reliability: str
    failures: FailureDetection | None
    risk_coverage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPart:
    """One attribute of one class."""

    attribute: str
    class_name: str
    rows: tuple[GroupScore, ...]
    gap: Gap | None


def confidence_parts(evaluation: Evaluation) -> list[ConfidencePart]:
    """Return what is known of the student's confidence, class by class; nothing where its probabilities are not there."""
    parts = []
    for info in evaluation.classes:
        calibration = next((each for each in evaluation.calibration if each.class_id == info.id), None)
        failures = next((each for each in evaluation.failure_detection if each.class_id == info.id), None)
        if calibration or failures:
            plot = CalibrationPlot(before=calibration.plot, after=None, temperature=None) if calibration else None
            part = ConfidencePart(
                class_name=info.name,
                calibration=calibration,
                reliability=reliability_plot(plot, "probability that the student says", "voxels of all cases together") if plot else "",
                failures=failures,
                risk_coverage=risk_coverage_plot([failures.curve]) if failures else "",
            )
            parts.append(part)
    return parts


def group_parts(evaluation: Evaluation) -> list[GroupPart]:
    """Return the groups of each attribute, class by class."""
    found = evaluation.breakdown
    if found is None:
        return []
    keys = list(dict.fromkeys((row.class_id, row.attribute) for row in found.rows))
    return [
        GroupPart(
            attribute=attribute.replace("_", " "),
            class_name=next(row.class_name for row in found.rows if row.class_id == class_id),
            rows=tuple(row for row in found.rows if (row.class_id, row.attribute) == (class_id, attribute)),
            gap=next((gap for gap in found.gaps if (gap.class_id, gap.attribute) == (class_id, attribute)), None),
        )
        for class_id, attribute in keys
    ]


def curve_svg(evaluation: Evaluation) -> str:
    """Return the plot of what gold is worth, with the student, full supervision and the teacher as lines; empty without a curve."""
    if evaluation.gold_curve is None:
        return ""
    full = next((each.name for each in evaluation.comparisons if "gold of the archive part" in each.name), None)
    shown = {"student of this report": "student - gold", "same net, all gold of the archive part": full, "teacher": "teacher - gold"}
    there = {each.name for each in evaluation.comparisons}
    means = {words: evaluation.mean(name) for words, name in shown.items() if name in there and name is not None}
    return curve_plot(evaluation.gold_curve, {words: value for words, value in means.items() if value is not None})


def p_words(p: float | None) -> str:
    """Return a p value as people read it."""
    if p is None:
        return "n/a"
    return f"< {_SMALL_P}" if p < _SMALL_P else f"{p:.3f}"
