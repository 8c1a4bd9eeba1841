"""Give each member of an ensemble points of its own, so that an answer that hangs on one lucky point shows as doubt."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from distill.prompts.hints import SliceHint

INNER = 0.5
"""Points are drawn where the distance to the rough mask's border is at least this share of the largest one: borders are what is in doubt."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """Where the members' positive points are drawn from, and the negative ones that all of them have."""

    places: np.ndarray
    """``(N, 2)`` xy float32, pixel indices."""
    positives: int
    negatives: np.ndarray
    """``(M, 2)`` xy float32."""

    @property
    def count(self) -> int:
        """Points per member."""
        return self.positives + len(self.negatives)

    @property
    def labels(self) -> np.ndarray:
        """``(K,)`` float32: 1 inside, 0 outside."""
        return np.repeat(np.array([1, 0], np.float32), [self.positives, len(self.negatives)])

    def draw(self, members: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``(members, K, 2)`` float32: for each member other points, none twice unless there are too few places."""
        picks = [rng.choice(len(self.places), self.positives, replace=len(self.places) < self.positives) for _ in range(members)]
        return np.stack([np.concatenate([self.places[each], self.negatives]) for each in picks]).astype(np.float32)


def resampling_of(hint: SliceHint | None, rough: np.ndarray | None, positives: int) -> Resampling | None:
    """Say where members draw their points: from the points that were given, else from well inside the rough mask; None where there is neither.

    Args:
        hint: the stored prompt of the slice, if it has one.
        rough: ``(H, W)`` in [0, 1]: a rough mask, given or of the neighbouring slices.
        positives: points per member.
    """
    given = hint.points if hint is not None else None
    labels = hint.point_labels if hint is not None else None
    negatives = np.zeros((0, 2), np.float32)
    if given is not None and labels is not None:
        negatives = given[labels == 0]
        if (labels == 1).any():
            return Resampling(given[labels == 1], positives, negatives)
    if rough is None or not (rough > 0.5).any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(rough > 0.5, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= INNER * depth.max())
    return Resampling(np.stack([columns, rows], axis=1).astype(np.float32), positives, negatives)
