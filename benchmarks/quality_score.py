"""Which score ranks masks by their true Dice, and which finds planted wrong objects? Gold is looked at in hindsight only.

    SAMDISTILL_TEST_DATA=... python benchmarks/quality_score.py [--dataset hippocampus] [--seeds 3] [--reach 4] [--alike] [--reverse] [--archive DIR] [--json FILE]

Without planted errors: Spearman's correlation of each score of the teacher's label set with the Dice of the mask that refinement would cut, over
all cases with gold, its 95 % interval from drawing patients anew, and the correlation of patients' means; where cases are single slices, also the
correlation over whole volumes (a heart's stack of slices at one phase) of the slices' mean score with the volume's Dice. With 15 % of the cases prompted at another object (``planting``): the area under
the ROC curve of finding those whose mask missed (Dice below 0.3), for each score. 0.5 is chance.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Container
from pathlib import Path

import numpy as np
from drawn import DATASETS, drawn_and_gold, drawn_archive, planted_archive, scored, true_dice, volume_of
from planting import REACH, WRONG_BELOW
from sklearn.metrics import roc_auc_score

from distill.quality import spearman
from flows.recipe import Recipe
from storage import Archive

DRAWS = 2000
LESS_IS_BETTER = ("entropy", "mutual_information")
NO_QUALITY = ("volume_mm3", "slices_asked", "accepted", "ignored_share")


def columns(scores: dict[str, dict[str, float]], cases: list[str]) -> dict[str, np.ndarray]:
    """Return each score as one value per case, more being better, as far as it is known for all of them."""
    names = sorted({name for case in cases for name in scores.get(case, {})} - set(NO_QUALITY))
    found = {name: np.array([scores[case].get(name, np.nan) for case in cases]) for name in names}
    return {name: -each if name in LESS_IS_BETTER else each for name, each in found.items() if not np.isnan(each).any()}


def correlations(archive: Archive, scores: dict[str, dict[str, float]], truth: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return Spearman's correlation of each score with the true Dice, with a 95 % interval over patients."""
    cases = sorted(truth)
    dices, patient = np.array([truth[case] for case in cases]), np.array([archive[case].record.patient for case in cases])
    return {name: correlation(values, dices, patient) for name, values in columns(scores, cases).items() if values.std() > 0}


def volumes(recipe: Recipe, archive: Archive, scores: dict[str, dict[str, float]], wanted: Container[str]) -> dict[str, dict[str, float]]:
    """Return each score's correlation with the true Dice of whole volumes, a volume's score being the mean of its cases'; empty if each case is one."""
    parts: dict[str, list[tuple[str, int, int]]] = {}
    for case, mask, gold in drawn_and_gold(recipe, archive):
        if case not in wanted:
            continue
        parts.setdefault(volume_of(case), []).append((case, int((mask & gold).sum()), int(mask.sum() + gold.sum())))
    if all(len(cases) == 1 for cases in parts.values()):
        return {}
    dices = np.array([2 * sum(both for _, both, _ in cases) / sum(sizes for *_, sizes in cases) for cases in parts.values()])
    patient = np.array([archive[cases[0][0]].record.patient for cases in parts.values()])
    values = columns(scores, [case for cases in parts.values() for case, *_ in cases])
    ends = np.cumsum([len(cases) for cases in parts.values()])[:-1]
    means = {name: np.array([part.mean() for part in np.split(each, ends)]) for name, each in values.items()}
    return {name: correlation(mean, dices, patient) for name, mean in means.items() if mean.std() > 0}


def correlation(values: np.ndarray, dices: np.ndarray, patient: np.ndarray) -> dict[str, float]:
    """Return Spearman's correlation with a 95 % interval from drawing patients anew, and that of patients' means."""
    groups = [np.flatnonzero(patient == name) for name in sorted(set(patient.tolist()))]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))]) for _ in range(DRAWS)]
    low, high = np.nanquantile([spearman(values[some].tolist(), dices[some].tolist()) for some in drawn], [0.025, 0.975])
    by_patient = spearman([float(values[own].mean()) for own in groups], [float(dices[own].mean()) for own in groups])
    return {"spearman": spearman(values.tolist(), dices.tolist()), "low": float(low), "high": float(high), "patients": by_patient}


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print correlations, best first."""
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["spearman"]):
        print(f"  {name:20} {row['spearman']:6.3f}  ({row['low']:.3f} to {row['high']:.3f})  {row['patients']:6.3f}")


def detections(recipe: Recipe, folder: Path, *, seed: int, asked: argparse.Namespace) -> dict[str, float]:
    """Plant wrong objects and return how well each score finds them."""
    archive, planted = planted_archive(recipe, folder, share=0.15, seed=seed, reach=asked.reach, alike=asked.alike)
    scores, truth = (
        scored(recipe, archive, reverse=asked.reverse, student=asked.student, folder=folder / "witnesses"),
        true_dice(recipe, archive),
    )
    moved = {each.case for each in planted}
    cases = [case for case in sorted(truth) if case not in moved or truth[case] < WRONG_BELOW]
    wrong = np.array([case in moved for case in cases])
    areas = {name: float(roc_auc_score(wrong, -values)) for name, values in columns(scores, cases).items()}
    return {"planted": len(moved), "missed the object": int(wrong.sum())} | areas


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, action="append")
    parser.add_argument("--seeds", type=int, default=1, help="how many times errors are planted; 0 to leave that out")
    parser.add_argument(
        "--reach", type=float, default=REACH, help="how far prompts may go, in sides of their box; 1.5 keeps to the neighbours"
    )
    parser.add_argument("--alike", action="store_true", help="plant at objects that are as bright as the right one")
    parser.add_argument("--reverse", action="store_true", help="also reverse classification, half a second per case")
    parser.add_argument(
        "--student",
        type=float,
        default=0,
        help="train two students for so many seconds each, on the planted labels too, to judge patients they have not seen",
    )
    parser.add_argument(
        "--source",
        default="weak",
        help="where prompts come from; sources other than people are scored without the cases that thresholds learn from",
    )
    parser.add_argument(
        "--archive", type=Path, help="a folder with hippocampus/archive.zarr and cardiac/archive.zarr that were labelled before"
    )
    parser.add_argument("--work", type=Path, help="keep archives here")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if "SAMDISTILL_TEST_DATA" not in os.environ:
        parser.error("set SAMDISTILL_TEST_DATA to the folder with hippocampus/ and cardiac/")
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        for dataset in arguments.dataset or DATASETS:
            reuse = arguments.archive / dataset / "archive.zarr" if arguments.archive else None
            recipe, archive = drawn_archive(dataset, folder, reuse, arguments.source)
            scores = scored(recipe, archive, reverse=arguments.reverse)
            seen = set() if arguments.source == "weak" else {record.id for record in archive.cases(part="calibration")}
            truth = {case: value for case, value in true_dice(recipe, archive).items() if case not in seen}
            found, whole = correlations(archive, scores, truth), volumes(recipe, archive, scores, truth)
            print(f"{dataset}: Spearman with true Dice, nothing planted (95 % interval); of patients' means")
            show(found)
            if whole:
                print(f"{dataset}: the same over whole volumes")
                show(whole)
            kind = f"{arguments.reach:g}{'-alike' if arguments.alike else ''}"
            areas = [
                detections(recipe, folder / f"{dataset}-planted-{seed}-{kind}", seed=seed, asked=arguments)
                for seed in range(arguments.seeds)
            ]
            print(f"{dataset}: AUROC of finding planted wrong objects, {len(areas)} time(s)")
            for name in areas[0] if areas else ():
                print(f"  {name:20} " + "  ".join(f"{each.get(name, float('nan')):.3f}" for each in areas))
            results[dataset] = {"spearman": found, "volumes": whole, "auroc": areas}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
