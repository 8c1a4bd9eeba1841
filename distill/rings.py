"""How far from its edge a mask is to be believed: an inner and an outer distance in mm that hold for most new patients.

Growing a mask by the outer distance covers ``coverage`` of the object, and shrinking it by the inner distance leaves voxels of which
``coverage`` are the object; between the two lies the ring that nobody should learn from. Distances are Euclidean and in mm, so that
voxels that are longer in one direction do not matter (after Mossina and Friedrich 2025, who count dilations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from distill.conformal import Guarantee, Kind, conformal_quantile, needed_patients, promise, refusal, too_few
from distill.errors import CalibrationError

RING_COVERAGE = 0.9
"""Share of the object, or of the mask, that a ring is asked to settle. At 0.98 rings grew larger than small objects (toy experiment)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Where a mask is to be believed on both sides of its edge, each side at half the level (Bonferroni)."""

    outer: Guarantee
    inner: Guarantee
    feasible: bool
    statement: str
    unit: Literal["mm", "px"] = "mm"
    """Of both thresholds: ``px`` where the spacing is not known."""
    coverage: float = RING_COVERAGE


def outer_radius(
    mask: Bool[np.ndarray, "z y x"], gold: Bool[np.ndarray, "z y x"], spacing_zyx_mm: Sequence[float], coverage: float = RING_COVERAGE
) -> float:
    """Return the smallest distance in mm by which the mask has to grow to cover ``coverage`` of gold; infinite if there is no mask."""
    _check_pair(mask, gold, coverage)
    wanted = int(np.ceil(coverage * int(gold.sum()) - 1e-9))
    if wanted == 0:
        return 0.0
    if not mask.any():
        return float("inf")
    away = ndimage.distance_transform_edt(~mask, sampling=spacing_zyx_mm)[gold]
    return float(np.partition(away, wanted - 1)[wanted - 1])


def inner_radius(
    mask: Bool[np.ndarray, "z y x"],
    gold: Bool[np.ndarray, "z y x"],
    spacing_zyx_mm: Sequence[float],
    coverage: float = RING_COVERAGE,
    judged: Bool[np.ndarray, "z y x"] | None = None,
) -> float:
    """Return the smallest distance in mm such that, shrunk by it or by more, at least ``coverage`` of the mask is gold.

    An empty rest counts as good, and what lies outside the image is not background: the image's border is no edge of an object. A
    voxel stays while its distance to the background is above the radius. Of the mask only voxels count that are ``judged``: where the
    expert said what is there; by default all are.
    """
    _check_pair(mask, gold, coverage)
    counted = mask if judged is None else mask & judged
    if not counted.any():
        return 0.0
    if mask.all():
        return 0.0 if gold[counted].mean() >= coverage else float("inf")
    depth = ndimage.distance_transform_edt(mask, sampling=spacing_zyx_mm)[counted]
    # A mask that is shrunk further and further: the share of gold among all voxels at least as deep as each depth there is.
    depths, which = np.unique(depth, return_inverse=True)
    size = np.cumsum(np.bincount(which)[::-1])[::-1]
    right = np.cumsum(np.bincount(which, weights=gold[counted])[::-1])[::-1]
    bad = np.flatnonzero(right < coverage * size - 1e-9)
    return float(depths[bad[-1]]) if len(bad) else 0.0


def ring(
    outer: Sequence[float],
    inner: Sequence[float],
    patients: Sequence[str],
    *,
    level: float,
    coverage: float = RING_COVERAGE,
    unit: Literal["mm", "px"] = "mm",
    subject: str = "mask",
) -> Ring:
    """Find the two distances from the radii of each calibration mask; a patient counts with the worst of their masks.

    Args:
        outer: ``outer_radius`` of each mask.
        inner: ``inner_radius`` of each mask.
        patients: Of each mask.
        level: Share of new patients for whom either side may fail.
        coverage: What the radii were measured at; for the statement.
        unit: Of the radii: ``px`` where the spacing is not known.
        subject: For the statement: which mask, such as ``mask cut at 0.50``.
    """
    sides = (
        _side(
            "outer-ring",
            _worst(outer, patients),
            level / 2,
            f"growing the {subject} by",
            f"covers at least {coverage:.0%} of the object",
            unit,
        ),
        _side(
            "inner-ring", _worst(inner, patients), level / 2, f"shrinking the {subject} by", f"leaves at least {coverage:.0%} object", unit
        ),
    )
    feasible = all(side.feasible for side in sides)
    if feasible:
        said = (
            f"With a probability of at least {1 - level:.2f} over new patients and draws of {sides[0].patients} calibration patients, both hold for all masks of a new "
            f"patient: growing the {subject} by {sides[0].threshold:.2f} {unit} covers at least {coverage:.0%} of the object, and of what is left after shrinking it by "
            f"{sides[1].threshold:.2f} {unit} at least {coverage:.0%} is the object."
        )
    else:
        said = " ".join(dict.fromkeys(side.statement for side in sides if not side.feasible))
    return Ring(outer=sides[0], inner=sides[1], feasible=feasible, statement=said, unit=unit, coverage=coverage)


def _side(kind: Kind, scores: Sequence[float], level: float, doing: str, what: str, unit: str) -> Guarantee:
    count, needed = len(scores), needed_patients(level)
    why = f"{too_few(2 * level, needed, count)} ({level:.2f} on each side)" if count < needed else ""
    radius = conformal_quantile(scores, level) if not why else float("nan")
    if not why and np.isinf(radius):
        why = f"in more than {level:.2f} of the patients {doing} any distance is of no help"
    if why:
        return refusal(kind, level, count, why)
    statement = (
        f"With a probability of at least {1 - level:.3f} over new patients and draws of {count} calibration patients, {doing} {radius:.2f} {unit} {what}, "
        "for all masks of a new patient."
    )
    return promise(kind, level, count, statement, threshold=radius, found=float(np.mean(np.asarray(scores) > radius)))


def _worst(radii: Sequence[float], patients: Sequence[str]) -> list[float]:
    """Return the largest radius of each patient."""
    found: dict[str, float] = {}
    for radius, patient in zip(radii, patients, strict=True):
        found[patient] = max(radius, found.get(patient, 0.0))
    return [found[patient] for patient in sorted(found)]


def _check_pair(mask: np.ndarray, gold: np.ndarray, coverage: float) -> None:
    if mask.shape != gold.shape:
        message = f"mask and gold must be on one grid, but have shapes {mask.shape} and {gold.shape}. Was one not resampled back?"
        raise CalibrationError(message)
    if not 0 < coverage <= 1:
        message = f"coverage must lie above 0 and at most at 1 (the share of the object to be covered), but is {coverage}."
        raise CalibrationError(message)
