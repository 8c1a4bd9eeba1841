"""A case on its way through labelling: its volume, what is to be asked about each class, and what is known so far."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from distill.intensity import IntensitySpec, Window, choose_window, picture_of
from distill.prompts.hints import hints_by_slice
from distill.prompts.schedule import SlicePlan, schedule_slices
from distill.uncertainty import EnsembleSummary
from storage import Archive, CaseRecord, Prompt


@dataclass(slots=True, kw_only=True)
class ClassWork:
    """What is known so far about one class of one case."""

    plans: list[SlicePlan]
    probability: np.ndarray
    """``(z, y, x)`` float32, filled slice by slice."""
    summaries: dict[int, EnsembleSummary] = field(default_factory=dict)
    iou: dict[int, float] = field(default_factory=dict)
    absent: set[int] = field(default_factory=set)
    """Slices that were asked or reached, and on which the class is not."""
    plane_agreement: float | None = None
    """Mean Dice between the answers of three planes; None where only axial slices were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseWork:
    """One case on its way through the wavefront."""

    record: CaseRecord
    volume_czyx: np.ndarray
    window: Window
    classes: dict[int, ClassWork]

    def picture(self, z: int) -> np.ndarray:
        """Return slice ``z`` as the teacher sees it, ``(H, W, 3)`` uint8."""
        return picture_of(self.volume_czyx, z, self.window)

    def fresh(self) -> "CaseWork":
        """Return the same questions without any answer."""
        classes = {key: ClassWork(plans=known.plans, probability=np.zeros_like(known.probability)) for key, known in self.classes.items()}
        return replace(self, classes=classes)


def prepare_case(
    archive: Archive, record: CaseRecord, prompts: Iterable[Prompt], *, classes: Collection[int], intensity: IntensitySpec
) -> CaseWork:
    """Read a case and plan what to ask, nothing answered yet.

    Args:
        archive: holds the case.
        record: of the case.
        prompts: about it; those of other classes are left out.
        classes: ids, in the order in which the work is to have them.
        intensity: how native intensities become pictures.
    """
    volume = archive[record.id].read()
    hints = hints_by_slice(record, prompts)
    shape_zyx = record.shape_czyx[1:]
    planned = {
        key: ClassWork(plans=schedule_slices(hints[key], shape_zyx[0]), probability=np.zeros(shape_zyx, np.float32))
        for key in classes
        if key in hints
    }
    return CaseWork(record=record, volume_czyx=volume, window=choose_window(record, volume, intensity), classes=planned)
