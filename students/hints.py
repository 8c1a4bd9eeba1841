"""A teacher's masks as further channels of a student's image: what the teacher believes of each voxel, seen beside the intensities.

SAM's masks as an extra channel: Zhang et al. 2023, "Input Augmentation with SAM". A student with such channels answers only where the teacher has drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from storage import IGNORE, Case, ClassInfo, LabelSetNotFoundError
from students.errors import VolumeError

_TOP = np.float32(255)
"""uint8 code of certainty in the archive."""


def read_hints(
    stored: Case, label_set: str, classes: Sequence[ClassInfo], where: tuple[int | slice, ...] = (slice(None),)
) -> Float32[np.ndarray, "k z y x"]:
    """Return what a label set believes of each class: 1 certain that it is there, -1 certain that it is not, 0 nobody knows.

    Args:
        stored: The case.
        label_set: Whose probabilities are taken where it has some, else its ids.
        classes: Of the student; of one that the label set has not, nobody knows anything.
        where: A window of ``(z, y, x)``, from its first axis on.

    Raises:
        VolumeError: if the case does not carry the label set.
    """
    try:
        labels = stored.labels(label_set)
    except LabelSetNotFoundError:
        message = f"case {stored.id}: no label set {label_set!r}, which this student sees beside the image. Let the teacher draw the case first ('samdistill label RECIPE')."
        raise VolumeError(message) from None
    rows = {info.id: row for row, info in enumerate(labels.history.classes)}
    ids = np.asarray(labels.ids[where])
    found = []
    for info in classes:
        if info.id not in rows:
            found.append(np.zeros(ids.shape, np.float32))
        elif labels.probability is None:
            found.append(np.where(ids == IGNORE, 0, np.where(ids == info.id, 1, -1)).astype(np.float32))
        else:
            found.append(2 * np.asarray(labels.probability[(rows[info.id], *where)], np.float32) / _TOP - 1)
    return np.stack(found)


def beside(image_czyx: np.ndarray, hints_kzyx: Float32[np.ndarray, "k z y x"] | None) -> np.ndarray:
    """Return an image with hints as its last channels; the image itself where there are none."""
    return image_czyx if hints_kzyx is None else np.concatenate([image_czyx.astype(np.float32), hints_kzyx])
