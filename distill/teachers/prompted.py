"""What the bundled teacher is trained on: an endless stream of images with prompted objects, as annotators would prompt them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset

from distill.teachers.sources import Source, nuclei_source, organ_slices_source, volume_source
from distill.teachers.synthesis import Sample, generate_scene

CT_WINDOWS_HU = ((-160.0, 240.0), (-1000.0, 400.0), (-50.0, 150.0), (-200.0, 1000.0))
PROMPTS_PER_IMAGE = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their prompted objects. ``B`` images, ``P = B * PROMPTS_PER_IMAGE`` prompts."""

    images: torch.Tensor
    """``(B, 3, S, S)`` uint8."""
    targets: torch.Tensor
    """``(P, S, S)`` bool."""
    boxes: torch.Tensor
    """``(P, 4)`` xyxy float32 pixels, upper bound exclusive."""
    points: torch.Tensor
    """``(P, 3, 2)`` xy float32 pixels."""
    point_labels: torch.Tensor
    """``(P, 3)``; 1 inside, 0 outside, -1 unused."""
    hints: torch.Tensor
    """``(P, S, S)`` bool: a spoilt copy of the target."""


class Prompted(IterableDataset[tuple[np.ndarray, ...]]):
    """Endless stream of images with four prompted objects each."""

    def __init__(self, data: Path, seed: int, exact_boxes: float) -> None:
        """Remember where the pictures are; each loader worker opens them for itself."""
        self.data = data
        self.seed = seed
        self.exact_boxes = exact_boxes

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Draw a source, an image, objects and prompts, for ever."""
        cv2.setNumThreads(0)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        sources, weights = training_sources(self.data)
        while True:
            sample = sources[int(rng.choice(len(sources), p=weights))](rng)
            item = prompt_objects(rng, sample, self.exact_boxes)
            if item is not None:
                yield item


def training_sources(data: Path) -> tuple[list[Source], list[float]]:
    """Return the sources and their shares. Generated scenes carry most; the real pictures keep them honest."""
    organs = data / "ct_organs"
    sources = [
        generate_scene,
        nuclei_source(data / "nuclei"),
        organ_slices_source(data / "organ_slices"),
        volume_source(organs / "example_ct_sm.nii.gz", organs / "example_seg.nii.gz", windows_hu=CT_WINDOWS_HU),
        volume_source(organs / "example_mr_sm.nii.gz", organs / "example_seg_mr.nii.gz"),
    ]
    return sources, [0.58, 0.14, 0.08, 0.12, 0.08]


def prompt_objects(rng: np.random.Generator, sample: Sample, exact_boxes: float) -> tuple[np.ndarray, ...] | None:
    """Choose objects of a sample, with replacement, and a box, points and a spoilt mask for each; None if nothing is big enough."""
    areas = sample.masks.sum(axis=(1, 2))
    usable = np.flatnonzero((areas >= 60) & (areas < 0.7 * sample.masks[0].size)) if len(areas) else areas
    if not len(usable):
        return None
    chosen = sample.masks[rng.choice(usable, PROMPTS_PER_IMAGE)]
    boxes = np.stack([spoil_box(rng, tight_box(mask), mask.shape, exact_boxes) for mask in chosen])
    points, labels = zip(*(draw_points(rng, mask) for mask in chosen), strict=True)
    hints = np.stack([spoil_mask(rng, mask) for mask in chosen])
    return sample.image.transpose(2, 0, 1), chosen, boxes, np.stack(points), np.stack(labels), hints


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Return xyxy of the pixels of ``mask``, upper bound exclusive, float32."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def spoil_box(rng: np.random.Generator, box: np.ndarray, shape: tuple[int, ...], exact: float) -> np.ndarray:
    """Move each side of a box independently, as a hurried annotator or an interpolation would; a share of ``exact`` stays."""
    if rng.random() < exact:
        return box
    sides = np.tile(box[2:] - box[:2], 2)
    moved = box + rng.normal(size=4) * sides * rng.uniform(0.0, 0.10)
    moved = np.clip(moved, 0, [shape[1], shape[0], shape[1], shape[0]])
    return moved.astype(np.float32) if (moved[2:] - moved[:2] > 2).all() else box


def draw_points(rng: np.random.Generator, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one to three points ``(3, 2)`` xy with labels ``(3,)``: the first inside, the others anywhere near."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    rows, columns = np.nonzero(distance >= rng.uniform(0.2, 0.9) * distance.max())
    pick = int(rng.integers(len(rows)))
    points, labels = np.zeros((3, 2), np.float32), -np.ones(3, np.float32)
    points[0], labels[0] = (columns[pick], rows[pick]), 1
    x0, y0, x1, y1 = tight_box(mask)
    for extra in range(1, int(rng.integers(1, 4))):
        x = int(np.clip(rng.uniform(x0 - 12, x1 + 12), 0, mask.shape[1] - 1))
        y = int(np.clip(rng.uniform(y0 - 12, y1 + 12), 0, mask.shape[0] - 1))
        points[extra], labels[extra] = (x, y), float(mask[y, x])
    return points, labels


def spoil_mask(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Shift, scale and grow or shrink a mask, as the neighbouring slice's mask differs from this one's."""
    x0, y0, x1, y1 = tight_box(mask)
    centre, scale = np.array([(x0 + x1) / 2, (y0 + y1) / 2]), rng.uniform(0.8, 1.2, 2)
    shift = rng.normal(size=2) * 0.06 * np.array([x1 - x0, y1 - y0])
    matrix = np.array([[scale[0], 0.0, 0.0], [0.0, scale[1], 0.0]])
    matrix[:, 2] = centre - scale * centre + shift
    moved = cv2.warpAffine(mask.astype(np.uint8), matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    radius = int(rng.integers(0, 4))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return (cv2.dilate(moved, kernel) if rng.random() < 0.5 else cv2.erode(moved, kernel)) > 0


def collate(items: list[tuple[np.ndarray, ...]]) -> Batch:
    """Stack images and flatten the prompts of all images into one list."""
    images, *rest = (np.stack(column) for column in zip(*items, strict=True))
    flat = [torch.from_numpy(column.reshape(-1, *column.shape[2:])) for column in rest]
    return Batch(torch.from_numpy(images), *flat)
