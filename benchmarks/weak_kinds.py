"""What each kind of weak prompt is worth: the same pictures, prompted in one way after the other, and labelled by the bundled teacher.

    SAMDISTILL_TEST_DATA=... python benchmarks/weak_kinds.py [--every 5] [--json FILE]

Left ventricles in cine MR (Sunnybrook). The prompts are made from the experts' masks, without noise: boxes are tight, extreme points and diameters lie on
the border, the point at the place furthest inside, the scribble along the longest row through it, and the mask is eroded by 3 pixels. Each way goes through the
file format and the import that users have. One question per picture, no mirror image. Intervals (95 %) are from drawing patients anew.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from distill.engine import LabelPlan, label_archive
from distill.quality import dice
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo
from storage.ingest import import_prompts, ingest
from storage.rle import encode

DRAWS = 2000
Prompt = dict[str, object]
Maker = Callable[[np.ndarray], Prompt]


def _corners(gold: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(gold)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def _innermost(gold: np.ndarray) -> tuple[int, int]:
    depth = ndimage.distance_transform_edt(np.pad(gold, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), gold.shape)
    return int(row), int(column)


def _extreme(gold: np.ndarray) -> list[list[float]]:
    rows, columns = np.nonzero(gold)
    left, top, right, bottom = _corners(gold)

    def middle(values: np.ndarray) -> float:
        return float(np.median(values)) + 0.5

    return [
        [left, middle(rows[columns == left])],
        [middle(columns[rows == top]), top],
        [right, middle(rows[columns == right - 1])],
        [middle(columns[rows == bottom - 1]), bottom],
    ]


def _diameters(gold: np.ndarray) -> list[list[float]]:
    rows, columns = np.nonzero(gold & ~np.asarray(ndimage.binary_erosion(gold)))
    border = np.stack([columns, rows], axis=1) + 0.5
    apart = ((border[:, None] - border[None]) ** 2).sum(axis=2)
    one, other = np.unravel_index(int(np.argmax(apart)), apart.shape)
    along = (border[other] - border[one]) / np.sqrt(apart[one, other])
    across, middle = np.array([-along[1], along[0]]), (border[one] + border[other]) / 2
    offsets = (border - middle) @ across
    near = offsets[np.abs((border - middle) @ along) < 1.5]
    return [each.tolist() for each in (border[one], border[other], middle + across * near.min(), middle + across * near.max())]


def _scribble(gold: np.ndarray) -> list[list[float]]:
    row, _ = _innermost(gold)
    return [[float(column) + 0.5, row + 0.5] for column in np.flatnonzero(gold[row])[2:-2]]


def _point(gold: np.ndarray) -> list[float]:
    row, column = _innermost(gold)
    return [column + 0.5, row + 0.5]


KINDS: dict[str, Maker] = {
    "box": lambda gold: {"slice": 0, "box_xyxy": _corners(gold)},
    "box3d": lambda gold: {"box_ijk": [*_corners(gold)[:2], 0, *_corners(gold)[2:], 1]},
    "extreme": lambda gold: {"slice": 0, "extreme_points_xy": _extreme(gold)},
    "recist": lambda gold: {"slice": 0, "recist_xy": _diameters(gold)},
    "mask": lambda gold: {"slice": 0, "rle": encode(np.asarray(ndimage.binary_erosion(gold, iterations=3))), "size_yx": list(gold.shape)},
    "point": lambda gold: {"slice": 0, "point_xy": _point(gold)},
    "scribble": lambda gold: {"slice": 0, "points_xy": _scribble(gold)},
}


def measure(golds: dict[str, np.ndarray], kind: str, folder: Path) -> dict[str, float]:
    """Prompt each picture of ``folder/images`` in one way and return each case's Dice; 0 where nothing was imported or drawn."""
    archive = Archive.create(str(folder / f"{kind}.zarr"))
    ingest(archive, folder / "images", modality="MR")
    rows = [{"case": case, "class_id": 1, "kind": kind} | KINDS[kind](gold) for case, gold in golds.items()]
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(rows))
    import_prompts(archive, file)
    plan = LabelPlan(
        label_set="teacher/r1",
        classes=(ClassInfo(id=1, name="left ventricle"),),
        teacher="bundled",
        device="cpu",
        ask=AskSettings(boxes=1, flips=False, planes="axial"),
    )
    label_archive(archive, plan, cases=sorted(golds))
    drawn = {case: archive[case] for case in golds}
    return {
        case: dice(each.labels(plan.label_set).read()[0] == 1, golds[case]) if plan.label_set in each.label_sets() else 0.0
        for case, each in drawn.items()
    }


def interval(dices: dict[str, float], patient_of: dict[str, str]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over cases from drawing patients anew."""
    groups = [[dices[case] for case in dices if patient_of[case] == name] for name in sorted(set(patient_of.values()))]
    rng = np.random.default_rng(0)
    means = [np.mean(np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))])) for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=5, help="every so many-th picture")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if "SAMDISTILL_TEST_DATA" not in os.environ:
        parser.error("set SAMDISTILL_TEST_DATA to the folder with cardiac/")
    data = Path(os.environ["SAMDISTILL_TEST_DATA"]) / "cardiac"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chosen = sorted((data / "images").glob("*.png"))[:: asked.every]
        golds = {file.stem: cv2.imread(str(data / "gold" / file.name), cv2.IMREAD_GRAYSCALE) > 0 for file in chosen}
        golds = {case: gold for case, gold in golds.items() if gold.any()}
        (folder / "images").mkdir()
        for file in chosen:
            (folder / "images" / file.name).symlink_to(file.resolve())
        patient_of = {case: "-".join(case.split("-")[:4]) for case in golds}
        print(f"{len(golds)} pictures of {len(set(patient_of.values()))} patients\n\n| kind | Dice of the teacher |\n| --- | --- |")
        found = {}
        for kind in KINDS:
            dices = measure(golds, kind, folder)
            found[kind] = (float(np.mean(list(dices.values()))), *interval(dices, patient_of))
            print("| `{}` | {:.3f} [{:.3f}, {:.3f}] |".format(kind, *found[kind]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
