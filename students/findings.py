"""The records of what an evaluation finds beyond its table: tests, calibration, failure detection, groups of patients, and gold's own curve."""

from typing import Literal

from pydantic import Field

from distill.audit_records import Reliability, RiskCoverage
from students.figures import Measured
from students.frozen import Frozen
from students.spec import Shape

SHAPE_METRICS: dict[Shape, tuple[str, ...]] = {
    "organ": (),
    "tube": ("cl_dice",),
    "lesions": ("lesion_f1", "lesion_sensitivity", "false_lesions"),
}


class PairedDifference(Frozen):
    """The student's Dice minus that of another way of labelling, on the same patients, class by class."""

    other: str
    """As the table calls it, without `` - gold``."""
    class_id: int
    class_name: str
    difference: Measured
    p: float | None
    """Wilcoxon's signed ranks over patients, two-sided; None where too few differ."""
    p_adjusted: float | None
    """After Holm (1979), over all such tests of the report."""
    note: str = ""


class Relative(Frozen):
    """The student's Dice as a part of that of the same net under full supervision: rho."""

    class_name: str
    """Empty for the mean over classes."""
    ratio: Measured
    note: str = ""
    """Why there is no ratio."""


class OwnCalibration(Frozen):
    """Whether the student's probabilities mean what they say, in the box around what it sees, widened by 30 %."""

    class_id: int
    class_name: str
    cases: int
    ece: Measured
    """Gap between probability and frequency over 15 bins, weighted by voxels; per case."""
    ace: Measured
    """The same, every bin that is not empty alike."""
    brier: Measured
    missed: float
    """Share of gold's voxels outside those boxes: no probability of theirs was judged."""
    plot: Reliability
    """Voxels of all cases together."""


class FailureDetection(Frozen):
    """Whether the student's own confidence says on which cases it failed."""

    class_id: int
    class_name: str
    curve: RiskCoverage
    normalised: Measured
    """AURC between that of a random order (0) and of the best (1), with its interval over patients."""
    at_90: float
    """Mean risk of the most confident 90 % of cases."""
    spearman: float | None
    """Rank correlation of confidence and Dice."""
    failures: int
    """Cases with a Dice below 0.7."""
    auroc: float | None
    """Chance that a case which failed had a lower confidence than one which did not; None where all or none did."""


class GroupScore(Frozen):
    """One value of one attribute."""

    attribute: str
    value: str
    class_id: int
    class_name: str
    cases: int
    dice: Measured
    nsd: Measured
    volume_bias: Measured
    teacher_dice: Measured | None
    note: str = ""
    """Why it is not ranked; empty where it is."""
    worst: bool = False
    """The ranked group with the lowest Dice."""


class Gap(Frozen):
    """How far the groups of one attribute are apart."""

    attribute: str
    class_id: int
    class_name: str
    best: str
    worst: str
    gap: Measured
    """Mean Dice of the best minus that of the worst; the interval takes these two as chosen, and so leans away from 0."""
    p: float | None
    """Of a gap as large among groups drawn at random from the same patients; it knows that best and worst were picked."""
    p_adjusted: float | None
    """After Holm (1979), over all gaps of the report."""
    equity_scaled: float
    """Mean Dice over 1 plus the sum of the groups' distances from it."""
    note: str = ""


class LesionsOfSize(Frozen):
    """How many of gold's lesions of one size were found, of one class."""

    class_id: int
    class_name: str
    size: str
    """Bounds of the volume, such as ``100 to 1,000 mm3``."""
    lesions: int
    """In all test cases together ..."""
    found: int
    """... and those that a drawn piece of the student belongs to."""
    sensitivity: Measured
    """Share found in a case, as mean over patients who have such lesions."""
    teacher: Measured | None
    """The same of the teacher, where it drew the cases."""


class Breakdown(Frozen):
    """The student's scores by groups of cases."""

    rows: tuple[GroupScore, ...] = ()
    gaps: tuple[Gap, ...] = ()
    alike: dict[str, str] = Field(default_factory=dict)
    """Attributes of which all cases have the same value."""


Taught = Literal["gold", "mixed"]


class CurveRow(Frozen):
    """The same net, trained with gold of so many patients, on the test cases."""

    taught: Taught
    """By gold alone, or by gold beside pseudo-labels."""
    patients: int
    gold_cases: int
    """Of the first seed."""
    students: tuple[str, ...]
    """One for each seed."""
    dice: Measured
    """Mean over classes; each case's Dice is averaged over seeds first."""
    between_seeds: float | None
    """Standard deviation of the means of single seeds; None with one."""
    minus_gold: Measured | None = None
    """Of mixed: the paired difference to gold alone of as many patients ..."""
    p: float | None = None
    p_adjusted: float | None = None
    """... Wilcoxon over patients, and after Holm over the rows of the curve."""
    share_of_full: Measured | None = None
    """The Dice as a part of that of the same net trained on all gold of the archive part, where that arm is there."""
    note: str = ""
    """Why that share is not known."""
    minus_note: str = ""
    """Why the difference to gold alone may be one of steps alone."""
    unpaired: int = 0
    """Dices, each of a class of a case of a seed, left out of difference or share as one of the two sides has none there."""
    scores: dict[str, float | None] = Field(default_factory=dict)
    """Case -> Dice, averaged over seeds and classes."""


class GoldCurve(Frozen):
    """What gold is worth: scores over the number of patients whose gold was learnt from."""

    rows: tuple[CurveRow, ...]
    seeds: tuple[int, ...]
    missing: tuple[str, ...] = ()
    """Students that there are none of, each with the reason."""
