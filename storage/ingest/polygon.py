"""Fill polygons on a pixel grid."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64


def fill_polygons(polygons: Sequence[Sequence[float]], size_yx: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Return the pixels whose centres lie in any of the polygons (even-odd rule within each).

    Args:
        polygons: Each as ``x0, y0, x1, y1, ...``; pixel ``n`` covers ``[n, n + 1)``, so its centre is at ``n + 0.5``.
        size_yx: Rows and columns of the image.

    Raises:
        ValueError: if a polygon has fewer than three corners, an odd number of values, or one that is no number.
    """
    filled = np.zeros(size_yx, dtype=bool)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            message = f"a polygon needs at least three corners of x and y, but has {len(polygon)} values."
            raise ValueError(message)
        if not np.isfinite(polygon).all():
            message = "a polygon holds a value that is no number."
            raise ValueError(message)
        filled |= _fill(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), size_yx)
    return filled


def _fill(corners_xy: Float64[np.ndarray, "n 2"], size_yx: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Walk along each row and flip between outside and inside at every edge crossed."""
    filled = np.zeros(size_yx, dtype=bool)
    starts, ends = corners_xy, np.roll(corners_xy, -1, axis=0)
    centres_x = np.arange(size_yx[1]) + 0.5
    lowest, highest = corners_xy[:, 1].min(), corners_xy[:, 1].max()
    for row in range(max(int(lowest - 0.5), 0), min(int(highest + 0.5) + 1, size_yx[0])):
        y = row + 0.5
        crossed = (starts[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = starts[crossed].T, ends[crossed].T
        crossings = np.sort(x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        filled[row] = np.searchsorted(crossings, centres_x, side="right") % 2 == 1
    return filled
