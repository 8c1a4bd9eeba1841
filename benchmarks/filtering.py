"""Does filtering help? What is kept of pseudo-labels, and students taught by it, beside a random choice of the same size.

    SAMDISTILL_TEST_DATA=... python benchmarks/filtering.py [--dataset hippocampus] [--planted 0.15] [--students 3 [--rotate]] [--archive DIR] [--json FILE]

*Labels.* All cases are sorted by quality (``distill.doubts``; no gold), 80 % are kept, and their mean true Dice is compared with that
of a random 80 %, whose expectation is the mean over all. The interval comes from drawing patients anew, keeping 80 % of their masks each time.
*Students.* The same small net is trained for the same number of steps on all masks of the archive part, on those that refinement accepts by the recipe's rules
(no gold, no calibration), on the 80 % of the best quality, and on a random 80 %, under several seeds, and scored on the test part, whose gold no step has seen. Masks are cut alike in all arms, and nothing else is filtered. Where a collection has
few patients, ``--rotate`` gives each seed another test part, so that every patient is scored once, by students that never saw any of them.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from drawn import CLASS, DATASETS, drawn_archive, planted_archive, scored, true_dice

from distill.quality import dice, paired_interval
from distill.refine import ClassRule, RefinePlan, accepted_cases, refine_archive
from flows.plans import class_infos
from flows.recipe import Recipe
from flows.rules import refine_plan
from storage import Archive
from students.compact import train
from students.predict import Student
from students.spec import StudentSpec

COVERAGE = 0.8
DRAWS = 2000
EVERYTHING = "pseudo/everything"
FILTERED = "pseudo/filtered"
STEPS = {"hippocampus": 150, "cardiac": 300}
WIDTH = 8
"""Channels at full resolution: half of the product's, so that eighteen students train within minutes."""


def kept(quality: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
    """Return the indices of the best share."""
    return np.argsort(-quality, kind="stable")[: round(coverage * len(quality))]


def gain(quality: np.ndarray, truth: np.ndarray, patients: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Return the mean true Dice of what is kept less that of a random choice of as many, with a 95 % interval over patients."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(np.asarray(patients) == name) for name in sorted(set(patients))]
    drawn = []
    for _ in range(DRAWS):
        some = np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))])
        drawn.append(truth[some][kept(quality[some])].mean() - truth[some].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    best = truth[kept(quality)].mean()
    return {
        "kept": float(best),
        "random": float(truth.mean()),
        "gain": float(best - truth.mean()),
        "low": float(low),
        "high": float(high),
        "best_possible": float(truth[kept(truth)].mean()),
    }


def cut_everything(recipe: Recipe, archive: Archive) -> None:
    """Write masks of all cases as refinement cuts them, rejecting none but the empty."""
    rule = ClassRule(smooth_mm=1.0, accept_from=0.0, review_from=0.0, prior_from=0.0, student_from=0.0, reverse_from=0.0)
    refine_archive(archive, RefinePlan(classes=class_infos(recipe), rules={CLASS: rule}, target=EVERYTHING))


def accepted(recipe: Recipe, archive: Archive) -> list[str]:
    """Return the cases that refinement accepts without having looked at any gold."""
    plan = replace(refine_plan(recipe, calibrated=False), target=FILTERED)
    refine_archive(archive, plan)
    return accepted_cases(archive, FILTERED)


def taught(recipe: Recipe, archive: Archive, cases: Sequence[str], *, steps: int, width: int, seed: int, folder: Path) -> dict[str, float]:
    """Train a student on some cases and return its Dice on each test case."""
    spec = StudentSpec(name="student", budget_seconds=None, steps=steps, seed=seed, width=width, threads=1, validation_fraction=0.0)
    done = train(archive, label_set=EVERYTHING, classes=class_infos(recipe), spec=spec, workdir=folder, cases=cases)
    student = Student.load(done.path)
    scores = {}
    for record in archive.cases(part="test", with_labels="gold"):
        answer = student.predict(archive[record.id].read(), record.geometry.spacing_zyx_mm).labels == CLASS
        scores[record.id] = dice(answer, archive[record.id].labels("gold").read() == CLASS)
    return scores


def arms(cases: Sequence[str], quality: np.ndarray, believed: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Return which cases each student learns from."""
    chance = np.random.default_rng(seed).permutation(len(cases))[: round(COVERAGE * len(cases))]
    return {
        "accepted": [case for case in cases if case in believed],
        "all": list(cases),
        "best": [cases[n] for n in kept(quality)],
        "random": [cases[n] for n in chance],
    }


def rotate(archive: Archive, seed: int, seeds: int) -> None:
    """Make every ``seeds``-th patient the test part, and all others the part that students learn from."""
    records = archive.cases()
    tests = sorted({record.patient for record in records})[seed::seeds]
    archive.catalog.set_part({record.id: "test" if record.patient in tests else "archive" for record in records})


def compare_students(
    recipe: Recipe, archive: Archive, quality: dict[str, float], *, asked: argparse.Namespace, steps: int, folder: Path
) -> dict[str, object]:
    """Train the arms under each seed and compare them, patient by patient."""
    cut_everything(recipe, archive)
    believed = accepted(recipe, archive)
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in range(asked.students):
        if asked.rotate:
            rotate(archive, seed, asked.students)
        cases = sorted(case for case in quality if archive[case].record.part == "archive")
        for arm, chosen in arms(cases, np.array([quality[case] for case in cases]), believed, seed).items():
            found = taught(recipe, archive, chosen, steps=steps, width=asked.width, seed=seed, folder=folder / f"{arm}-{seed}")
            scores.setdefault(arm, []).append(found)
            print(f"  seed {seed}, {arm} ({len(chosen)} cases): {np.nanmean(list(found.values())):.4f}", flush=True)
    tests = sorted({case for found in scores["all"] for case in found})
    mean = {arm: [float(np.mean([each[case] for each in found if case in each])) for case in tests] for arm, found in scores.items()}
    patients = [archive[case].record.patient for case in tests]
    pairs = [("accepted", "all"), ("accepted", "random"), ("best", "all"), ("best", "random")]
    against = {f"{one} - {other}": asdict(paired_interval(mean[one], mean[other], patients)) for one, other in pairs}
    return {"per_seed": {arm: [float(np.nanmean(list(each.values()))) for each in found] for arm, found in scores.items()}, **against}


def measure(dataset: str, share: float, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Measure one data set at one share of planted errors."""
    reuse = arguments.archive / dataset / "archive.zarr" if arguments.archive else None
    recipe, archive = drawn_archive(dataset, folder, reuse)
    if share:
        archive, _ = planted_archive(recipe, folder / f"{dataset}-planted-{share:g}", share=share, seed=arguments.seed, reach=4.0)
    found, truth = scored(recipe, archive), true_dice(recipe, archive)
    cases = sorted(truth)
    patients = [archive[case].record.patient for case in cases]
    quality = np.array([found[case]["quality"] for case in cases])
    result: dict[str, object] = {"cases": len(cases), "labels": gain(quality, np.array([truth[case] for case in cases]), patients)}
    print(
        f"{dataset}, {share:.0%} planted, {len(cases)} cases of {len(set(patients))} patients: {json.dumps(result['labels'])}", flush=True
    )
    if arguments.students:
        result["students"] = compare_students(
            recipe,
            archive,
            dict(zip(cases, quality.tolist(), strict=True)),
            asked=arguments,
            steps=arguments.steps or STEPS[dataset],
            folder=folder / f"{dataset}-students-{share:g}{'-rotated' if arguments.rotate else ''}",
        )
        print(json.dumps(result["students"], indent=1), flush=True)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, action="append")
    parser.add_argument("--planted", type=float, action="append", help="share of cases with a wrong object; default 0 and 0.15")
    parser.add_argument("--students", type=int, default=0, help="how many seeds; 0 compares labels only")
    parser.add_argument("--rotate", action="store_true", help="test on other patients under each seed, until each was tested once")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels at full resolution; the product's students have 16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--archive", type=Path, help="a folder with hippocampus/archive.zarr and cardiac/archive.zarr that were labelled before"
    )
    parser.add_argument("--work", type=Path, help="keep archives and students here")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        results = {
            f"{dataset}, {share:g} planted": measure(dataset, share, arguments, folder)
            for dataset in arguments.dataset or DATASETS
            for share in arguments.planted or (0.0, 0.15)
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
