"""The demonstration: forty generated scans of an organ that nobody has, with the prompts of a hurried annotator.

The organ is a smooth irregular blob of moderate contrast. Noise, a bias field and blobs of the same intensity elsewhere keep
a threshold from solving it. Everything is drawn from one seed, so that two machines show the same figures.
"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from flows.errors import DemoError
from flows.places import check_writable
from flows.recipe_file import save_recipe
from storage.case import Geometry
from storage.export.nifti import write_nifti

SHAPE_ZYX = (40, 56, 40)
SPACING_ZYX_MM = (1.5, 1.0, 1.0)
PARTS = ("archive",) * 28 + ("calibration",) * 4 + ("test",) * 8
EVERY = 4
"""A box on every fourth slice: what a hurried annotator leaves."""
BOX_ERROR = 0.05
"""Standard deviation of each side of a box, as a part of the box's size."""
BUDGET = "100s"
"""Training time: with forty small volumes the rest of the pipeline leaves room for this in six minutes on two cores."""
SEED = 20260
_WRITTEN_FIRST = frozenset({"images", "gold", "weak_prompts.json", "split.csv"})
"""What lies in a folder whose demonstration was stopped while it was written; the recipe comes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One generated scan and the truth about it."""

    image_zyx: Float32[np.ndarray, "z y x"]
    mask_zyx: Bool[np.ndarray, "z y x"]


def make_demo(out: Path, *, progress: Callable[[int, int], None]) -> Path:
    """Write scans, prompts, expert labels, split and recipe; what is complete already stays as it is.

    Args:
        out: Folder to fill; made if it is not there.
        progress: Called with (scans written, scans in all).

    Returns:
        The recipe file.

    Raises:
        DemoError: if the folder holds something else.
        StageError: if nothing can be written there.
    """
    recipe = out / "recipe.yaml"
    check_writable(out, "the demonstration")
    if recipe.is_file():
        return recipe
    if out.exists() and not out.is_dir():
        message = f"{out} is a file. Name a folder: samdistill demo --out FOLDER."
        raise DemoError(message)
    if out.exists() and any(path.name not in _WRITTEN_FIRST for path in out.iterdir()):
        message = f"{out} is not empty and holds no demonstration. Name another folder: samdistill demo --out FOLDER."
        raise DemoError(message)
    prompts: list[dict[str, object]] = []
    for n in range(len(PARTS)):
        prompts += _write_case(out, n)
        progress(n + 1, len(PARTS))
    (out / "weak_prompts.json").write_text(json.dumps(prompts, indent=0), encoding="utf-8")
    _write_split(out / "split.csv")
    save_recipe(recipe, _recipe())  # last: its presence says that the rest is complete
    return recipe


def draw_scan(seed: int) -> Scan:
    """Draw one scan: the organ, distractors of its intensity, texture, a bias field and noise."""
    rng = np.random.default_rng((SEED, seed))
    mask = _organ(rng)
    level = rng.uniform(0.55, 0.75)
    tissue = 0.32 + 0.09 * _smooth(rng, 5.0)
    image = np.where(_distractors(rng, mask), level + 0.03 * _smooth(rng, 3.0), tissue)
    image = np.where(mask, level + 0.04 * _smooth(rng, 3.0), image)
    image = ndimage.gaussian_filter(image, 0.6)
    bias = np.exp(0.22 * _smooth(rng, 16.0))
    noise = 0.045 * rng.standard_normal(SHAPE_ZYX)
    gain = 10 ** rng.uniform(2, 4)  # scanners share no unit
    return Scan(image_zyx=np.maximum(gain * (image * bias + noise), 0).astype(np.float32), mask_zyx=mask)


def _organ(rng: np.random.Generator) -> Bool[np.ndarray, "z y x"]:
    """One connected irregular blob around the middle."""
    centre = np.array(SHAPE_ZYX) / 2 + rng.uniform(-3, 3, 3)
    radii = np.array([11.0, 15.0, 9.5]) * rng.uniform(0.85, 1.15, 3)
    wobble = 0.28 * _smooth(rng, 4.5)
    inside = _distance(rng, centre, radii) + wobble < 1
    components, count = ndimage.label(inside)
    sizes = ndimage.sum_labels(inside, components, range(1, count + 1))
    return np.asarray(ndimage.binary_fill_holes(components == 1 + int(np.argmax(sizes))), dtype=bool)


def _distractors(rng: np.random.Generator, organ: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """Small blobs near the border of the scan, with a gap around the organ."""
    found = np.zeros(SHAPE_ZYX, bool)
    for _ in range(int(rng.integers(3, 7))):
        found |= _distance(rng, rng.uniform(3, np.array(SHAPE_ZYX) - 3), rng.uniform(3, 6.5, 3)) < 1
    return np.asarray(found & ~ndimage.binary_dilation(organ, iterations=2), dtype=bool)


def _distance(rng: np.random.Generator, centre_zyx: np.ndarray, radii_zyx: np.ndarray) -> np.ndarray:
    """Distance from a centre, 1 on an ellipsoid of these radii (voxels) turned in the y-x plane."""
    z, y, x = (axis - middle for axis, middle in zip(np.indices(SHAPE_ZYX), centre_zyx, strict=True))
    angle = rng.uniform(-0.5, 0.5)
    turned = (z, math.cos(angle) * y - math.sin(angle) * x, math.sin(angle) * y + math.cos(angle) * x)
    return np.asarray(np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(turned, radii_zyx, strict=True))))


def _smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Gaussian noise of correlation length ``sigma`` voxels, mean 0, standard deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE_ZYX), sigma)
    return np.asarray((field - field.mean()) / field.std())


def weak_boxes(case: str, mask_zyx: Bool[np.ndarray, "z y x"], rng: np.random.Generator) -> list[dict[str, object]]:
    """Loose boxes on every fourth slice of the organ and on its last, in the schema that ``samdistill prompts import`` reads."""
    slices = np.flatnonzero(mask_zyx.any(axis=(1, 2)))
    chosen = sorted({*slices[::EVERY].tolist(), int(slices[-1])})
    return [
        {"case": case, "class_id": 1, "class_name": "organ", "kind": "box", "slice_axis": "k", "slice": z, "box_ij": _box(mask_zyx[z], rng)}
        for z in chosen
    ]


def _box(mask_yx: Bool[np.ndarray, "y x"], rng: np.random.Generator) -> list[float]:
    """First and last index of both axes, upper bound exclusive, each side off by a few per cent: ``i0, j0, i1, j1``, i = x."""
    rows, columns = np.flatnonzero(mask_yx.any(axis=1)), np.flatnonzero(mask_yx.any(axis=0))
    tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)
    size = np.array([tight[2] - tight[0], tight[3] - tight[1]] * 2)
    loose = tight + BOX_ERROR * size * rng.standard_normal(4)
    return [round(float(value), 2) for value in loose]


def _write_case(out: Path, n: int) -> list[dict[str, object]]:
    """Write one scan with its truth, and return its prompts."""
    scan = draw_scan(n)
    depth_mm, height_mm, width_mm = SPACING_ZYX_MM
    affine = ((width_mm, 0.0, 0.0, 0.0), (0.0, height_mm, 0.0, 0.0), (0.0, 0.0, depth_mm, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(spacing_zyx_mm=SPACING_ZYX_MM, affine=affine)
    case = _case_id(n)
    write_nifti(scan.image_zyx, geometry, out / "images" / f"{case}.nii.gz")
    write_nifti(scan.mask_zyx.astype(np.uint8), geometry, out / "gold" / f"{case}.nii.gz")
    return weak_boxes(case, scan.mask_zyx, np.random.default_rng((SEED, n, 1)))


def _case_id(n: int) -> str:
    return f"demo_{n:03d}"


def _write_split(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "part"])
        writer.writerows([_case_id(n), part] for n, part in enumerate(PARTS))


def _recipe() -> dict[str, object]:
    """The recipe of the demonstration; the same keys as any other."""
    return {
        "archive": "./archive.zarr",
        "results": "./results",
        "ingest": {
            "images": "./images",
            "modality": "MR",
            "prompts": "./weak_prompts.json",
            "gold": {"path": "./gold"},
            "split": "./split.csv",
        },
        "classes": {1: {"name": "organ", "volume_mm3": [3000, 25000]}},
        "teacher": {"checkpoint": "bundled"},
        "uncertainty": {"boxes": 3, "jitter": 0.05, "flips": False},
        "student": {"kind": "compact", "name": "demo", "budget": BUDGET},
        "evaluate": {"arms": ["ellipse"]},
    }
