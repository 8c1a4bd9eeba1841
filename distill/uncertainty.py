"""Ask the same question several ways, and measure how much the answers differ.

Members of an ensemble are jittered boxes (Deng et al. 2023, SAM-U) on the picture and on other views of it (``distill.views``). Their mean
probability is the label, its binary entropy the map of doubt, and the mean Dice over all pairs of members the score of the
mask, which ranked masks best in the comparison of Zenk et al. (2024). Mutual information is the part of the entropy that comes from
members contradicting each other: what is left when the mean of their own entropies is taken away (Depeweg et al. 2018).
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

LN2 = float(np.log(2.0))
Weights = Literal["equal", "predicted_iou", "agreement"]
"""What a member counts in the mean: all alike, by what the teacher says of it, or by its mean Dice with the others."""
FAR_BELOW = -20.0
"""The logit of pixels where nothing is believed."""
OUTSIDE = np.float32(1 / (1 + np.exp(-np.float32(FAR_BELOW))))
"""Their probability."""


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
    vote: np.ndarray
    """``(H, W)`` uint8: the share of members that say yes, 255 = all."""
    mutual_information: np.ndarray
    """``(H, W)`` uint8: how much of the entropy comes from members contradicting each other, 255 = ln 2."""
    multimask_dice: float | None = None
    """Mean Dice over pairs of the candidates for the unjittered box; None where they were not asked for."""

    def placed(self, region: tuple[slice, slice], size_px: tuple[int, int]) -> "EnsembleSummary":
        """Return the summary of a picture of ``size_px`` in which this one is rows and columns ``region``, and nothing is believed elsewhere."""
        maps: dict[str, Any] = {
            "probability": np.full(size_px, OUTSIDE),
            "vote": np.zeros(size_px, np.uint8),
            "mutual_information": np.zeros(size_px, np.uint8),
        }
        for name, whole in maps.items():
            whole[region] = getattr(self, name)
        return replace(self, **maps)


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


def seed_for(case: str, class_id: int, z: int, seed: int, *, piece: int = 0) -> np.random.Generator:
    """Return a generator that depends on what is asked and not on when, so that a resumed run repeats the same jitter.

    Args:
        case: its id.
        class_id: of the class.
        z: the slice.
        seed: of the run.
        piece: which of the class's pieces: with the same noise, what pieces share by chance would look like what they share. The first, and so a
            class that is in one piece, has the draws that it had before pieces were asked apart.
    """
    name = f"{seed}/{case}/{class_id}/{z}" + (f"/{piece}" if piece else "")
    digest = blake2b(name.encode(), digest_size=8).digest()
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


def in_bytes(share: np.ndarray) -> np.ndarray:
    """Return what lies in [0, 1], give or take rounding, as uint8 with 255 for 1."""
    return np.asarray(np.rint(255 * np.clip(share, 0, 1)), np.uint8)


def summarise(logits: np.ndarray, weights: np.ndarray | None = None) -> EnsembleSummary:
    """Fuse the members' logits ``(E, H, W)`` into one summary.

    Args:
        logits: of the members.
        weights: ``(E,)`` of each member in the mean probability and its entropies, summing to 1. Default: all alike. Agreement, vote and stability count
            members alike in any case.
    """
    clipped = np.clip(logits, -30, 30)
    odds = np.exp(-clipped)
    probabilities = 1 / (1 + odds)
    entropies = np.log1p(odds) + (1 - probabilities) * clipped  # of p = sigmoid(l): log(1 + exp(-l)) + (1 - p) l
    if weights is None:
        mean, own_entropy = probabilities.mean(axis=0).astype(np.float32), entropies.mean(axis=0)
    else:
        mean, own_entropy = (np.tensordot(weights, each, 1).astype(np.float32) for each in (probabilities, entropies))
    mean_logit = logits.mean(axis=0)
    outer = int((mean_logit > -1).sum())
    yes = logits > 0
    return EnsembleSummary(
        probability=mean,
        pairwise_dice=pairwise_dice(yes),
        stability=float((mean_logit > 1).sum() / outer) if outer else 0.0,
        area_px=int((mean > 0.5).sum()),
        vote=in_bytes(yes.mean(axis=0)),
        mutual_information=in_bytes((binary_entropy(mean) - own_entropy) / LN2),
    )
