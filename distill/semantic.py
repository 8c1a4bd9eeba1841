"""Is it the right object? Where, how large and how bright a mask is, against the other masks of the same class in the archive.

Asking the teacher again with other prompts cannot see that all of them sit on the neighbouring organ. This test can, without any expert's
label: most masks of a class are of the right object, so that one that lies elsewhere, has another size or another brightness than those of
all other patients stands out. It says how usual a mask is, not how good its border is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.stats import norm

from distill.intensity import IntensitySpec, choose_window, picture_of
from storage import CaseRecord

LEAST_PATIENTS = 10
"""With masks of fewer, what is usual cannot be said."""
_NEIGHBOURS = 0.4
"""Share of the other patients who have a mask near a usual one. A wrong object that is repeated in fewer of them than that stays unusual."""
_BODY_FROM = 0.1
"""Grey value, of the window's range, from which a voxel is body and not air."""
_OPEN = 0.2
"""Probabilities further than this from 0 and 1 are open."""
_USUAL_FROM = 0.001
_TAUGHT_FROM = 0.2
_RIM_PX = 2
_THIN_MM2 = 1e-3
"""Variance along the shortest axis of a mask that is one voxel thick."""
_TINY = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a mask is like, in numbers that can be compared between patients."""

    centre_zyx: tuple[float, float, float]
    """Of mass, 0 to 1 across the body."""
    log_size: float
    """Natural logarithm of the volume in mm3; of the area in pixels where there is no spacing."""
    elongation: float
    """Natural logarithm of its longest by its shortest axis, of those along which the case has more than one voxel."""
    inside: float
    """Mean grey value, 0 to 1 in the window."""
    contrast: float
    """The same less the mean of a rim of 2 px around."""
    texture: float
    """Standard deviation of the grey values inside."""

    def vector(self) -> np.ndarray:
        """Return the eight numbers."""
        return np.array([*self.centre_zyx, self.log_size, self.elongation, self.inside, self.contrast, self.texture])


def traits_of(mask: Bool[np.ndarray, "z y x"], grey: Float[np.ndarray, "z y x"], spacing_zyx_mm: Sequence[float]) -> Traits | None:
    """Measure a mask; None if it is empty.

    Args:
        mask: the object.
        grey: the picture in its window, 0 to 1.
        spacing_zyx_mm: distance between voxel centres.
    """
    if not mask.any():
        return None
    places = np.argwhere(mask)
    cross = ndimage.generate_binary_structure(3, 1)
    rim = np.asarray(ndimage.binary_dilation(mask, cross, iterations=_RIM_PX)) & ~mask
    inside = grey[mask]
    around = float(grey[rim].mean()) if rim.any() else float(inside.mean())
    return Traits(
        centre_zyx=_in_body(places.mean(axis=0), grey),
        log_size=float(np.log(len(places) * np.prod(spacing_zyx_mm))),
        elongation=_elongation(places * np.asarray(spacing_zyx_mm), mask.shape),
        inside=float(inside.mean()),
        contrast=float(inside.mean()) - around,
        texture=float(inside.std()),
    )


def _in_body(centre: np.ndarray, grey: np.ndarray) -> tuple[float, float, float]:
    """Return a place as a share of the body's extent along each axis."""
    z, y, x = ((float(at) - low) / max(high - low, 1.0) for at, (low, high) in zip(centre, body_box(grey), strict=True))
    return z, y, x


def body_box(grey: Float[np.ndarray, "z y x"]) -> list[tuple[int, int]]:
    """Return the first and last index of the body along each axis; its outermost 1 % of voxels on each side are left out, as noise."""
    body = grey > _BODY_FROM
    found = []
    for axis in range(3):
        counts = body.sum(axis=tuple(other for other in range(3) if other != axis)).astype(float)
        share = np.cumsum(counts) / max(counts.sum(), 1.0)
        found.append((int(np.searchsorted(share, 0.01)), int(np.searchsorted(share, 0.99))))
    return found


def _elongation(places_mm: np.ndarray, shape: tuple[int, ...]) -> float:
    wide = places_mm[:, [size > 1 for size in shape]]
    if wide.shape[1] < 2 or len(wide) < 3:
        return 0.0
    axes = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(wide.T)), _THIN_MM2, None))
    return float(np.log(axes[-1] / axes[0]))


def grey_volume(record: CaseRecord, volume_czyx: np.ndarray, spec: IntensitySpec) -> Float[np.ndarray, "z y x"]:
    """Return a case in the window that its teacher is shown, as one grey value from 0 to 1 per voxel."""
    window = choose_window(record, volume_czyx, spec)
    slices = [picture_of(volume_czyx, z, window).mean(axis=2, dtype=np.float32) for z in range(volume_czyx.shape[1])]
    return np.stack(slices) / np.float32(255)


def firmness(probability: Float[np.ndarray, "z y x"], mask: Bool[np.ndarray, "z y x"]) -> float:
    """Return how few voxels the ensemble left open, 0 to 1: the mask's size over that size and the voxels between 0.2 and 0.8.

    Of the scores that a teacher gives itself it follows the true Dice best on volumes (benchmarks/quality_score.py). It sees a border that is
    not where the teacher thinks, and nothing of a wrong object.
    """
    size = int(np.count_nonzero(mask))
    open_ = int(np.count_nonzero((probability > _OPEN) & (probability < 1 - _OPEN)))
    return size / (size + open_) if size else 0.0


def credibility(prior: float | None, student: float | None = None, reverse: float | None = None) -> float:
    """Return what is left, 0 to 1, of a mask's quality once it has been asked whether it is the right object.

    Args:
        prior: how usual it is; from 0.001 on, where refinement rejects no longer, it takes nothing away. None if not measured.
        student: Dice with students that never saw the case. None if not measured.
        reverse: reverse classification accuracy; from 0.2 on, likewise, it takes nothing away. None if not measured.
    """
    usual = 1.0 if prior is None else min(1.0, prior / _USUAL_FROM)
    taught = 1.0 if reverse is None else min(1.0, reverse / _TAUGHT_FROM)
    return usual * taught * (1.0 if student is None else student)


def prior_scores(traits: Mapping[str, Traits], patients: Mapping[str, str]) -> dict[str, float]:
    """Return how usual each case's mask is among those of other patients, 0 to 1.

    Each trait is scaled by its median absolute deviation. A mask is as strange as its distance to the nearest 40 % of the other patients,
    each represented by the mask that is most like it: whatever many patients have is usual, though it be of several kinds, and what few
    have is not. The score is the tail of a normal distribution for the logarithm of that distance, scaled by median and median
    absolute deviation too, so that wrong objects in up to a third of the cases do not set the scale.

    Args:
        traits: by case, of one class.
        patients: the patient of each case.

    Returns:
        Nothing where there are fewer than 10 patients: what is usual cannot be said then.
    """
    cases = sorted(traits)
    owners = np.array([patients[case] for case in cases])
    if len(set(owners.tolist())) < LEAST_PATIENTS:
        return {}
    share = np.array([1 / np.count_nonzero(owners == owner) for owner in owners])
    scaled = _scaled(np.stack([traits[case].vector() for case in cases]), share)
    strange = np.log([max(_strangeness(scaled, owners, n), _TINY) for n in range(len(cases))])
    usual = norm.sf(_scaled(strange[:, None], share)[:, 0])
    return {case: float(value) for case, value in zip(cases, usual, strict=True)}


def _scaled(vectors: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return ``(cases, traits)`` around the median, in standard deviations as the median absolute deviation gives them; constant ones are 0.

    Args:
        vectors: one row per case.
        share: how much each case counts, so that each patient counts once.
    """
    away = vectors - _median(vectors, share)
    spread = 1.4826 * _median(np.abs(away), share)
    return np.asarray(away / np.where(spread > _TINY, spread, np.inf))


def _median(vectors: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the weighted median of each column."""
    order = np.argsort(vectors, axis=0, kind="stable")
    reached = np.cumsum(share[order], axis=0) / share.sum()
    place = np.argmax(reached >= 0.5 - 1e-9, axis=0)
    return np.asarray(np.take_along_axis(vectors, np.take_along_axis(order, place[None], axis=0), axis=0)[0])


def _strangeness(scaled: np.ndarray, owners: np.ndarray, n: int) -> float:
    """Return the distance of one mask to the nearest share of the other patients."""
    others = owners != owners[n]
    distance = np.linalg.norm(scaled[others] - scaled[n], axis=1)
    nearest: dict[str, float] = {}
    for owner, each in zip(owners[others].tolist(), distance.tolist(), strict=True):
        nearest[owner] = min(each, nearest.get(owner, np.inf))
    near = np.sort(list(nearest.values()))
    return float(near[max(0, int(np.ceil(_NEIGHBOURS * len(near))) - 1)])
