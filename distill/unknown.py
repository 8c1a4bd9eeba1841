"""What the map ``unknown`` of a teacher's label set says, class by class.

A slice that is unknown for one class may be known for another: what is drawn there of the other one is believed, as it was asked about and drawn by
itself. What is left is not background, since the first class may be there; and what was drawn of the first one, if anything was, is no object.
"""

import numpy as np
from jaxtyping import Shaped, UInt8

from storage import IGNORE, Labels

DISBELIEVED = 255
"""The class was drawn on the slice, and did not lead back to where it came from: where it is there, nobody knows."""
UNASKED = 128
"""The class was not asked about on the slice, or was prompted there and the teacher drew nothing (``distill.unasked``)."""


def unknown_map(labels: Labels, class_id: int) -> UInt8[np.ndarray, "z y x"]:
    """Return what the map says of one class, 0 where everything is known."""
    stored = labels.class_map("unknown", class_id)
    return np.zeros(labels.ids.shape, np.uint8) if stored is None else np.asarray(stored, np.uint8)


def believed_ids(labels: Labels, where: tuple[int | slice, ...] = (slice(None),)) -> Shaped[np.ndarray, "..."]:
    """Return class ids as far as they are known, ``IGNORE`` elsewhere: what students may learn from a teacher's own labels.

    Args:
        labels: of a teacher; what has no map ``unknown`` is believed as it is.
        where: a window of ``(z, y, x)``, from its first axis on; no more is read.
    """
    ids, stored = np.asarray(labels.ids[where]), labels.map("unknown")
    if stored is None:
        return ids
    said = np.asarray(stored[(slice(None),) * (stored.ndim - 3) + where]).reshape(-1, *ids.shape)
    order = [info.id for info in labels.history.classes]
    open_here = (said > 0).any(axis=0) & (ids == 0)
    for class_id, about in zip(order, np.broadcast_to(said, (len(order), *ids.shape)), strict=True):
        open_here |= (ids == class_id) & (about == DISBELIEVED)
    return np.where(open_here, ids.dtype.type(IGNORE), ids)
