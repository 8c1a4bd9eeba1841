"""How patients are dealt out to students that are to be witnesses. Free of torch, so that plans may import it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage import ClassInfo
from students.spec import StudentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldPlan:
    """Which students are to be trained, and on what."""

    classes: tuple[ClassInfo, ...]
    spec: StudentSpec
    """Of each student; its name is followed by the fold."""
    workdir: Path
    label_set: str = "teacher/r1"
    folds: int = 2
    cases: tuple[str, ...] | None = None
    """Archive cases whose labels are learnt from; None for all that carry the label set."""
    gold: tuple[str, ...] = ()
    """Archive cases whose expert labels are learnt from instead, by the students that must not answer for them."""

    def student_name(self, left_out: int) -> str:
        """Return the name of the student that does not learn from one of the folds."""
        return f"{self.spec.name}-without-fold-{left_out + 1}"

    @property
    def student_folders(self) -> tuple[Path, ...]:
        """Where the students are, in the order of the folds that they leave out."""
        return tuple(self.workdir / self.student_name(left_out) for left_out in range(self.folds))


def folds_of(patients: Sequence[str], folds: int) -> dict[str, int]:
    """Deal patients out to folds, evenly and always alike: in the order of a hash of their names."""
    order = sorted(set(patients), key=lambda patient: hashlib.blake2b(patient.encode(), digest_size=8).digest())
    return {patient: n % folds for n, patient in enumerate(order)}
