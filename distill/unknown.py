"""What the map ``unknown`` of a teacher's label set says, class by class.

A slice that is unknown for one class may be known for another: what is drawn there of the other one is believed, as it was asked about and drawn by
itself. What is left is not background, since the first class may be there; and what was drawn of the first one, if anything was, is no object.
"""

import numpy as np
from jaxtyping import UInt8

from storage import Labels

DISBELIEVED = 255
"""The class was drawn on the slice, and did not lead back to where it came from: where it is there, nobody knows."""
UNASKED = 128
"""The class was not asked about on the slice."""


def unknown_map(labels: Labels, class_id: int) -> UInt8[np.ndarray, "z y x"]:
    """Return what the map says of one class, 0 where everything is known."""
    stored = labels.class_map("unknown", class_id)
    return np.zeros(labels.ids.shape, np.uint8) if stored is None else np.asarray(stored, np.uint8)
