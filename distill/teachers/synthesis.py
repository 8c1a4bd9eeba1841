"""Generated images that look like nothing in particular and like anatomy in general.

A network that has only ever seen one organ learns that organ; one that has seen thousands of random arrangements of regions
with random intensities learns what a boundary is (Billot et al. 2023, SynthSeg; Hoffmann et al. 2022, SynthMorph; Dey et al.
2024, AnyStar). Scenes here are stacks of smooth regions and closed shapes (blobs, crescents, tubes, walls around cavities),
painted with intensities of random and often low contrast; ``degrade`` then adds what scanners add.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from distill.teachers.degrade import degrade, smooth_field

SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training image with the masks of the objects in it."""

    image: np.ndarray
    """``(H, W, 3)`` uint8."""
    masks: np.ndarray
    """``(N, H, W)`` bool, each a whole object; they may nest and overlap."""


def generate_scene(rng: np.random.Generator, size: int = SIZE) -> Sample:
    """Draw one scene of 1 to 9 objects on a patchwork background."""
    canvas, regions = _patchwork(rng, size)
    masks: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 9))):
        painted = _paint_object(rng, canvas)
        masks = _visible(masks, painted) + painted
    masks.extend(_large_regions(rng, regions))
    canvas += rng.uniform(0, 0.08) * smooth_field(rng, size, int(rng.integers(24, 120)))
    return Sample(image=degrade(rng, canvas), masks=np.stack(masks) if masks else np.zeros((0, size, size), bool))


def _patchwork(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a background ``(H, W)`` float32 of flat regions, and the region index of every pixel."""
    count = int(rng.integers(1, 8))
    cells = int(rng.integers(3, 12))
    regions = np.stack([smooth_field(rng, size, cells) for _ in range(count)]).argmax(axis=0)
    levels = rng.uniform(0.0, 1.0, count).astype(np.float32)
    if rng.random() < 0.4:  # a calm background, as in a cropped organ: levels close together
        levels = np.float32(rng.uniform(0.2, 0.8)) + 0.25 * (levels - 0.5)
    return levels[regions], regions


def _large_regions(rng: np.random.Generator, regions: np.ndarray) -> list[np.ndarray]:
    """Offer some connected background regions as objects too."""
    if rng.random() < 0.6:
        return []
    chosen = (regions == rng.integers(0, regions.max() + 1)).astype(np.uint8)
    count, components, stats, _ = cv2.connectedComponentsWithStats(chosen)
    whole = [n for n in range(1, count) if 150 < stats[n, cv2.CC_STAT_AREA] < 0.3 * regions.size]
    return [components == n for n in whole[:2]]


def _paint_object(rng: np.random.Generator, canvas: np.ndarray) -> list[np.ndarray]:
    """Paint one object, sometimes as a wall around a cavity, and return the masks it offers."""
    mask = draw_shape(rng, canvas.shape[0])
    if mask.sum() < 40:
        return []
    _fill(rng, canvas, mask)
    if rng.random() > 0.35:
        return [mask]
    radius = max(1, int(np.sqrt(mask.sum() / np.pi) * rng.uniform(0.12, 0.5)))
    cavity = cv2.erode(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))) > 0
    if cavity.sum() < 40:
        return [mask]
    _fill(rng, canvas, cavity)
    return [mask, cavity]


def _visible(masks: list[np.ndarray], painted: list[np.ndarray]) -> list[np.ndarray]:
    """Cut from earlier masks what a newly painted object hides; drop those mostly hidden. An object inside another stays part of it."""
    if not painted:
        return masks
    cover = painted[0]
    kept = []
    for mask in masks:
        shared = int((mask & cover).sum())
        seen = mask if shared > 0.95 * cover.sum() else mask & ~cover
        if seen.sum() > 0.6 * mask.sum():
            kept.append(seen)
    return kept


def _fill(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray) -> None:
    """Give the pixels of ``mask`` a level of their own, fading in places as partial volume and coil profiles make it."""
    contrast = float(np.exp(rng.uniform(np.log(0.06), np.log(0.6)))) * rng.choice((-1.0, 1.0))
    level = float(canvas[mask].mean()) + contrast
    alpha = np.ones_like(canvas)
    if rng.random() < 0.45:
        alpha = np.clip(0.75 + 0.35 * smooth_field(rng, canvas.shape[0], int(rng.integers(3, 9))), 0.15, 1.0)
    texture = rng.uniform(0, 0.07) * smooth_field(rng, canvas.shape[0], int(rng.integers(8, 90)))
    canvas[mask] = ((1 - alpha) * canvas + alpha * (level + texture))[mask]


def draw_shape(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return one filled random shape, ``(size, size)`` bool.

    A closed curve in polar form with a few random harmonics, squeezed to an aspect of up to 4, bent into a crescent in every
    third case, then rotated and moved so that at least its centre lies in the image.
    """
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = np.ones_like(angle)
    roughness = rng.uniform(0.0, 0.35)
    for harmonic in range(2, int(rng.integers(3, 8))):
        radius += roughness / harmonic * rng.normal() * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    x, y = np.clip(radius, 0.25, None) * np.stack([np.cos(angle), np.sin(angle)])
    y = y / np.exp(rng.uniform(0, np.log(4.0)) * rng.random())
    if rng.random() < 0.35:
        y = y + rng.uniform(-0.7, 0.7) * (x**2 - 0.5)
    turn, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(7.0), np.log(0.42 * size)))
    points = scale * np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    points += rng.uniform(0.08 * size, 0.92 * size, 2)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 8).astype(np.int32)], 1, shift=3)
    return mask > 0
