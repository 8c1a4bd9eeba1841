"""Does the student know what it does not know? Its probabilities against gold, and its confidence against its failures.

*Calibration*: of each case the stored probabilities in the box around what the student sees at all, widened by 30 % (``distill.levels``), since a
whole volume is mostly easy background. ECE, ACE and Brier are taken per case, then as means over patients.

*Failure detection*: a case's confidence is the soft Dice of the student's mask with its own probabilities, which needs neither tuning nor further data
(Borges et al., Soft Dice Confidence, 2024); nothing drawn and nothing thought possible is certain. Risk is 1 - Dice with gold (``distill.risk_coverage``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from distill.audit_calibration import reliability
from distill.levels import LevelCounts, brier_score, calibration_errors, count_levels
from distill.quality import BOOTSTRAP_DRAWS, Interval, normalised_aurc, patient_interval, spearman
from distill.risk_coverage import most_confident, risk_coverage
from storage import IGNORE, Archive, ClassInfo, Labels
from students.figures import known, measured
from students.findings import FailureDetection, OwnCalibration

FAILED_BELOW = 0.7
"""Dice under which a case counts as failed."""
_LEAST_CASES = 3
"""Fewer can hardly be ordered."""

Read = Callable[[str], np.ndarray]
"""Gold's class ids of a case, as the evaluation reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the student says of one class of one case."""

    case: str
    patient: str
    class_id: int
    levels: LevelCounts
    confidence: float


def soft_dice(levels: UInt8[np.ndarray, "*space"], mask: Bool[np.ndarray, "*space"]) -> float:
    """Return the Dice that a mask is expected to have if its probabilities (0 to 255) are right, in [0, 1]."""
    probable = float(levels.sum(dtype=np.int64)) / 255
    total = probable + float(np.count_nonzero(mask))
    return 2 * float(levels[mask].sum(dtype=np.int64)) / 255 / total if total else 1.0


def read_own(archive: Archive, label_set: str, cases: Sequence[str], classes: Sequence[ClassInfo], gold: Read) -> list[Told]:
    """Read a student's probabilities of cases with their gold; a case without probabilities is left out.

    Args:
        archive: read from.
        label_set: the student's answers.
        cases: that have gold.
        classes: of the student.
        gold: reads it.
    """
    found = []
    for case in cases:
        stored = archive[case]
        if label_set not in stored.label_sets() or (labels := stored.labels(label_set)).probability is None:
            continue
        truth, drawn = gold(case), labels.read()
        for info in classes:
            row = _row(labels, info.id)
            if row is not None and (truth != IGNORE).any():
                counts = count_levels(row, truth == info.id, judged=truth != IGNORE)
                told = Told(
                    case=case,
                    patient=stored.record.patient,
                    class_id=info.id,
                    levels=counts,
                    confidence=soft_dice(row, drawn == info.id),
                )
                found.append(told)
    return found


def _row(labels: Labels, class_id: int) -> np.ndarray | None:
    order = [info.id for info in labels.history.classes]
    if labels.probability is None or class_id not in order:
        return None
    return np.asarray(labels.probability[order.index(class_id)])


def calibration_of(told: Sequence[Told], info: ClassInfo) -> OwnCalibration | None:
    """Return how far one class's probabilities are from frequencies; None where none are known."""
    own = [each for each in told if each.class_id == info.id and each.levels.voxels]
    if not own:
        return None
    patients = [each.patient for each in own]
    pairs = [calibration_errors(each.levels, each.levels.probability) for each in own]
    counts = LevelCounts(counts=np.sum([each.levels.counts for each in own], axis=0), missed=sum(each.levels.missed for each in own))
    wanted = int(counts.counts[1].sum()) + counts.missed
    return OwnCalibration(
        class_id=info.id,
        class_name=info.name,
        cases=len(own),
        ece=measured(patient_interval([ece for ece, _ in pairs], patients)),
        ace=measured(patient_interval([ace for _, ace in pairs], patients)),
        brier=measured(patient_interval([brier_score(each.levels, each.levels.probability) for each in own], patients)),
        missed=counts.missed / wanted if wanted else 0.0,
        plot=reliability(counts, counts.probability, f"{len(own)} test cases, voxels together", len(own)),
    )


def failure_detection_of(told: Sequence[Told], dice: dict[tuple[str, int], float | None], info: ClassInfo) -> FailureDetection | None:
    """Return whether the confidence orders one class's cases by their Dice; None with fewer than three cases that have one.

    Args:
        told: of all cases and classes.
        dice: with gold, by case and class.
        info: the class.
    """
    known_dice = {case: value for (case, class_id), value in dice.items() if class_id == info.id and value is not None}
    own = [each for each in told if each.class_id == info.id and each.case in known_dice]
    if len(own) < _LEAST_CASES:
        return None
    reached = np.array([known_dice[each.case] for each in own])
    confidence = np.array([each.confidence for each in own])
    curve = risk_coverage(own, (1 - reached).tolist(), about="test cases", words="1 - Dice with gold", group="test")
    order = np.argsort(-confidence, kind="stable")
    failed = reached < FAILED_BELOW
    return FailureDetection(
        class_id=info.id,
        class_name=info.name,
        curve=curve,
        normalised=measured(_normalised_interval(confidence, 1 - reached, [each.patient for each in own])),
        at_90=float((1 - reached)[order[: most_confident(len(own), 0.9)]].mean()),
        spearman=known(spearman(confidence.tolist(), reached.tolist())),
        failures=int(failed.sum()),
        auroc=_auroc(confidence, failed),
    )


def _auroc(confidence: np.ndarray, failed: np.ndarray) -> float | None:
    """Return the share of pairs of a failed and a good case of which the good one was surer; ties count half."""
    if failed.all() or not failed.any():
        return None
    apart = confidence[~failed][:, None] - confidence[failed][None]
    return float(np.mean((apart > 0) + 0.5 * (apart == 0)))


def _normalised_interval(confidence: np.ndarray, risk: np.ndarray, patients: Sequence[str]) -> Interval:
    """Return the normalised AURC with its interval, patients being drawn with all their cases; draws of which the order cannot matter are left out."""
    names = sorted(set(patients))
    rows = [np.flatnonzero([patient == name for patient in patients]) for name in names]
    rng, found = np.random.default_rng(0), []
    for _ in range(BOOTSTRAP_DRAWS // 2):
        which = np.concatenate([rows[n] for n in rng.integers(0, len(names), len(names))])
        value = normalised_aurc(confidence[which].tolist(), risk[which].tolist())
        if np.isfinite(value):
            found.append(value)
    low, high = np.quantile(found, [0.025, 0.975]) if found else (np.nan, np.nan)
    return Interval(mean=normalised_aurc(confidence.tolist(), risk.tolist()), low=float(low), high=float(high), patients=len(names))
