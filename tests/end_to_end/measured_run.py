"""Program for ``test_memory``: label so many cases of an archive and print the peak memory in KiB.

``python measured_run.py ARCHIVE TEACHER CASES``
"""

import resource
import sys

import torch

from distill.engine import LabelPlan, label_archive
from distill.refine import RefinePlan, refine_archive
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo

CLASSES = (ClassInfo(id=1, name="organ"),)


def main() -> None:
    """Label and refine the first cases, with two in flight at a time."""
    torch.set_num_threads(1)
    archive = Archive.open(sys.argv[1])
    cases = [record.id for record in archive.cases()][: int(sys.argv[3])]
    plan = LabelPlan(classes=CLASSES, teacher=sys.argv[2], device="cpu", window=2, ask=AskSettings(boxes=2, flips=False))
    summary = label_archive(archive, plan, cases=cases)
    refine_archive(archive, RefinePlan(classes=CLASSES), cases=cases)
    sys.stdout.write(f"{summary.done} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\n")


if __name__ == "__main__":
    main()
