"""What "good" means, in numbers: the one place where a metric or an interval is defined.

Conventions, the same everywhere:

* A metric compares two boolean masks of one class of one case. Means are taken over the cases of a patient, then over patients;
  voxels of different cases are never pooled.
* Both masks empty: NaN. Such a case is left out of the mean and counted. Exactly one empty: Dice, Jaccard and NSD are 0, HD95 is
  the diagonal of the image in mm. Volume bias needs a gold volume and is NaN without one.
* The surface of a mask is every voxel of it that has a background voxel among its face neighbours (6 in 3D, 4 in 2D); what lies
  outside the image is background. Distances run between voxel centres, in mm. HD95 is the larger of the two directed 95th
  percentiles (linear interpolation). These are MONAI's definitions; surfel-weighted tools give other figures.
* Voxels to ``exclude`` (an ``ignore`` band, say) count as background in both masks.

Centre lines of tubes are compared in ``distill.tubes``, lesions counted in ``distill.lesions``, probabilities judged in ``distill.levels``, and two
ways of labelling tested against each other in ``distill.paired_tests``; all keep to these conventions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from storage.case import IGNORE

DEFAULT_TOLERANCE_MM = 1.0
"""NSD tolerance: about the disagreement of two raters on a small organ at 1 mm voxels."""

BOOTSTRAP_DRAWS = 2000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width between seeds."""


TRUSTED_PATIENTS = 5
"""With fewer, the interval is too narrow: of means of normal values it covers the true one in 50 (2 patients), 75 (3) or 80 % (4) of 4000 simulated
samples, and from 5 on in 84 % and more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskScores:
    """Every metric of one class of one case."""

    dice: float
    jaccard: float
    nsd: float
    hd95_mm: float
    volume_bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over patients with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    patients: int
    """Patients that entered the mean."""
    excluded: int = 0
    """Values left out because they were NaN (both masks empty)."""


def few_words(patients: int | None) -> str:
    """Say of a bootstrap interval that it rests on too few patients; nothing where there are enough, or where it is of another kind (None)."""
    if patients is None or not 0 < patients < TRUSTED_PATIENTS:
        return ""
    return f"only {patients} {'patient' if patients == 1 else 'patients'}: too narrow to trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorTransfer:
    """What became of the teacher's errors in its student, as fractions of voxels."""

    correction: float
    """Of the voxels the teacher has wrong: those the student has right."""
    imitation: float
    """Of the voxels the teacher has wrong: those where the student gives the same wrong answer."""
    new: float
    """Of the voxels the teacher has right: those the student has wrong."""


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse two masks that are not on one grid.

    Raises:
        ValueError: naming both shapes.
    """
    if a.shape != b.shape:
        message = f"masks must be on one grid, but have shapes {a.shape} and {b.shape}. Was one of them not resampled back?"
        raise ValueError(message)


def mask_pair(a: np.ndarray, b: np.ndarray, exclude: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both masks as booleans with the excluded voxels emptied."""
    _check_pair(a, b)
    left, right = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if exclude is None:
        return left, right
    keep = ~np.asarray(exclude, dtype=bool)
    return left & keep, right & keep


def _ratio(numerator: float, denominator: float) -> float:
    """Divide, with NaN for nothing out of nothing."""
    return numerator / denominator if denominator else float("nan")


def _count(mask: np.ndarray) -> int:
    """Return the number of true voxels as a Python integer."""
    return int(np.count_nonzero(mask))


def dice(a: Bool[np.ndarray, "*space"], b: Bool[np.ndarray, "*space"], exclude: Bool[np.ndarray, "*space"] | None = None) -> float:
    """Return twice the overlap over the sum of the sizes, in [0, 1]; NaN when both are empty."""
    left, right = mask_pair(a, b, exclude)
    return _ratio(2.0 * _count(left & right), _count(left) + _count(right))


def jaccard(a: Bool[np.ndarray, "*space"], b: Bool[np.ndarray, "*space"], exclude: Bool[np.ndarray, "*space"] | None = None) -> float:
    """Return the overlap over the union (IoU), in [0, 1]; NaN when both are empty."""
    left, right = mask_pair(a, b, exclude)
    return _ratio(_count(left & right), _count(left | right))


def volume_bias(predicted: Bool[np.ndarray, "*space"], gold: Bool[np.ndarray, "*space"]) -> float:
    """Return (predicted volume - gold volume) / gold volume: +0.1 is ten per cent too much; NaN without gold."""
    _check_pair(predicted, gold)
    wanted = _count(gold)
    return _ratio(_count(predicted) - wanted, wanted)


def joint_histogram(
    a: Integer[np.ndarray, "*space"], b: Integer[np.ndarray, "*space"], exclude: Bool[np.ndarray, "*space"] | None = None
) -> Integer[np.ndarray, "256 256"]:
    """Count the pairs of class ids (0 to 255) of two label maps in one pass: row = id in ``a``, column = id in ``b``."""
    _check_pair(a, b)
    left, right = (a, b) if exclude is None else (a[~exclude], b[~exclude])
    pairs = left.astype(np.uint16).ravel() * np.uint16(256) + right.astype(np.uint16).ravel()
    return np.bincount(pairs, minlength=65536).reshape(256, 256)


def dice_per_class(
    predicted: Integer[np.ndarray, "*space"], gold: Integer[np.ndarray, "*space"], class_ids: Sequence[int], *, skip_ignored: bool = True
) -> dict[int, float]:
    """Return the Dice of every class from one joint histogram.

    Args:
        predicted: Class ids.
        gold: Class ids.
        class_ids: The classes to report, 1 to 254.
        skip_ignored: Leave out voxels that are ``IGNORE`` in either map; otherwise they are background.
    """
    counts = joint_histogram(predicted, gold)
    if skip_ignored:
        counts[IGNORE, :] = 0
        counts[:, IGNORE] = 0
    return {k: _ratio(2.0 * counts[k, k], int(counts[k].sum() + counts[:, k].sum())) for k in class_ids}


def union_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds both masks; at least one must have a voxel."""
    union = a | b
    slices = []
    for axis in range(union.ndim):
        hit = np.flatnonzero(union.any(axis=tuple(n for n in range(union.ndim) if n != axis)))
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(slices)


def surface(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Return the voxels of a mask with a face neighbour outside it; the image border counts as outside."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        for shift in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(shift, shift + mask.shape[axis])
            inside &= padded[tuple(window)]
    edge: np.ndarray = mask & ~inside
    return edge


def surface_distances_mm(
    a: Bool[np.ndarray, "*space"], b: Bool[np.ndarray, "*space"], spacing_mm: Sequence[float]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """Return, for each surface voxel of ``a``, how far the surface of ``b`` is, and the other way round.

    Only the box around both masks is looked at, and distances come from a k-d tree over surface voxels, so the cost follows the
    object and not the image.

    Args:
        a: A mask that is not empty.
        b: A mask that is not empty.
        spacing_mm: Distance between voxel centres along each axis, in array order.

    Raises:
        ValueError: if either mask is empty, or the spacing has another number of axes.
    """
    _check_pair(a, b)
    if len(spacing_mm) != a.ndim:
        message = f"spacing_mm must name {a.ndim} lengths in array order, but is {tuple(spacing_mm)}."
        raise ValueError(message)
    if not (a.any() and b.any()):
        message = "surface distances need two masks with at least one voxel each, but one is empty. Ask nsd or hd95 instead."
        raise ValueError(message)
    box = union_box(a, b)
    scale = np.asarray(spacing_mm, dtype=np.float64)
    points_a, points_b = np.argwhere(surface(a[box])) * scale, np.argwhere(surface(b[box])) * scale
    return cKDTree(points_b).query(points_a)[0], cKDTree(points_a).query(points_b)[0]


def _diagonal_mm(shape: tuple[int, ...], spacing_mm: Sequence[float]) -> float:
    """Return the length of the image's diagonal: the distance given to an object that was missed altogether."""
    return float(np.linalg.norm(np.multiply(shape, spacing_mm)))


def _boundary(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> tuple[float, float]:
    """Return NSD and HD95 of one pair of masks from one set of distances."""
    if not a.any() and not b.any():
        return float("nan"), float("nan")
    if not a.any() or not b.any():
        return 0.0, _diagonal_mm(a.shape, spacing_mm)
    there, back = surface_distances_mm(a, b, spacing_mm)
    near = _count(there <= tolerance_mm) + _count(back <= tolerance_mm)
    return near / (len(there) + len(back)), float(max(np.percentile(there, 95), np.percentile(back, 95)))


def nsd(
    a: Bool[np.ndarray, "*space"],
    b: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    exclude: Bool[np.ndarray, "*space"] | None = None,
) -> float:
    """Return the normalised surface Dice: the share of both surfaces within ``tolerance_mm`` of the other, in [0, 1]."""
    return _boundary(*mask_pair(a, b, exclude), spacing_mm, tolerance_mm)[0]


def hd95(
    a: Bool[np.ndarray, "*space"],
    b: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    exclude: Bool[np.ndarray, "*space"] | None = None,
) -> float:
    """Return the 95th percentile Hausdorff distance in mm: the larger of the two directed percentiles."""
    return _boundary(*mask_pair(a, b, exclude), spacing_mm, DEFAULT_TOLERANCE_MM)[1]


def score_mask(
    predicted: Bool[np.ndarray, "*space"],
    gold: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    exclude: Bool[np.ndarray, "*space"] | None = None,
) -> MaskScores:
    """Return every metric of one class of one case, measuring the surfaces once."""
    left, right = mask_pair(predicted, gold, exclude)
    surface_dice, distance_mm = _boundary(left, right, spacing_mm, tolerance_mm)
    return MaskScores(
        dice=dice(left, right), jaccard=jaccard(left, right), nsd=surface_dice, hd95_mm=distance_mm, volume_bias=volume_bias(left, right)
    )


def error_transfer(
    teacher: Integer[np.ndarray, "*space"], student: Integer[np.ndarray, "*space"], gold: Integer[np.ndarray, "*space"]
) -> ErrorTransfer:
    """Return which part of the teacher's errors a student corrects or repeats, and which errors it adds; nothing is an error where gold is ``IGNORE``."""
    _check_pair(teacher, gold)
    _check_pair(student, gold)
    known = gold != IGNORE
    teacher, student, gold = teacher[known], student[known], gold[known]
    teacher_wrong, student_wrong = teacher != gold, student != gold
    wrong, right = _count(teacher_wrong), _count(~teacher_wrong)
    return ErrorTransfer(
        correction=_ratio(_count(teacher_wrong & ~student_wrong), wrong),
        imitation=_ratio(_count(teacher_wrong & (student == teacher)), wrong),
        new=_ratio(_count(~teacher_wrong & student_wrong), right),
    )


def patient_means(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Return the mean of each patient's values, leaving out NaN and patients that have nothing else."""
    groups: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if not np.isnan(value):
            groups.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(group)) for patient, group in groups.items()}


def patient_interval(
    values: Sequence[float], patients: Sequence[str], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS, coverage: float = 0.95
) -> Interval:
    """Return the mean over patients and its percentile bootstrap interval.

    Patients are drawn with replacement, not cases: two scans of one patient are not two witnesses.

    Args:
        values: One value per case; NaN is left out and counted.
        patients: The patient of each case, in the same order.
        seed: Same seed, same interval.
        draws: Bootstrap samples.
        coverage: The interval's nominal coverage.
    """
    means = np.asarray(list(patient_means(values, patients).values()))
    excluded = _count(np.isnan(np.asarray(values, dtype=float)))
    if len(means) == 0:
        return Interval(mean=float("nan"), low=float("nan"), high=float("nan"), patients=0, excluded=excluded)
    drawn = np.random.default_rng(seed).integers(0, len(means), size=(draws, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(mean=float(means.mean()), low=float(low), high=float(high), patients=len(means), excluded=excluded)


def paired_interval(
    a: Sequence[float], b: Sequence[float], patients: Sequence[str], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Interval:
    """Return the mean over patients of ``a - b`` with its interval; a case where either is NaN is left out and counted."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return patient_interval(differences.tolist(), patients, seed=seed, draws=draws)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation of two lists, leaving out pairs with NaN; NaN when either list is constant."""
    pairs = np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    ranks = np.stack([rankdata(row) for row in pairs])
    if pairs.shape[1] < 2 or not ranks.std(axis=1).all():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def aurc(confidence: Sequence[float], risk: Sequence[float]) -> float:
    """Return the area under the risk-coverage curve: the mean, over n, of the mean risk of the n most confident cases.

    Ties in confidence keep their order. The trapezoid variant, which leaves out coverages below 1/n, gives smaller figures.
    """
    order = np.argsort(-np.asarray(confidence, dtype=float), kind="stable")
    sorted_risk = np.asarray(risk, dtype=float)[order]
    return float((np.cumsum(sorted_risk) / np.arange(1, len(sorted_risk) + 1)).mean())


def normalised_aurc(confidence: Sequence[float], risk: Sequence[float]) -> float:
    """Return how much of the possible gain over a random order the confidence achieves: 1 is perfect, 0 is random; NaN where it is constant."""
    if len(set(confidence)) < 2:
        return float("nan")  # the order would be that of the list
    random_order = float(np.mean(np.asarray(risk, dtype=float)))
    best = aurc([-r for r in risk], risk)
    return _ratio(random_order - aurc(confidence, risk), random_order - best)


def expected_calibration_error(probability: Float[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"], bins: int = 15) -> float:
    """Return the mean gap between foreground probability and foreground frequency over equal-width bins, weighted by bin size."""
    _check_pair(probability, truth)
    flat, hit = probability.ravel().astype(np.float64), truth.ravel()
    which = np.minimum((flat * bins).astype(np.int64), bins - 1)
    said = np.bincount(which, weights=flat, minlength=bins)
    was = np.bincount(which, weights=hit, minlength=bins)
    return _ratio(float(np.abs(said - was).sum()), flat.size)


def brier(probability: Float[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]) -> float:
    """Return the mean squared difference between foreground probability and truth."""
    _check_pair(probability, truth)
    return float(np.mean((probability.astype(np.float64) - truth) ** 2))


def summarise(per_case: Mapping[str, MaskScores], patient_of: Mapping[str, str], *, seed: int = 0) -> dict[str, Interval]:
    """Return each metric's mean over patients with its interval, by the metric's name."""
    cases = sorted(per_case)
    patients = [patient_of[case] for case in cases]
    return {name: patient_interval([getattr(per_case[case], name) for case in cases], patients, seed=seed) for name in MaskScores.__slots__}
