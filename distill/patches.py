"""A part of a map of a slice that stands for the whole: hundreds of pieces on a slice would not fit into memory as whole slices."""

from dataclasses import dataclass

import numpy as np

Region = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patch:
    """Values in a rectangle of a slice, and one value everywhere else."""

    values: np.ndarray
    """``(h, w)``."""
    corner_yx: tuple[int, int] = (0, 0)
    """Row and column of the first value."""
    around: float | np.floating = 0.0
    """The value outside of the rectangle."""

    @classmethod
    def cut(cls, whole: np.ndarray, region: Region, around: float | np.floating = 0.0) -> "Patch":
        """Keep of a map ``(H, W)`` what lies in rows and columns ``region``."""
        rows, columns = region
        return cls(values=np.array(whole[region]), corner_yx=(rows.start, columns.start), around=around)

    @property
    def region(self) -> Region:
        """Rows and columns of the values."""
        (y, x), (height, width) = self.corner_yx, self.values.shape
        return slice(y, y + height), slice(x, x + width)

    def on(self, size_px: tuple[int, int]) -> np.ndarray:
        """Return the whole map, ``(H, W)`` of the values' type."""
        whole = np.full(size_px, self.around, self.values.dtype)
        whole[self.region] = self.values
        return whole

    def at(self, x: float, y: float) -> float:
        """Return the value of the pixel that holds a place."""
        row, column = int(np.floor(y)) - self.corner_yx[0], int(np.floor(x)) - self.corner_yx[1]
        inside = 0 <= row < self.values.shape[0] and 0 <= column < self.values.shape[1]
        return float(self.values[row, column]) if inside else float(self.around)

    def joined(self, other: "Patch") -> "Patch":
        """Return the larger of both values everywhere; ``around`` has to be the same."""
        (y0, x0), (v0, u0) = self.corner_yx, other.corner_yx
        low = min(y0, v0), min(x0, u0)
        high = (
            max(y0 + self.values.shape[0], v0 + other.values.shape[0]) - low[0],
            max(x0 + self.values.shape[1], u0 + other.values.shape[1]) - low[1],
        )
        moved = [
            Patch(values=each.values, corner_yx=(each.corner_yx[0] - low[0], each.corner_yx[1] - low[1]), around=each.around)
            for each in (self, other)
        ]
        return Patch(values=np.maximum(*(each.on(high) for each in moved)), corner_yx=low, around=self.around)


def around_all(regions: list[Region]) -> Region:
    """Return the rows and columns from the first to the last of several regions."""
    rows, columns = ([each[axis] for each in regions] for axis in (0, 1))
    return slice(min(r.start for r in rows), max(r.stop for r in rows)), slice(min(c.start for c in columns), max(c.stop for c in columns))
