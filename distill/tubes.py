"""Is a tube still a tube? clDice of vessels, airways and nerves (Shit et al., CVPR 2021).

Dice of a thin tube is decided by its wall, and hardly notices a gap that cuts a vessel in two. clDice looks at centre lines instead: the
share of the predicted one that lies in gold (precision), the share of gold's that lies in the prediction (sensitivity), and their harmonic mean.

Centre lines are those of Lee et al. (1994) in scikit-image, in 2D and 3D alike. They are drawn on the grid of the image: spacing is not looked at,
so of slices much thicker than pixels a centre line is only roughly one.
"""

import numpy as np
from jaxtyping import Bool

from distill.quality import mask_pair, union_box


def centre_line(mask: Bool[np.ndarray, "*space"]) -> Bool[np.ndarray, "*space"]:
    """Return the skeleton of a mask, one voxel wide; a mask that has a voxel has a centre line too.

    Args:
        mask: in 2D or 3D; what is a single slice is thinned in its plane.
    """
    from skimage.morphology import skeletonize

    flat = mask.squeeze()
    line = skeletonize(flat, method="lee").astype(bool).reshape(mask.shape) if flat.ndim in (2, 3) else mask
    return np.asarray(line if line.any() else mask)


def cl_dice(a: Bool[np.ndarray, "*space"], b: Bool[np.ndarray, "*space"], exclude: Bool[np.ndarray, "*space"] | None = None) -> float:
    """Return the harmonic mean of the shares of both centre lines that lie in the other mask, in [0, 1].

    Both masks empty: NaN. One empty: 0.
    """
    left, right = mask_pair(a, b, exclude)
    if not left.any() and not right.any():
        return float("nan")
    if not left.any() or not right.any():
        return 0.0
    box = union_box(left, right)
    left, right = left[box], right[box]
    precision, sensitivity = float(right[centre_line(left)].mean()), float(left[centre_line(right)].mean())
    return 2 * precision * sensitivity / (precision + sensitivity) if precision + sensitivity else 0.0
