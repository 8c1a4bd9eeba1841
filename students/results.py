"""The records of an evaluation: what ``evaluation.json`` holds and the page shows."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from distill import quality
from storage import ClassInfo
from students.figures import Measured
from students.findings import (
    SHAPE_METRICS,
    Breakdown,
    FailureDetection,
    GoldCurve,
    LesionsOfSize,
    OwnCalibration,
    PairedDifference,
    Relative,
)
from students.frozen import Frozen
from students.spec import Cost, RoundsNote, Shape

__all__ = ["METRICS", "CaseScore", "ClassResult", "Comparison", "Difference", "Evaluation", "Hindsight", "Measured", "Role", "Transfer"]

METRICS = quality.MaskScores.__slots__

Role = Literal["student", "teacher", "agreement", "arm", "hindsight"]


class CaseScore(Frozen):
    """One class of one case in one comparison."""

    case: str
    patient: str
    class_id: int
    dice: float | None
    jaccard: float | None
    nsd: float | None
    hd95_mm: float | None
    volume_bias: float | None
    first_ml: float
    """Volume in the first label set of the comparison."""
    second_ml: float
    cl_dice: float | None = None
    """Of tubes."""
    lesion_f1: float | None = None
    """Of lesions, as the two that follow."""
    lesion_sensitivity: float | None = None
    false_lesions: float | None = None
    lesions_by_decade: dict[int, tuple[int, int]] | None = None
    """Decade of volume in mm3 -> gold's lesions in it, and those that were found."""


class ClassResult(Frozen):
    """One class of a comparison."""

    class_id: int
    class_name: str
    metrics: dict[str, Measured]
    """By name: dice, jaccard, nsd, hd95_mm, volume_bias; of tubes also cl_dice, of lesions lesion_f1, lesion_sensitivity and false_lesions."""


class Comparison(Frozen):
    """One label set measured against another."""

    name: str
    role: Role
    first: str
    """The label set that is judged."""
    second: str
    """What it is judged against: gold, or the teacher for agreement."""
    cases: int
    missing: int
    """Cases without the first label set: nothing can be said about them."""
    classes: tuple[ClassResult, ...]
    scores: tuple[CaseScore, ...]
    note: str = ""


class Transfer(Frozen):
    """What became of the teacher's errors, as means over patients."""

    correction: Measured
    imitation: Measured
    new: Measured


class Difference(Frozen):
    """A paired difference of Dice over the same patients; it is real where the interval excludes 0."""

    name: str
    dice: Measured


class Hindsight(Frozen):
    """The training labels judged by gold afterwards; nothing was chosen by these figures."""

    before_ignoring: Comparison
    """Every doubtful voxel on the side of the threshold that it is on: the labels as a whole, which a student's Dice may be held against."""
    with_ignored_left_out: Comparison
    with_ignored_as_background: Comparison
    coverage: float
    """Share of all voxels that are not ignored."""


class Evaluation(Frozen):
    """Everything the report shows; the JSON beside it is this record."""

    format_version: Literal[1] = 1
    student: str
    trained_on: str
    """Label set."""
    agreement: float | None
    """With held-out pseudo-labels, during training."""
    tolerance_mm: float
    cases: tuple[str, ...]
    """On which every score against gold was taken."""
    comparisons: tuple[Comparison, ...]
    transfer: Transfer | None
    differences: tuple[Difference, ...]
    hindsight: Hindsight | None
    costs: tuple[Cost, ...]
    gold: str = "gold"
    conventions: str = (
        "Means over patients with percentile bootstrap 95 % intervals over patients. Both masks empty: left out and counted. "
        "One empty: Dice and NSD 0, HD95 the image diagonal. Distances between voxel centres, MONAI's definition."
    )
    classes: tuple[ClassInfo, ...] = Field(default=())
    warnings: tuple[str, ...] = ()
    """What speaks against using this student, each with its remedy."""
    spacing_known: bool | Literal["mixed"] = True
    """False when no scored case had a spacing: one pixel was taken for a millimetre, so every mm here is a pixel, every ml 1000 of them.
    Mixed when some had none: lengths and volumes are means over millimetres and pixels, and say little."""
    gold_learnt: tuple[str, ...] = ()
    """Training cases whose expert labels the student learnt from, beside its label set; none of them is scored."""
    shapes: dict[int, Shape] = Field(default_factory=dict)
    """Classes that are tubes or lesions."""
    arms: tuple[str, ...] = ()
    """The arms that were asked for, as recipes name them."""
    tests: tuple[PairedDifference, ...] = ()
    relative: tuple[Relative, ...] = ()
    """Against the same net under full supervision, where that arm is there: the mean over classes first, then each class of several."""
    calibration: tuple[OwnCalibration, ...] = ()
    failure_detection: tuple[FailureDetection, ...] = ()
    breakdown: Breakdown | None = None
    lesion_sizes: tuple[LesionsOfSize, ...] = ()
    """Of classes that are lesions: which sizes are found."""
    gold_curve: GoldCurve | None = None
    hints: str | None = None
    """Label set that the student sees beside the image."""
    rounds: RoundsNote | None = None
    """Why this student was chosen among those of several rounds; None where there was one."""

    def metrics_of(self, class_id: int) -> tuple[str, ...]:
        """Return what is measured of a class beyond overlap and surface."""
        return SHAPE_METRICS[self.shapes.get(class_id, "organ")]

    def comparison(self, name: str) -> Comparison:
        """Return a comparison by name.

        Raises:
            KeyError: naming those there are.
        """
        for found in self.comparisons:
            if found.name == name:
                return found
        message = f"no comparison {name!r}; there are {', '.join(c.name for c in self.comparisons)}."
        raise KeyError(message)

    def mean(self, name: str, metric: str = "dice") -> float | None:
        """Return a comparison's mean over its classes of one metric."""
        values = [result.metrics[metric].mean for result in self.comparison(name).classes]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
