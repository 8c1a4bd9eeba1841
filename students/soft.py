"""A label set's probabilities as targets: moved so that its threshold is one half, and never against what the label says."""

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from storage import IGNORE, ClassInfo, Labels

_TOP = 255
"""uint8 code of certainty in the archive."""

_STEP = 2 / _TOP
"""Two probabilities that are nearer than this are alike: one step of the code on either side."""


def soft_targets(
    labels: Labels | None,
    channels: Shaped[np.ndarray, "z y x"],
    classes: tuple[ClassInfo, ...],
    where: tuple[int | slice, ...] = (slice(None),),
) -> UInt8[np.ndarray, "k z y x"]:
    """Return the probability of each class, 255 = certain.

    Refinement cuts at a threshold that calibration found, and cleans the result. So probabilities are moved along the logistic curve until the
    threshold is at one half; and where the label nevertheless is not what they say (a piece was taken away, a hole was filled), it is certain.

    Args:
        labels: with ``probability`` and, in their history, ``threshold/ID`` (one half where there is none). Without probabilities, labels
            are certain; so are none at all.
        channels: the labels in this window as the network counts them: 0 background, 1.. position in ``classes``, ``IGNORE``.
        classes: of the student.
        where: the window of ``(z, y, x)``, from its first axis on.
    """
    said = np.stack([channels == n for n in range(len(classes) + 1)]).astype(np.float32)
    if labels is None or labels.probability is None:
        return (said[1:] * _TOP).astype(np.uint8)
    moved = _moved(labels, classes, where)
    sure = np.concatenate([np.clip(1 - moved.sum(0, keepdims=True), 0, 1), moved])
    against = ((sure * said).sum(0) < sure.max(0) - _STEP) & (channels != IGNORE)
    return np.asarray(np.rint(np.where(against, said[1:], moved) * _TOP), np.uint8)


def _moved(labels: Labels, classes: tuple[ClassInfo, ...], where: tuple[int | slice, ...]) -> Float32[np.ndarray, "k z y x"]:
    """Return the student's classes' probabilities with each threshold at one half; 0 for a class that the label set has not."""
    stored, history = labels.probability, labels.history
    rows = {info.id: row for row, info in enumerate(history.classes)}
    found = []
    for info in classes:
        row = rows.get(info.id)
        window = (0 if row is None else row, *where)
        p = np.asarray(stored[window], np.float32) / _TOP if stored is not None else np.zeros(1, np.float32)
        known = history.parameters.get(f"threshold/{info.id}", 0.5)
        cut = float(np.clip(known, 0.01, 0.99)) if isinstance(known, (int, float)) else 0.5
        found.append(np.zeros_like(p) if row is None else p * (1 - cut) / (p * (1 - cut) + (1 - p) * cut))
    return np.stack(found)
