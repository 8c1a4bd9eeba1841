"""A promptable student among those that are evaluated: it is asked with the very prompts that its teacher was asked with."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from distill.casework import CaseWork, prepare_case
from distill.devices import resolve_devices
from distill.engine import label_archive
from distill.label_plan import LabelPlan
from distill.planes import ask_other_planes
from distill.prompts.choice import chosen_prompts
from distill.teachers.checkpoints import load_teacher
from distill.teachers.sam import SamTeacher
from distill.wavefront import run_wavefront, sizes_of
from storage import Archive
from students.checkpoint import read_card
from students.cost import measure_cost
from students.errors import StudentFileError
from students.promptable.network import known_teacher
from students.promptable.words import ENCODER
from students.spec import Cost, StudentCard

_ROUNDS = 5


class PromptedStudent:
    """A promptable student with the questions that it is asked.

    Args:
        folder: of the student.
        asking: how its teacher labels; it is asked in the same way.

    Raises:
        StudentFileError: if the folder holds no promptable student.
    """

    def __init__(self, folder: Path, asking: LabelPlan) -> None:
        self.card: StudentCard = read_card(folder)
        self.path = folder
        if self.card.promptable is None:
            message = f"{folder}: student {self.card.name} is of kind {self.card.spec.kind}, not promptable. Train again, or name another student."
            raise StudentFileError(message)
        self.device = torch.device(resolve_devices(asking.device)[0])
        self._teacher = asking
        self._asking = as_teacher(self.card, folder, asking)

    @property
    def name(self) -> str:
        """The name it was trained under."""
        return self.card.name

    def answer(self, archive: Archive, cases: Sequence[str], progress: Callable[[int, int], None] | None = None) -> str:
        """Draw every prompted one of the cases as labelling does, unless that is done; return the label set, ``student/NAME``."""
        label_archive(archive, self._asking, cases=cases, progress=progress)
        return self._asking.label_set

    def costs(self, archive: Archive, case: str) -> tuple[Cost, ...]:
        """Measure drawing a case with its prompts, and both encoders by turns on one picture of it, on the first device."""
        student, teacher = self._load(self._asking), self._load(self._teacher)
        prompts = chosen_prompts(archive.catalog.prompts(case), self._asking.sources)
        classes = [info.id for info in self._asking.classes]
        work = prepare_case(archive, archive[case].record, prompts, classes=classes, intensity=self._asking.intensity)
        costs = []
        if work.classes:
            own = measure_cost(
                f"{self.name}, with prompts",
                [student.sam],
                partial(self._draw, student, work),
                device=self.device,
                repeats=1,
            )
            costs.append(own)
        return (*costs, *self._encoders({"student": student, "teacher": teacher}, work.picture(0)))

    def _draw(self, student: SamTeacher, work: CaseWork) -> None:
        """Draw a case as labelling does, and forget it."""
        works = [work.fresh()]
        run_wavefront(student, works, self._asking.ask)
        if self._asking.ask.planes == "three":
            ask_other_planes(student, works, self._asking.ask)

    def _encoders(self, both: Mapping[str, SamTeacher], picture: np.ndarray) -> list[Cost]:
        """Measure encoders in full calls; seconds by turns, since a machine is now faster and now slower."""
        calls = {name: [picture] * sizes_of(each).pictures for name, each in both.items()}
        found = {}
        for name, each in both.items():
            label, pictures = ENCODER.format(name), calls[name]
            encode = partial(each.encode, pictures)
            found[name] = measure_cost(label, [each.sam.image_encoder], encode, device=self.device, repeats=1, cases=len(pictures))
        for _ in range(_ROUNDS):
            for name, each in both.items():
                began = time.perf_counter()
                each.encode(calls[name]).features.cpu()
                seconds = min((time.perf_counter() - began) / len(calls[name]), found[name].seconds_per_case)
                found[name] = found[name].model_copy(update={"seconds_per_case": seconds})
        return list(found.values())

    def _load(self, plan: LabelPlan) -> SamTeacher:
        loaded = load_teacher(plan.teacher, profile=plan.profile, base=plan.base, device=str(self.device), precision=plan.precision)
        return known_teacher(loaded, plan.teacher)


def as_teacher(card: StudentCard, folder: Path, asking: LabelPlan) -> LabelPlan:
    """Return how a student labels, where its teacher labels as ``asking`` says: everything alike but the model."""
    record = card.promptable
    file = folder / record.file if record else folder
    # 8-bit products are for ViT encoders, and a student has none.
    precision = "auto" if asking.precision == "int8" else asking.precision
    return replace(
        asking, label_set=f"student/{card.name}", teacher=str(file), profile=None, base=None, precision=precision, embedding_cache=None
    )
