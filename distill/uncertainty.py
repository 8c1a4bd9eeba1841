"""Ask the same question several ways, and measure how much the answers differ.

Members of an ensemble are jittered boxes (Deng et al. 2023, SAM-U) on the picture and on its mirror image. Their mean
probability is the label, their binary entropy the map of doubt, and the mean Dice over all pairs of members the score of the
mask, which ranked masks best in the comparison of Zenk et al. (2024).
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

LN2 = float(np.log(2.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleSummary:
    """What ``E`` members say about one mask."""

    probability: np.ndarray
    """``(H, W)`` float32: mean of the members' probabilities."""
    pairwise_dice: float
    """Mean Dice over pairs of members; 1 if all are empty."""
    stability: float
    """Area where the mean logit exceeds +1 over the area where it exceeds -1; 0 when the latter is empty (SAM's is NaN)."""
    area_px: int
    """Pixels of the mean mask."""


def jitter_boxes(box: np.ndarray, count: int, amount: float, size_px: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return ``(count, 4)`` boxes: the given one first, then copies with each side moved by N(0, ``amount`` x its length).

    Args:
        box: ``(4,)`` xyxy.
        count: number of boxes, at least 1.
        amount: standard deviation as a share of the box's width or height.
        size_px: (height, width) to clip to.
        rng: source of the noise.
    """
    sides = np.tile(np.maximum(box[2:] - box[:2], 1.0), 2)
    noise = rng.normal(size=(count, 4)) * sides * amount
    noise[0] = 0
    return np.stack([clip_box(each, size_px) for each in box + noise]).astype(np.float32)


def clip_box(box: np.ndarray, size_px: tuple[int, int], least_px: float = 1.5) -> np.ndarray:
    """Return ``box`` inside the picture and at least ``least_px`` long on each side."""
    height, width = size_px
    limits = np.array([width, height], float)
    low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
    short = np.maximum(least_px - (high - low), 0) / 2
    low, high = np.clip(low - short, 0, limits - least_px), np.clip(high + short, 0, limits)
    return np.concatenate([low, np.maximum(high, low + least_px)])


def seed_for(case: str, class_id: int, z: int, seed: int) -> np.random.Generator:
    """Return a generator that depends on what is asked and not on when, so that a resumed run repeats the same jitter."""
    digest = blake2b(f"{seed}/{case}/{class_id}/{z}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def pairwise_dice(masks: np.ndarray) -> float:
    """Return the mean Dice over all pairs of ``(E, ...)`` bool masks; two empty masks agree (1), one empty mask does not (0)."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    if len(flat) < 2:
        return 1.0
    shared = flat @ flat.T
    sizes = np.diag(shared)
    total = sizes[:, None] + sizes[None]
    dice = np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)
    return float(dice[np.triu_indices(len(flat), 1)].mean())


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return the entropy of Bernoulli probabilities in nats: 0 where certain, ln 2 at one half."""
    p = np.clip(probability.astype(np.float32), 1e-6, 1 - 1e-6)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)), np.float32)


def summarise(logits: np.ndarray) -> EnsembleSummary:
    """Fuse the members' logits ``(E, H, W)`` into one summary."""
    probabilities = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    mean = probabilities.mean(axis=0).astype(np.float32)
    mean_logit = logits.mean(axis=0)
    outer = int((mean_logit > -1).sum())
    return EnsembleSummary(
        probability=mean,
        pairwise_dice=pairwise_dice(logits > 0),
        stability=float((mean_logit > 1).sum() / outer) if outer else 0.0,
        area_px=int((mean > 0.5).sum()),
    )
