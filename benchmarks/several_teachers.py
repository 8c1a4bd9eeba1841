"""Does fusing several teachers help, and does their agreement tell which cases are good?

    python benchmarks/several_teachers.py ARCHIVE --also FILE[:PROFILE] [--also ...] [--cases 20] [--boxes 5] [--planes three]

ARCHIVE is that of a finished run with gold, whose teacher was the bundled one; it is copied, and the original left alone. Prints mean Dice over test cases of
each teacher and of what they say together: STAPLE, the mean of their probabilities, any, all; and how well scores without gold rank the cases.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from student_prompts import copied, scored

from distill.engine import label_archive
from distill.fuse import FusePlan, fuse_archive
from distill.label_plan import LabelPlan
from distill.quality import dice
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo


def plans_of(told: argparse.Namespace, classes: tuple[ClassInfo, ...]) -> list[LabelPlan]:
    """Return a plan for each teacher, the bundled one first."""
    named = [("bundled", None), *((file, profile or None) for file, _, profile in (also.partition(":") for also in told.also))]
    ask = AskSettings(boxes=told.boxes, planes=told.planes)
    return [
        LabelPlan(classes=classes, label_set=f"teacher/f-{n + 1}", teacher=file, profile=profile, ask=ask, device="cpu")
        for n, (file, profile) in enumerate(named)
    ]


def simple(archive: Archive, members: Sequence[str], cases: list[str]) -> dict[str, list[float]]:
    """Return the Dice of class 1 for what needs no estimation."""
    found: dict[str, list[float]] = {"mean": [], "any": [], "all": []}
    for case in cases:
        drawn = np.stack([np.asarray(archive[case].labels(member).map("probability")[0]) for member in members]) / 255.0  # type: ignore[index]
        gold = archive[case].labels("gold").read() == 1
        for name, mask in (("mean", drawn.mean(0) > 0.5), ("any", (drawn > 0.5).any(0)), ("all", (drawn > 0.5).all(0))):
            found[name].append(dice(mask, gold))
    return found


def main() -> None:
    """Measure on a copy of an archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--also", action="append", required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--planes", default="three", choices=("axial", "three"))
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = copied(told.archive, Path(folder))
        cases = [record.id for record in archive.cases(part="test", with_labels="gold")][: told.cases]
        classes = archive[cases[0]].labels("gold").history.classes[:1]
        plans = plans_of(told, classes)
        for plan in plans:
            label_archive(archive, plan, cases=cases)
        members = tuple(plan.label_set for plan in plans)
        fuse_archive(archive, FusePlan(members=members, classes=classes, label_set="teacher/fused"), cases=cases)
        found = {plan.teacher: scored(archive, plan.label_set, cases, classes) for plan in plans}
        found |= {"STAPLE": scored(archive, "teacher/fused", cases, classes)} | simple(archive, members, cases)
        first = np.array(found["bundled"])
        for name, values in found.items():
            gain = np.array(values) - first
            print(
                f"| {Path(name).name} | {np.mean(values):.3f} | {gain.mean():+.3f} +- {gain.std(ddof=1) / np.sqrt(len(gain)):.3f} |",
                flush=True,
            )
        scores = [archive[case].labels("teacher/fused").scores for case in cases]
        for name in ("pairwise_dice", "teacher_agreement"):
            rank = spearmanr([each[f"{name}/1"] for each in scores], found["STAPLE"]).statistic
            print(f"{name}: Spearman {rank:+.2f} with the Dice of STAPLE over {len(cases)} cases")


if __name__ == "__main__":
    main()
