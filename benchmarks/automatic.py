"""Masks of everything on one slice: ours against segment-anything's own generator, same weights, same filters, same run.

    SAMDISTILL_TEST_DATA=... python benchmarks/automatic.py [--teacher bundled|random-vit_b] [--points 32] [--repeats 3] [--threads 2] [--json]

Both are timed in turns. Beside the ratio stands how many of its masks ours contains with an IoU of at least 0.99, since a faster
generator of other masks would be none. Random ViT-B weights (1024 px) measure the arithmetic of the large teacher; their predicted
IoU means nothing, so the filters are set where both let some masks pass.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from distill import load_teacher
from distill.automatic import Candidate, GridSettings, find_objects
from distill.teachers.base import Teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One picture."""

    picture: str
    masks: int
    ours: int
    matched: float
    """Share of the reference's masks that one of ours equals to an IoU of 0.99."""
    reference_s: float
    ours_s: float
    ratio: float


def pictures() -> dict[str, np.ndarray]:
    """Two CT/MR slices and a drawn one, ``(H, W, 3)`` uint8."""
    found = {"drawn": drawn()}
    folder = os.environ.get("SAMDISTILL_TEST_DATA")
    for file in sorted(Path(folder, "organ_slices", "images").glob("*.png"))[:2] if folder else []:
        found[file.stem] = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
    return found


def drawn(side: int = 384) -> np.ndarray:
    """Return discs of many sizes on noise."""
    rng = np.random.default_rng(0)
    picture = rng.normal(70, 8, (side, side)).astype(np.float32)
    for _ in range(24):
        x, y, radius = (int(v) for v in (*rng.integers(20, side - 20, 2), rng.integers(6, 40)))
        cv2.circle(picture, (x, y), radius, float(rng.uniform(90, 230)), -1)
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def matched(theirs: list[dict[str, Any]], ours: list[Candidate]) -> float:
    """Share of the reference's masks found again."""
    if not theirs:
        return float("nan")
    best = []
    for each in theirs:
        there = each["segmentation"]
        best.append(max((float((there & o.mask).sum()) / max(1, int((there | o.mask).sum())) for o in ours), default=0.0))
    return float(np.mean(np.array(best) >= 0.99))


def measure(name: str, image: np.ndarray, teacher: Any, settings: GridSettings, repeats: int) -> Measured:
    """Time both in turns."""
    reference = SamAutomaticMaskGenerator(
        teacher.sam,
        points_per_side=settings.points_per_side,
        pred_iou_thresh=settings.least_predicted_iou,
        stability_score_thresh=settings.least_stability,
    )
    theirs_s, ours_s = [], []
    for _ in range(repeats):
        seconds, theirs = timed(lambda: reference.generate(image))
        theirs_s.append(seconds)
        seconds, ours = timed(lambda: find_objects(teacher, image, settings))
        ours_s.append(seconds)
    return Measured(
        picture=name,
        masks=len(theirs),
        ours=len(ours),
        matched=matched(theirs, ours),
        reference_s=median(theirs_s),
        ours_s=median(ours_s),
        ratio=median(a / b for a, b in zip(theirs_s, ours_s, strict=True)),
    )


def random_vit_b(folder: Path) -> Any:
    """Save a randomly weighted SAM ViT-B whose mask logits are spread like a trained one's, and load it as a user would."""
    torch.manual_seed(0)
    sam = sam_model_registry["vit_b"]()
    for head in sam.mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.data *= 100
    torch.save(sam.state_dict(), folder / "random.pth")
    return load_teacher(folder / "random.pth", profile="sam")


def lenient(teacher: Teacher, image: np.ndarray, points: int) -> GridSettings:
    """Settings under which about a tenth of the candidates pass the predicted IoU, whatever that number means for these weights."""
    few = find_objects(teacher, image, GridSettings(points_per_side=4, least_predicted_iou=-1e9, least_stability=0.0, nms_iou=1.0))
    scores = sorted(each.predicted_iou for each in few)
    return GridSettings(points_per_side=points, least_predicted_iou=scores[int(0.9 * len(scores))], least_stability=0.5)


def main() -> None:
    """Measure every picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled", choices=["bundled", "random-vit_b"])
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        teacher: Any = load_teacher("bundled") if options.teacher == "bundled" else random_vit_b(Path(folder))
    teacher.sam.mask_threshold = -teacher.profile.logit_shift
    rows = [
        measure(name, image, teacher, lenient(teacher, image, options.points), options.repeats)
        for name, image in list(pictures().items())[: options.pictures]
    ]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{options.teacher}, {options.points} x {options.points} points, {torch.get_num_threads()} threads")
    print("picture          | masks | ours | matched | segment-anything s | ours s | ratio")
    for row in rows:
        print(
            f"{row.picture:16} | {row.masks:5} | {row.ours:4} | {row.matched:7.3f} | {row.reference_s:18.2f} | {row.ours_s:6.2f} | {row.ratio:5.2f}"
        )


if __name__ == "__main__":
    main()
