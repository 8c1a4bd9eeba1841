"""A promptable student against its teacher on patients that nothing was learnt from: encoder speed, and Dice for the same prompts.

    python benchmarks/promptable.py ARCHIVE_OR_RECIPE [--seeds 0 1 2] [--budget 3min] [--steps N] [--student FILE] [--teacher bundled]
        [--size small] [--class-id 1] [--threads 1] [--work FOLDER] [--json]

Trains a student for each seed from the images of the archive part, or takes the one that is given, and asks teacher and student about every
slice of the test and calibration parts that has gold: once with the gold box, an oracle, and once with the weak box of that slice where somebody left one. The
ellipse in the same box is beside them. Differences are student minus teacher, paired, with 95 % bootstrap intervals over patients; so is the
share of the teacher's Dice that the student keeps. Encoders take turns on the same pictures, in calls of four, in one process.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from distill.intensity import choose_window, picture_of
from distill.label_plan import LabelPlan
from distill.prompts.hints import box_of
from distill.quality import dice, paired_interval, patient_interval
from distill.teachers.base import PromptBatch
from distill.teachers.checkpoints import load_teacher
from distill.teachers.sam import SamTeacher
from flows.durations import seconds_from
from flows.plans import label_plan
from flows.recipe_file import load_recipe
from storage import Archive, ClassInfo
from students.baselines import ellipse_in_box
from students.promptable.training import train
from students.spec import PromptableSpec, StudentSpec

ROUNDS = 21
SMALL_PX = 512
"""Larger squares are encoded one by one."""
DRAWS = 2000
WHO = ("teacher", "student", "ellipse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One slice of a patient that nothing was learnt from, with a box about its object."""

    patient: str
    kind: str
    """``gold box`` or ``weak box``."""
    picture: np.ndarray
    """``(H, W, 3)`` uint8."""
    gold: np.ndarray
    """``(H, W)`` bool."""
    box: np.ndarray
    """xyxy."""


def questions(archive: Archive, plan: LabelPlan, class_id: int) -> Iterator[Question]:
    """Yield every slice with gold of the parts that are not distilled from."""
    for part in ("test", "calibration"):
        for record in archive.cases(part=part, with_labels="gold"):
            case = archive[record.id]
            volume, gold = case.read(), case.labels("gold").read() == class_id
            window = choose_window(record, volume, plan.intensity)
            weak = {
                p.slice: p.box_xyxy_px
                for p in archive.catalog.prompts(record.id)
                if p.kind == "box" and p.axis == "z" and p.source == "weak"
            }
            for z, mask in enumerate(gold):
                own = box_of(mask)
                if own is None:
                    continue
                shown = {"patient": record.patient, "picture": picture_of(volume, z, window), "gold": mask}
                yield Question(kind="gold box", box=own, **shown)
                if weak.get(z) is not None:
                    yield Question(kind="weak box", box=np.array(weak[z], np.float32), **shown)


def answers(teacher: SamTeacher, asked: list[Question]) -> list[np.ndarray]:
    """Return a mask ``(H, W)`` bool for each box."""
    masks = []
    for start in range(0, len(asked), 4):
        some = asked[start : start + 4]
        seen = teacher.encode([each.picture for each in some])
        boxes = np.stack([each.box for each in some]).astype(np.float32)
        decoded = teacher.decode(seen, PromptBatch(image_index=np.arange(len(some)), boxes_xyxy_px=boxes))
        for n, each in enumerate(some):
            logits = teacher.upsample(decoded.low_res_logits[n : n + 1], each.gold.shape, seen.input_sizes_px[n])
            masks.append(logits[0, 0].numpy() > 0)
    return masks


def scores(asked: list[Question], teacher: SamTeacher, student: SamTeacher) -> dict[str, dict[str, object]]:
    """Return the Dice of all three for each kind of box."""
    found = {}
    for kind in dict.fromkeys(each.kind for each in asked):
        some = [each for each in asked if each.kind == kind]
        patients = [each.patient for each in some]
        masks = {
            "teacher": answers(teacher, some),
            "student": answers(student, some),
            "ellipse": [ellipse_in_box(each.box, each.gold.shape) for each in some],
        }
        values = {who: [dice(mask, each.gold) for mask, each in zip(drawn, some, strict=True)] for who, drawn in masks.items()}
        alike = [dice(a, b) for a, b in zip(masks["student"], masks["teacher"], strict=True)]
        difference = paired_interval(values["student"], values["teacher"], patients)
        found[kind] = {
            "slices": len(some),
            "patients": len(set(patients)),
            **{who: patient_interval(values[who], patients).mean for who in WHO},
            "difference": [difference.mean, difference.low, difference.high],
            "share": share(values["student"], values["teacher"], patients),
            "agreement": patient_interval(alike, patients).mean,
        }
    return found


def share(own: list[float], theirs: list[float], patients: list[str]) -> list[float]:
    """Return the student's mean Dice over patients as a share of the teacher's, with its 95 % interval."""
    names = sorted(set(patients))
    means = np.array(
        [[np.nanmean([v for v, p in zip(values, patients, strict=True) if p == name]) for name in names] for values in (own, theirs)]
    )
    drawn = means[:, np.random.default_rng(0).integers(0, len(names), (DRAWS, len(names)))].mean(axis=-1)
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    return [float(means[0].mean() / means[1].mean()), float(low), float(high)]


def speeds(teacher: SamTeacher, student: SamTeacher, picture: np.ndarray) -> dict[str, float]:
    """Return processor milliseconds per picture, medians of rounds by turns, and the median of the rounds' ratios.

    ``encode`` is from picture to embedding, ``network`` the encoder alone. Processor time of this process, since others share the machine.
    """
    some = [picture] * 4
    side = teacher.profile.image_size
    squares = torch.randn(4 if side <= SMALL_PX else 1, 3, side, side, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def network(each: SamTeacher) -> None:
        each.sam.image_encoder(squares)

    spent: dict[str, list[float]] = {}
    for round_ in range(1 + ROUNDS):
        for who, each in (("teacher", teacher), ("student", student)):
            for what, call, count in (("encode", partial(each.encode, some), len(some)), ("network", partial(network, each), len(squares))):
                began = time.process_time()
                call()
                if round_:  # the first one warms up
                    spent.setdefault(f"{who} {what}", []).append(1000 * (time.process_time() - began) / count)
    ratios = {f"ratio {what}": np.divide(spent[f"teacher {what}"], spent[f"student {what}"]) for what in ("encode", "network")}
    return {name: float(np.median(each)) for name, each in (spent | ratios).items()}


def opened(place: Path, teacher: str) -> tuple[Archive, LabelPlan]:
    """Return the archive, and how its teacher labels: as the recipe says, or as recipes do by default."""
    if place.suffix in {".yaml", ".yml"}:
        recipe = load_recipe(place)
        return Archive.open(recipe.archive, catalog=recipe.catalog, mode="r"), label_plan(recipe)
    classes = (ClassInfo(id=1, name="object"),)
    return Archive.open(str(place), mode="r"), LabelPlan(classes=classes, teacher=teacher, device="cpu")


def trained(archive: Archive, plan: LabelPlan, seed: int, args: argparse.Namespace) -> tuple[Path, dict[str, object]]:
    """Train the student of one seed; at once if it is there already."""
    spec = StudentSpec(
        name=f"promptable-{args.size}-{args.steps or args.budget:g}-{seed}",
        kind="promptable",
        seed=seed,
        steps=args.steps,
        budget_seconds=None if args.steps else args.budget,
        threads=args.threads,
        validations=2,
        promptable=PromptableSpec(size=args.size, embedding_share=args.embedding_share),
    )
    began = time.process_time()
    student = train(archive, classes=plan.classes, spec=spec, asking=plan, workdir=args.work)
    card = student.card
    told = {"steps": card.steps, "seconds": card.seconds, "cpu_seconds": round(time.process_time() - began, 1) if student.fresh else None}
    return student.path / "teacher.safetensors", told | {"held_out_agreement": card.agreement}


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Return everything that is printed."""
    archive, plan = opened(args.place, args.teacher)
    torch.set_num_threads(args.threads)
    teacher = load_teacher(plan.teacher, profile=plan.profile, base=plan.base, device="cpu", precision=plan.precision)
    torch.set_num_threads(args.threads)
    asked = list(questions(archive, plan, args.class_id))
    found = []
    for seed in args.seeds if args.student is None else [None]:
        file, how = (args.student, {}) if seed is None else trained(archive, plan, seed, args)
        student = load_teacher(file, device="cpu")
        torch.set_num_threads(args.threads)
        row = {"seed": seed, "student": str(file), **how, "speed": speeds(teacher, student, asked[0].picture)}
        found.append(row | {"scores": scores(asked, teacher, student)})
    return {"archive": str(args.place), "teacher": plan.teacher, "threads": args.threads, "students": found}


def show(found: dict[str, object]) -> None:
    """Print a table for each student."""
    print(f"{found['archive']}, teacher {found['teacher']}, {found['threads']} thread(s)")
    for row in found["students"]:
        speed = row["speed"]
        made = f", {row['steps']} steps in {row['seconds']:.0f} s ({row['cpu_seconds']} cpu-s)" if "steps" in row else ""
        print(f"\nseed {row['seed']}{made}")
        for what in ("encode", "network"):
            print(
                f"  {what}: teacher {speed[f'teacher {what}']:.1f} ms, student {speed[f'student {what}']:.1f} cpu-ms per picture: {speed[f'ratio {what}']:.2f} times as fast"
            )
        for kind, each in row["scores"].items():
            means = ", ".join(f"{who} {each[who]:.4f}" for who in WHO)
            low, high = each["difference"][1:]
            print(
                f"  {kind}, {each['slices']} slices of {each['patients']} patients: Dice {means}; student and teacher {each['agreement']:.4f}"
            )
            print(
                f"    student minus teacher {each['difference'][0]:+.4f} ({low:+.4f} to {high:+.4f}); "
                f"keeps {each['share'][0]:.1%} ({each['share'][1]:.1%} to {each['share'][2]:.1%})"
            )


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path, metavar="ARCHIVE_OR_RECIPE")
    parser.add_argument("--student", type=Path, help="a teacher.safetensors that was trained before")
    parser.add_argument("--teacher", default="bundled", help="of an archive; a recipe names its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=seconds_from, default=180.0, help="of each training, such as 3min (default)")
    parser.add_argument("--steps", type=int, help="instead of a budget: so many steps, however busy the machine is")
    parser.add_argument("--size", choices=("small", "medium"), default="small")
    parser.add_argument("--embedding-share", type=float, default=PromptableSpec().embedding_share)
    parser.add_argument("--class-id", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("promptable-students"), help="where students are kept")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
