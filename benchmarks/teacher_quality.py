"""Zero-shot quality of a teacher on data it was never trained on, beside the ellipse that fills the same box.

    SAMDISTILL_TEST_DATA=... python benchmarks/teacher_quality.py [--teacher bundled] [--part test] [--json]

Gold boxes on every slice are an oracle: the figures say how well the teacher draws, not what the pipeline reaches. The ellipse
is the baseline that any teacher has to beat; Spearman correlations say whether a quality score ranks masks by their true Dice.
"""

import argparse
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

from distill import load_teacher
from distill.intensity import PERCENTILES
from distill.prompts.hints import box_of
from distill.quality import dice, spearman
from distill.teachers.base import PromptBatch
from distill.teachers.sam import SamTeacher
from distill.uncertainty import jitter_boxes, summarise
from students.baselines import ellipse_in_box

Pair = tuple[str, np.ndarray, np.ndarray]
"""Patient, picture ``(H, W)`` uint8, gold ``(H, W)`` bool."""


def hippocampus(data: Path, part: str) -> Iterator[Pair]:
    """Every axial slice with hippocampus of one part of the split."""
    folder = data / "hippocampus"
    with (folder / "split.csv").open() as stream:
        cases = [row["case"] for row in csv.DictReader(stream) if row["part"] == part]
    for case in cases:
        volume = np.asarray(nib.nifti1.Nifti1Image.from_filename(folder / "images" / f"{case}.nii.gz").dataobj, np.float32)
        gold = np.asarray(nib.nifti1.Nifti1Image.from_filename(folder / "gold" / f"{case}.nii.gz").dataobj) > 0
        low, high = np.percentile(volume[volume != 0], PERCENTILES)
        grey = np.asarray(255 * np.clip((volume - low) / (high - low), 0, 1), np.uint8)
        yield from ((case, grey[:, :, k].T.copy(), gold[:, :, k].T) for k in range(gold.shape[2]) if gold[:, :, k].any())


def cardiac(data: Path) -> Iterator[Pair]:
    """Every short-axis slice with a left ventricle."""
    for path in sorted((data / "cardiac" / "images").glob("*.png")):
        gold = cv2.imread(str(data / "cardiac" / "gold" / path.name), cv2.IMREAD_GRAYSCALE)
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if gold is not None and picture is not None and gold.any():
            yield path.name[:10], picture, gold > 0


def measure(teacher: SamTeacher, pairs: Iterator[Pair]) -> dict[str, float]:
    """Ask about each slice once with its gold box, and once with an ensemble of ten."""
    teacher_dice, ellipse_dice, ious, agreements, ratios = [], [], [], [], []
    for number, (_, picture, gold) in enumerate(pairs):
        box = box_of(gold)
        if box is None:
            continue
        embeddings = teacher.encode([np.repeat(picture[..., None], 3, axis=2)])
        boxes = jitter_boxes(box, 10, 0.05, gold.shape, np.random.default_rng(number))
        decoded = teacher.decode(embeddings, PromptBatch(image_index=np.zeros(len(boxes), int), boxes_xyxy_px=boxes))
        logits = teacher.upsample(decoded.low_res_logits, gold.shape, embeddings.input_sizes_px[0])[:, 0].numpy()
        mask = logits[0] > 0
        teacher_dice.append(dice(mask, gold))
        ellipse_dice.append(dice(ellipse_in_box(box, gold.shape), gold))
        ious.append(float(decoded.iou[0, 0]))
        agreements.append(summarise(logits).pairwise_dice)
        ratios.append(mask.sum() / gold.sum())
    return {
        "slices": len(teacher_dice),
        "teacher_dice": float(np.mean(teacher_dice)),
        "ellipse_dice": float(np.mean(ellipse_dice)),
        "volume_ratio": float(np.mean(ratios)),
        "spearman_predicted_iou": spearman(ious, teacher_dice),
        "spearman_pairwise_dice": spearman(agreements, teacher_dice),
    }


def main() -> None:
    """Measure both collections and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--part", default="test", help="which part of the hippocampus split (default test)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = Path(os.environ["SAMDISTILL_TEST_DATA"])
    teacher = load_teacher(arguments.teacher, device="cpu")
    results = {
        f"hippocampus ({arguments.part})": measure(teacher, hippocampus(data, arguments.part)),
        "cardiac": measure(teacher, cardiac(data)),
    }
    if arguments.json:
        print(json.dumps({"teacher": teacher.fingerprint, "results": results}, indent=1))
        return
    print(f"teacher {teacher.fingerprint}; gold boxes, zero-shot")
    for name, row in results.items():
        print(name + ": " + ", ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
