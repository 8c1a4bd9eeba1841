"""What does the teacher draw where an earlier student's masks prompt it, instead of the boxes that people left?

    python benchmarks/student_prompts.py ARCHIVE results/students/NAME [--cases 20] [--boxes 5] [--planes three] [--kinds all,box]

ARCHIVE is that of a finished run whose student is NAME, with gold; it is copied, and the original left alone. Prints one row of a Markdown table per part:
mean Dice over cases of the student, of the teacher with weak prompts, and of the same teacher with the student's masks as prompts. Cases of the part
``archive`` taught the student, by pseudo-labels that the same teacher drew from weak prompts; those of ``test`` it has never seen.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from many_students import copied

from distill.engine import label_archive
from distill.label_plan import LabelPlan
from distill.prompts.student_options import StudentPrompts
from distill.propose import PromptPlan, propose_prompts
from distill.quality import dice
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo
from students import load_student
from students.predict import predict_cases

KINDS: dict[str, dict[str, bool]] = {
    "all": {},
    "box": {"points": False, "negatives": False, "masks": False},
    "box+point": {"masks": False},
    "box+mask": {"points": False, "negatives": False},
}
"""What a piece of a mask becomes, by name."""


def scored(archive: Archive, label_set: str, cases: list[str], classes: tuple[ClassInfo, ...]) -> list[float]:
    """Return the Dice of each case and class that gold has."""
    found = []
    for case in cases:
        gold, drawn = archive[case].labels("gold").read(), archive[case].labels(label_set).read()
        found += [dice(drawn == info.id, gold == info.id) for info in classes if (gold == info.id).any()]
    return found


def prompted(archive: Archive, plan: LabelPlan, told: StudentPrompts, cases: list[str]) -> tuple[float, float]:
    """Ask the teacher with a label set's masks; return the seconds per case of proposing and of drawing."""
    proposed = propose_prompts(archive, PromptPlan(sources=("student",), options={"student": told}, label=plan), cases=cases)
    began = time.monotonic()
    summary = label_archive(archive, plan, cases=cases)
    if summary.quarantined or summary.unfinished:
        raise SystemExit(archive.ledger.quarantined(f"label:{plan.label_set}")[0].error)
    return proposed.seconds / len(cases), (time.monotonic() - began) / len(cases)


def main() -> None:
    """Measure on a copy of an archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--cases", type=int, default=20, help="of each part")
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--planes", default="three", choices=("axial", "three"))
    parser.add_argument("--kinds", default="all")
    parser.add_argument("--margin", type=float, help="of boxes; by default the teacher's")
    parser.add_argument("--parts", default="test,archive")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, student = copied(told.archive, Path(folder)), load_student(told.student, device="cpu")
        labels, classes = f"student/{student.name}", student.card.classes
        for part in told.parts.split(","):
            drawn = set(archive.catalog.fingerprints("teacher/r1"))
            cases = [record.id for record in archive.cases(part=part, with_labels="gold") if record.id in drawn][: told.cases]
            predict_cases(student, archive, cases)
            before = {name: scored(archive, name, cases, classes) for name in (labels, "teacher/r1")}
            for kind in told.kinds.split(","):
                ask = AskSettings(boxes=told.boxes, planes=told.planes)
                plan = LabelPlan(
                    classes=classes, label_set=f"teacher/{kind.replace('+', '-')}", sources=("student",), ask=ask, device="cpu"
                )
                cost = prompted(
                    archive, plan, StudentPrompts.model_validate({"labels": labels, "margin": told.margin, **KINDS[kind]}), cases
                )
                after = scored(archive, plan.label_set, cases, classes)
                gain = np.array(after) - np.array(before["teacher/r1"])
                print(
                    f"| {student.name}, {part} ({len(cases)}) | {kind} | {np.mean(before[labels]):.3f} | {np.mean(before['teacher/r1']):.3f} "
                    f"| {np.mean(after):.3f} | {gain.mean():+.3f} +- {gain.std(ddof=1) / np.sqrt(len(gain)):.3f} | {cost[0]:.2f} + {cost[1]:.2f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
