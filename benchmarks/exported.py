"""What an answer costs: the student in torch, ONNX and 8 bits, and its teacher, on the same machine in the same run.

    python benchmarks/exported.py ARCHIVE STUDENT [--int8 FOLDER] [--cases 3] [--teacher bundled]

Exports STUDENT to ONNX, asks each for the same test cases of ARCHIVE, and prints seconds per case, the ratio to torch, and how far answers differ. The
teacher is asked as a person would ask it with a perfect box: one box around the expert's mask on every slice that shows one. It is only timed.
Best of three runs each, one thread unless OMP_NUM_THREADS says otherwise.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distill import load_teacher
from storage import Archive, Case
from students import load_student
from students.export.write import export_student

Answer = Callable[[Case], object]


def seconds(answer: Answer, cases: list[Case]) -> float:
    """Return the best of three times per case, reading not included in any."""
    return min(_once(answer, cases) for _ in range(3)) / len(cases)


def _once(answer: Answer, cases: list[Case]) -> float:
    started = time.perf_counter()
    for case in cases:
        answer(case)
    return time.perf_counter() - started


def teacher_answer(name: str, scans: dict[str, np.ndarray], gold: dict[str, np.ndarray]) -> Answer:
    """Return what asks a teacher about every slice that shows the first class."""
    teacher = load_teacher(name, device="cpu")

    def answer(case: Case) -> None:
        scan, mask = scans[case.record.id][0], gold[case.record.id] > 0
        low, high = np.percentile(scan, (0.5, 99.5))
        grey = (np.clip((scan - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        for z in np.flatnonzero(mask.any((1, 2))):
            rows, columns = np.nonzero(mask[z])
            box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
            teacher.predict(np.repeat(grey[z][..., None], 3, axis=2), boxes=box)

    return answer


def main() -> None:
    """Measure and print one table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("archive")
    asked.add_argument("student")
    asked.add_argument("--int8")
    asked.add_argument("--cases", type=int, default=3)
    asked.add_argument("--teacher", default="bundled")
    given = asked.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    archive = Archive.open(given.archive, mode="r")
    cases = [archive[record.id] for record in archive.cases(part="test", with_labels="gold")][: given.cases]
    scans = {case.record.id: case.read() for case in cases}
    gold = {case.record.id: case.labels("gold").read() for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        export_student(given.student, Path(folder) / "onnx", "onnx")
        places = {"torch": given.student, "onnx": Path(folder) / "onnx", **({"int8": given.int8} if given.int8 else {})}
        students = {name: load_student(place, device="cpu") for name, place in places.items()}
    answers = {name: [each.predict(scans[c.record.id], c.spacing_zyx_mm) for c in cases] for name, each in students.items()}
    times = {
        name: seconds(lambda c, each=each: each.predict(scans[c.record.id], c.spacing_zyx_mm), cases) for name, each in students.items()
    }
    times[f"teacher {given.teacher}"] = seconds(teacher_answer(given.teacher, scans, gold), cases)
    print(f"{len(cases)} cases, {torch.get_num_threads()} thread(s)")
    print(f"{'who':24s} {'s per case':>10s} {'torch / it':>10s} {'it / torch':>10s} {'max |dp|':>9s} {'voxels that differ':>19s}")
    for name, each in times.items():
        apart = ""
        if name in answers:
            pairs = list(zip(answers["torch"], answers[name], strict=True))
            worst = max(float(np.abs(a.probability - b.probability).max()) for a, b in pairs)
            differ = np.mean([float((a.labels != b.labels).mean()) for a, b in pairs])
            apart = f"{worst:9.1e} {differ:19.1e}"
        print(f"{name:24s} {each:10.3f} {times['torch'] / each:10.2f} {each / times['torch']:10.2f} {apart}")


if __name__ == "__main__":
    main()
