"""How far one prompted slice carries: the middle one of each volume, through the whole of it, against a box on every fourth slice.

    SAMDISTILL_TEST_DATA=... python benchmarks/propagation.py [--cases 20] [--boxes 3] [--threads 1] [--device cpu] [--json]

Labels hippocampi of the test part with the bundled teacher, axial slices only, from the weak boxes as given (``every fourth``), and from the one
nearest to the middle of those: with propagation (``distill.propagation``), and as a run without it treats a single prompt (``middle, gaps
only``). Dice is that of the mean probability, without refinement; ``believed`` leaves out the slices of tracks that did not lead back,
on both sides.
"""

import argparse
import csv
import os
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from paired import Found, device_name, run_program

from distill import load_teacher
from distill.casework import ClassWork, prepare_case
from distill.intensity import IntensitySpec
from distill.quality import dice, spearman
from distill.questions import AskSettings
from distill.round_trip import check_round_trips
from distill.teachers.base import Teacher
from distill.wavefront import run_wavefront
from storage import Archive, ClassInfo, Prompt
from storage.ingest import import_labels, import_prompts, ingest


def opened(folder: Path, count: int) -> tuple[Archive, list[str]]:
    """Bring the data into an archive; return it with the cases to label."""
    data = Path(os.environ["SAMDISTILL_TEST_DATA"]) / "hippocampus"
    archive = Archive.create(str(folder / "archive.zarr"))
    with (data / "split.csv").open() as stream:
        cases = sorted(row["case"] for row in csv.DictReader(stream) if row["part"] == "test")[:count]
    chosen = folder / "images"
    chosen.mkdir()
    for case in cases:
        (chosen / f"{case}.nii.gz").symlink_to(data / "images" / f"{case}.nii.gz")
    ingest(archive, chosen, modality="MR")
    import_labels(archive, data / "gold", classes=(ClassInfo(id=1, name="hippocampus"),), mapping={1: 1, 2: 1})
    import_prompts(archive, data / "weak_prompts.json")
    return archive, cases


def middle_of(prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompt on the middle one of the prompted slices."""
    ordered = sorted((prompt for prompt in prompts if prompt.slice is not None), key=lambda prompt: prompt.slice or 0)
    return ordered[len(ordered) // 2 : len(ordered) // 2 + 1]


def label(teacher: Teacher, archive: Archive, prompts: dict[str, list[Prompt]], settings: AskSettings) -> list[ClassWork]:
    """Return what the teacher says about class 1 of cases that are asked together."""
    works = [
        prepare_case(archive, archive[case].record, each, classes=[1], intensity=IntensitySpec(), propagate=settings.propagate)
        for case, each in prompts.items()
    ]
    run_wavefront(teacher, works, settings)
    if settings.propagate:
        check_round_trips(teacher, works, settings)
    return [work.classes[1] for work in works]


def judge(target: ClassWork, gold: np.ndarray) -> dict[str, float]:
    """Compare with an expert."""
    mask = target.probability > 0.5
    known = [z for z in range(len(gold)) if z not in target.unknown]
    trips = target.round_trips.values()
    return {
        "dice": dice(mask, gold),
        "believed_dice": dice(mask[known], gold[known]),
        "unknown_slices": float(len(target.unknown)),
        "round_trip_dice": min(trips, default=float("nan")),
    }


def measure(args: argparse.Namespace) -> Found:
    """Label every case in every way."""
    torch.set_num_threads(args.threads)
    teacher = load_teacher("bundled", device=args.device)
    usual = AskSettings(boxes=args.boxes, flips=args.boxes > 1, planes="axial")
    ways = {"every fourth": usual, "middle, gaps only": usual, "middle, propagated": replace(usual, propagate=True)}
    rows: dict[str, list[dict[str, float]]] = {}
    seconds, reasons = {}, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        archive, cases = opened(Path(folder), args.cases)
        gold = [archive[case].labels("gold").read() == 1 for case in cases]
        given = {case: archive.catalog.prompts(case) for case in cases}
        for name, settings in ways.items():
            prompts = given if name == "every fourth" else {case: middle_of(each) for case, each in given.items()}
            began = time.perf_counter()
            found = label(teacher, archive, prompts, settings)
            seconds[name] = time.perf_counter() - began
            rows[name] = [judge(target, drawn) for target, drawn in zip(found, gold, strict=True)]
            reasons.update(stop.reason for target in found for stop in target.stops if settings.propagate)
    last = rows["middle, propagated"]
    ranks = spearman([row["round_trip_dice"] for row in last], [row["dice"] for row in last])
    means = {name: {key: _mean([row[key] for row in each]) for key in each[0]} for name, each in rows.items()}
    return {
        **vars(args),
        "device": device_name(args.device),
        "rows": means,
        "seconds": seconds,
        "stops": dict(reasons),
        "spearman_round_trip": ranks,
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def show(found: Found) -> None:
    """Print the table."""
    print(f"{found['cases']} hippocampi, {found['boxes']} boxes, axial; {found['threads']} threads; {found['device']}\n")
    print("| prompted | Dice | Dice of believed slices | unknown slices per case | round trip | s/case |\n" + "| --- " * 6 + "|")
    for name, row in found["rows"].items():
        print(
            f"| {name} | {row['dice']:.3f} | {row['believed_dice']:.3f} | {row['unknown_slices']:.1f} | {row['round_trip_dice']:.3f} "
            f"| {found['seconds'][name] / found['cases']:.1f} |"
        )
    print(f"\nstops: {found['stops']}; Spearman of round trip and Dice {found['spearman_round_trip']:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How far one prompted slice carries.")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="two cases, one box: does it run")
    parser.add_argument("--json", action="store_true")
    run_program(parser, {"cases": 2, "boxes": 1}, measure, show)
