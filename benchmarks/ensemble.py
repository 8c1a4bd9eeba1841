"""What an ensemble costs: 16 prompts per slice against one, for the whole of labelling, since embeddings are shared and decodes are batched.

    SAMDISTILL_TEST_DATA=... python benchmarks/ensemble.py [--prompts 16] [--cases 4] [--pictures 8] [--rounds 3] [--threads 1] [--device cpu] [--json]

Two teachers. ``vit_b`` has the released size at 1024 pixels with random weights, and is asked about noise, every slice prompted by a box
(``run_wavefront`` alone). ``bundled`` labels real volumes (hippocampus, a box on every fourth slice) from the archive to the written label set;
its encoder is a hundred times smaller than ViT-B, so the decoder weighs most there. Both arms run in turns in this process; the ratio is
the median over rounds of the ratio within a round. Mirrors and planes are off.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from paired import Found, device_name, run_program
from segment_anything import sam_model_registry

from distill.casework import CaseWork, ClassWork
from distill.engine import LabelPlan, label_archive
from distill.intensity import Window
from distill.prompts.hints import SliceHint
from distill.prompts.schedule import schedule_slices
from distill.questions import AskSettings
from distill.teachers.base import Teacher
from distill.teachers.checkpoints import load_teacher
from distill.wavefront import run_wavefront
from storage import Archive, CaseRecord, ClassInfo, Geometry
from storage.ingest import import_prompts, ingest

SIDE_PX = 512
"""Of the noise that ViT-B is shown."""


def random_vit_b(device: str) -> Teacher:
    """Return SAM's ViT-B with random weights, loaded from a file as a user's is: only then is the encoder ours, and not segment-anything's."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vit_b.pth"
        torch.save(sam_model_registry["vit_b"](checkpoint=None).state_dict(), file)
        return load_teacher(str(file), profile="sam", device=device)


def noise_case(slices: int) -> CaseWork:
    """Return a case of noise with a box on every slice."""
    noise = np.random.default_rng(0)
    shape = (slices, SIDE_PX, SIDE_PX)
    hints = {z: SliceHint(box=np.array([150, 170, 290, 310], np.float32) + z) for z in range(slices)}
    record = CaseRecord(
        id="noise",
        patient="noise",
        shape_czyx=(1, *shape),
        dtype="uint8",
        geometry=Geometry(spacing_zyx_mm=(5.0, 1.0, 1.0), affine=tuple(tuple(row) for row in np.eye(4).tolist())),  # type: ignore[arg-type]
    )
    target = ClassWork(plans=schedule_slices(hints, slices), probability=np.zeros(shape, np.float32))
    volume = noise.integers(0, 256, (1, *shape), dtype=np.uint8)
    return CaseWork(record=record, volume_czyx=volume, window=Window(low=0, high=255, rule="noise"), classes={1: target})


def settings(prompts: int) -> AskSettings:
    """Return how each slice is asked."""
    return AskSettings(boxes=prompts, flips=False, planes="axial")


def vit_b_arm(args: argparse.Namespace) -> Callable[[int], float]:
    """Return what asks ViT-B with so many prompts per slice, in seconds per slice."""
    teacher, case = random_vit_b(args.device), noise_case(args.pictures)

    def ask(prompts: int) -> float:
        work = case.fresh()
        began = time.perf_counter()
        run_wavefront(teacher, [work], settings(prompts))
        return (time.perf_counter() - began) / len(work.classes[1].summaries)

    return ask


def bundled_arm(args: argparse.Namespace, folder: Path) -> Callable[[int], float]:
    """Return what labels real cases with so many prompts per slice, in seconds per slice."""
    data = Path(os.environ["SAMDISTILL_TEST_DATA"]) / "hippocampus"
    archive = Archive.create(str(folder / "archive.zarr"))
    ingest(archive, data / "images", modality="MR")
    import_prompts(archive, data / "weak_prompts.json")
    cases = sorted(archive.catalog.prompts_by_case([record.id for record in archive.cases()]))[: args.cases]
    plan = LabelPlan(classes=(ClassInfo(id=1, name="hippocampus"),), device=args.device)
    calls = iter(range(10**6))

    def ask(prompts: int) -> float:
        began = time.perf_counter()
        summary = label_archive(archive, replace(plan, label_set=f"teacher/n{next(calls)}", ask=settings(prompts)), cases=cases)
        return (time.perf_counter() - began) / summary.slices

    return ask


def compare(ask: Callable[[int], float], prompts: int, rounds: int) -> Found:
    """Time one prompt and many in turns, after a round that warms up; by the clock, and by the processor's time, which a busy machine changes less."""

    def timed(count: int) -> tuple[float, float]:
        began = time.process_time()
        return ask(count), time.process_time() - began

    ask(1)
    pairs = [(timed(1), timed(prompts)) for _ in range(rounds)]
    ratios, cpu_ratios = ([many[k] / one[k] for one, many in pairs] for k in (0, 1))
    ones, manys = ([pair[n][0] for pair in pairs] for n in (0, 1))
    return {
        "seconds_one": median(ones),
        "seconds_many": median(manys),
        "ratio": median(ratios),
        "ratios": ratios,
        "cpu_ratio": median(cpu_ratios),
    }


def measure(args: argparse.Namespace) -> Found:
    """Run both teachers."""
    torch.set_num_threads(args.threads)
    rows = {"vit_b": compare(vit_b_arm(args), args.prompts, args.rounds)}
    if os.environ.get("SAMDISTILL_TEST_DATA"):
        with tempfile.TemporaryDirectory() as folder:
            rows["bundled"] = compare(bundled_arm(args, Path(folder)), args.prompts, args.rounds)
    return {**vars(args), "device": device_name(args.device), "torch": torch.__version__, "rows": rows}


def show(found: Found) -> None:
    """Print the table."""
    print(f"{found['prompts']} prompts per slice against one, {found['threads']} threads; {found['device']}; torch {found['torch']}\n")
    print("| teacher | s/slice, one prompt | s/slice, ensemble | ratio | of CPU time | of rounds |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in found["rows"].items():
        rounds = ", ".join(f"{each:.2f}" for each in row["ratios"])
        print(f"| {name} | {row['seconds_one']:.3f} | {row['seconds_many']:.3f} | {row['ratio']:.2f} | {row['cpu_ratio']:.2f} | {rounds} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What an ensemble of prompts costs.")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="one case, two slices, one round: does it run")
    parser.add_argument("--json", action="store_true")
    run_program(parser, {"cases": 1, "pictures": 2, "rounds": 1}, measure, show)
