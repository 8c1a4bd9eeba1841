"""What an evaluation found beyond its table of scores, as paragraphs of a model card."""

from students.findings import CurveRow, FailureDetection, Gap, LesionsOfSize, OwnCalibration, Relative
from students.report_parts import p_words
from students.results import Evaluation, Measured


def findings(report: Evaluation) -> str:
    """Return tests, full supervision, calibration, failure detection, groups and gold's curve, as far as they are known; Markdown lines."""
    lines = [
        *map(_relative, report.relative),
        *(
            f"{test.class_name}: Dice minus that of {test.other} {_signed(test.difference)}, p {p_words(test.p_adjusted)} (Wilcoxon over patients, Holm)."
            for test in report.tests
        ),
        *map(_lesions, report.lesion_sizes),
        *map(_calibration, report.calibration),
        *map(_failures, report.failure_detection),
        *(_gap(gap) for gap in (report.breakdown.gaps if report.breakdown else ())),
        *(_curve(row) for row in (report.gold_curve.rows if report.gold_curve else ())),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _relative(found: Relative) -> str:
    if found.note:
        return f"What it reaches of the Dice of the same net under full supervision{_of(found.class_name)} is n/a: {found.note}."
    return f"Of the Dice of the same net under full supervision it reaches {_interval(found.ratio)}{_of(found.class_name)}."


def _of(class_name: str) -> str:
    return f" ({class_name})" if class_name else ""


def _interval(measured: Measured, digits: int = 3) -> str:
    if measured.mean is None:
        return "not known"
    if measured.low is None or measured.high is None:
        return f"{measured.mean:.{digits}f}"
    return f"{measured.mean:.{digits}f} ({measured.low:.{digits}f} to {measured.high:.{digits}f})"


def _signed(measured: Measured) -> str:
    if measured.mean is None or measured.low is None or measured.high is None:
        return "not known"
    return f"{measured.mean:+.3f} ({measured.low:+.3f} to {measured.high:+.3f})"


def _lesions(row: LesionsOfSize) -> str:
    return f"{row.class_name}, lesions of {row.size}: {row.found} of {row.lesions} found, per patient {_interval(row.sensitivity)}."


def _calibration(found: OwnCalibration) -> str:
    figures = f"ECE {_interval(found.ece, 4)}, ACE {_interval(found.ace)}, Brier {_interval(found.brier, 4)}"
    return f"{found.class_name}, probabilities in the box around what it sees: {figures}."


def _failures(found: FailureDetection) -> str:
    curve = found.curve
    risks = f"mean 1 - Dice of all {curve.masks} cases {curve.whole:.3f}, of the 80 % it is surest of {curve.at_80:.3f}"
    return f"{found.class_name}, its confidence in whole cases: normalised AURC {_interval(found.normalised, 2)}, where 0 is chance and 1 the best order; {risks}."


def _gap(gap: Gap) -> str:
    tested = f", p {p_words(gap.p_adjusted)} (permutations, Holm)" if gap.p is not None else ""
    where = f"{gap.class_name} by {gap.attribute.replace('_', ' ')}"
    return f"{where}: worst in {gap.worst}, best in {gap.best}, Dice apart by {_interval(gap.gap)}{tested}."


def _curve(row: CurveRow) -> str:
    how = "gold alone" if row.taught == "gold" else "gold beside pseudo-labels"
    against = f"; minus gold alone {_signed(row.minus_gold)}" if row.minus_gold else ""
    against += f" (unequal steps: {row.minus_note})" if row.minus_note else ""
    return f"Taught with {how} of {row.patients} {'patient' if row.patients == 1 else 'patients'}: Dice {_interval(row.dice)}{against}."
