"""Which cells of the network's grid have to be drawn for the part of a picture that somebody looks at."""

from collections.abc import Sequence

import numpy as np

MARGIN_PX = 2.0
"""Low-resolution pixels beyond a region that its pixels look at: one on the way to the network's square, one on the way to the picture."""
Cells = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""
UNDRAWN = -20.0
"""The logit of what was left out."""


def cells_of(regions_xyxy: np.ndarray, grid: tuple[int, int], image_size: int) -> Sequence[Cells]:
    """Return the cells that regions need, one at least.

    Args:
        regions_xyxy: ``(P, 4)`` in the network's input pixels.
        grid: (rows, columns) of the embedding; a cell becomes 4 x 4 low-resolution pixels.
        image_size: side of the network's square.
    """
    rows, columns = grid
    low = np.asarray(regions_xyxy, np.float64) * (4 * columns / image_size)
    first = np.floor((low[:, :2] - MARGIN_PX) / 4).astype(int)
    after = np.ceil((low[:, 2:] + MARGIN_PX) / 4).astype(int)
    first = np.clip(first, 0, np.array([columns, rows]) - 1)
    after = np.clip(after, first + 1, [columns, rows])
    return [(int(y0), int(y1), int(x0), int(x1)) for (x0, y0), (x1, y1) in zip(first, after, strict=True)]
