"""Labelled real images for the bundled teacher's training: cell nuclei, organ slices, organ volumes.

Hippocampus, cardiac and fundus images are never read, so that they stay a fair test of a teacher that has not seen them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from nibabel.nifti1 import Nifti1Image

from distill.teachers.degrade import degrade
from distill.teachers.synthesis import SIZE, Sample

Source = Callable[[np.random.Generator], Sample]


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture and its instances, as read."""

    image: np.ndarray
    """``(H, W)`` or ``(H, W, 3)`` float32, any range."""
    instances: np.ndarray
    """``(N, H, W)`` bool."""


def nuclei_source(folder: Path) -> Source:
    """Draw from pictures in ``folder/images`` with 16-bit instance ids in ``folder/gold`` (Data Science Bowl 2018, BBBC038)."""
    pairs = [(path, folder / "gold" / path.name) for path in sorted((folder / "images").glob("*.png"))]
    cache = [_read_nuclei(image, gold) for image, gold in pairs]
    return lambda rng: _draw_nuclei(rng, *cache[int(rng.integers(len(cache)))])


def _read_nuclei(image: Path, gold: Path) -> tuple[np.ndarray, np.ndarray]:
    picture = cv2.imread(str(image), cv2.IMREAD_COLOR)
    ids = cv2.imread(str(gold), cv2.IMREAD_UNCHANGED)
    if picture is None or ids is None:
        message = f"cannot read {image} with {gold}: expected an 8-bit colour PNG and a 16-bit id PNG."
        raise FileNotFoundError(message)
    return picture, ids


def _draw_nuclei(rng: np.random.Generator, picture: np.ndarray, ids: np.ndarray) -> Sample:
    height, width = ids.shape
    side = int(rng.integers(48, max(49, min(height, width))))
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    window = (slice(top, top + side), slice(left, left + side))
    values = np.unique(ids[window])
    values = rng.permutation(values[values > 0])[:12]
    instances = np.stack([ids[window] == value for value in values]) if len(values) else np.zeros((0, side, side), bool)
    return warp(rng, LabelledPicture(picture[window].astype(np.float32).mean(axis=2), instances))


def organ_slices_source(folder: Path) -> Source:
    """Draw from ``folder/images/NAME.png`` with one binary mask per organ in ``folder/masks/NAME_ORGAN_nnn.png``."""
    pictures = []
    for path in sorted((folder / "images").glob("*.png")):
        grey = _read_grey(path)
        masks = [_read_grey(mask) > 0 for mask in sorted((folder / "masks").glob(f"{path.stem}_*.png"))]
        if masks:
            pictures.append(LabelledPicture(grey.astype(np.float32), np.stack(masks)))
    return lambda rng: warp(rng, pictures[int(rng.integers(len(pictures)))])


def _read_grey(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        message = f"cannot read {path}: expected an 8-bit PNG."
        raise FileNotFoundError(message)
    return picture


def volume_source(image: Path, labels: Path, *, windows_hu: tuple[tuple[float, float], ...] = ()) -> Source:
    """Draw slices along any axis of one NIfTI volume with an integer label volume.

    Args:
        image: the volume.
        labels: label ids on the same grid.
        windows_hu: (low, high) intensity windows to choose from; empty stretches between random percentiles instead.
    """
    volume = np.asarray(Nifti1Image.from_filename(image).dataobj, np.float32)
    ids = np.asarray(Nifti1Image.from_filename(labels).dataobj).astype(np.int16)
    zooms = np.asarray(Nifti1Image.from_filename(image).header.get_zooms()[:3], np.float64)
    return lambda rng: _draw_slice(rng, volume, ids, zooms, windows_hu)


def _draw_slice(
    rng: np.random.Generator, volume: np.ndarray, ids: np.ndarray, zooms: np.ndarray, windows: tuple[tuple[float, float], ...]
) -> Sample:
    axis = int(rng.integers(0, 3))
    label = np.take(ids, int(rng.integers(ids.shape[axis])), axis=axis)
    for _ in range(8):
        index = int(rng.integers(ids.shape[axis]))
        label = np.take(ids, index, axis=axis)
        if label.any():
            break
    picture = np.take(volume, index, axis=axis)
    if windows:
        low, high = windows[int(rng.integers(len(windows)))]
        picture = np.clip(picture, low, high)
    rows, columns = np.delete(zooms, axis)
    shape = (round(label.shape[1] * columns / min(rows, columns)), round(label.shape[0] * rows / min(rows, columns)))
    label = cv2.resize(label, shape, interpolation=cv2.INTER_NEAREST)
    values = np.unique(label)
    instances = (
        np.stack([label == value for value in rng.permutation(values[values > 0])[:10]])
        if label.any()
        else np.zeros((0, *label.shape), bool)
    )
    return warp(rng, LabelledPicture(cv2.resize(picture, shape), instances))


def warp(rng: np.random.Generator, picture: LabelledPicture, size: int = SIZE) -> Sample:
    """Zoom, turn, shear, mirror and window a picture into a training image of ``size`` pixels."""
    height, width = picture.image.shape[:2]
    centre = np.array([width, height]) * 0.5
    zoom = size / max(height, width)
    if picture.instances.any() and rng.random() < 0.7:  # look closer at one instance
        rows, columns = np.nonzero(picture.instances[int(rng.integers(len(picture.instances)))])
        if len(rows):
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            zoom = max(zoom, size * rng.uniform(0.08, 0.6) / extent)
            centre = np.array([columns.mean(), rows.mean()]) + rng.uniform(-0.25, 0.25, 2) * size / zoom
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.uniform(-0.3, 0.3)
    linear = (
        zoom
        * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        @ np.array([[1.0, rng.uniform(-0.15, 0.15)], [0.0, rng.uniform(0.85, 1.15)]])
    )
    linear[0] *= rng.choice((-1.0, 1.0))
    matrix = np.hstack([linear, (size / 2 - linear @ centre)[:, None]])
    image = cv2.warpAffine(
        picture.image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=float(picture.image.min())
    )
    masks = [cv2.warpAffine(255 * m.astype(np.uint8), matrix, (size, size), flags=cv2.INTER_LINEAR) > 127 for m in picture.instances]
    low, high = np.percentile(image[::2, ::2], (0.5, 99.5))
    unit = (image - low) / max(float(high - low), 1e-6)
    return Sample(image=degrade(rng, unit.astype(np.float32)), masks=np.stack(masks) if masks else np.zeros((0, size, size), bool))
