"""Use a student: on an array, on cases of an archive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from pydantic import JsonValue
from torch import nn

from storage import Archive, Case, CaseRecord, LabelHistory, fingerprint
from students.checkpoint import load_network, read_card, weights_digest
from students.devices import best_device
from students.errors import NoSuchDeviceError, StudentFileError, VolumeError
from students.hints import beside, read_hints
from students.spec import StudentCard
from students.whole_volume import OVERLAP, CompactNetwork

_PROBABILITY_TOP = 255
"""uint8 code of certainty in the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a student says about one volume, on the volume's own grid."""

    labels: UInt8[np.ndarray, "z y x"]
    """Class ids of the student's classes; 0 is background."""
    probability: Float32[np.ndarray, "k z y x"]
    """Of each class, in the order of the student's classes."""


def _device_for(card: StudentCard, name: str) -> torch.device:
    """Return where a student computes: ONNX on the CPU alone, all else where it is asked to.

    Raises:
        NoSuchDeviceError: if a GPU was asked for an ONNX student, or as for `best_device`.
    """
    if card.exported is None or card.exported.format not in ("onnx", "int8"):
        return best_device(name)
    if name not in ("auto", "cpu"):
        message = (
            f"student {card.name} is an export to ONNX, which runs on the CPU, not on {name}. Give the folder that training wrote, or cpu."
        )
        raise NoSuchDeviceError(message)
    return torch.device("cpu")


class Answering(Protocol):
    """A network with the way in which it answers for a whole volume; each kind of student has its own."""

    network: nn.Module

    def probability(self, image_czyx: np.ndarray, spacing_zyx_mm: Sequence[float]) -> Float32[np.ndarray, "c z y x"]:
        """Return the probability of background and each class, on the grid of the image, of native intensities."""
        ...


def needs_prompts(card: StudentCard, folder: Path) -> str:
    """Say how a promptable student is used."""
    record = card.promptable
    file = folder / record.file if record else folder
    return (
        f"student {card.name} is promptable: it draws what it is asked about, and here nobody asks. Use it as a teacher, in a recipe with "
        f"teacher: {{checkpoint: {file}}}, or in Python with distill.load_teacher({str(file)!r})."
    )


class Student:
    """A trained student, ready to answer. Use `load_student` or `Student.load`."""

    def __init__(self, card: StudentCard, answering: Answering, device: torch.device, path: Path) -> None:
        self.card = card
        self.path = path
        self.device = device
        self._answering = answering
        self._ids = np.asarray([0, *(info.id for info in card.classes)], np.uint8)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> "Student":
        """Load a student's folder.

        Raises:
            StudentFileError: if it is not a usable student.
            NoSuchDeviceError: if the device is not here, or not for a student of this format.
        """
        card = read_card(path)
        if card.promptable is not None:
            raise StudentFileError(needs_prompts(card, Path(path)))
        where = _device_for(card, device)
        if card.nnunet is not None:
            from students.nnunet.answers import load_answers

            return cls(card, load_answers(Path(path), card, where), where, Path(path))
        return cls(card, CompactNetwork(load_network(path, card), card.plan, where), where, Path(path))

    @property
    def network(self) -> nn.Module:
        """The network alone, for those who count or export it."""
        return self._answering.network

    @property
    def name(self) -> str:
        """The name it was trained under."""
        return self.card.name

    def predict(
        self,
        volume: np.ndarray,
        spacing_zyx_mm: Sequence[float],
        *,
        largest_component: bool = False,
        hints: Float32[np.ndarray, "k z y x"] | None = None,
    ) -> Prediction:
        """Segment one volume.

        Args:
            volume: ``z y x`` or ``c z y x``, native intensities of any scale.
            spacing_zyx_mm: Distance between voxel centres, in array order.
            largest_component: Keep only the largest connected part of each class (26 neighbours); for organs that are one piece.
            hints: What a teacher believes of each class, for students that see that (``students.hints.read_hints``).

        Raises:
            VolumeError: if the number of axes or channels is not what the student knows, no voxel is finite, or hints are missing.
        """
        image = beside(self._checked(np.asarray(volume), spacing_zyx_mm), self._checked_hints(hints))
        probability = self._answering.probability(image, spacing_zyx_mm)
        labels = self._ids[probability.argmax(0)]
        return Prediction(labels=self._single(labels) if largest_component else labels, probability=probability[1:])

    def _checked(self, volume: np.ndarray, spacing_zyx_mm: Sequence[float]) -> np.ndarray:
        image = volume[None] if volume.ndim == 3 else volume
        channels = self.card.plan.image_channels
        if image.ndim != 4 or image.shape[0] != channels:
            message = (
                f"student {self.name} needs z y x or c z y x with {self.card.channel_words}, but the volume has shape {volume.shape}. "
                "Give images of the kind it was trained on (a grey picture saved in colour has 3 channels)."
            )
            raise VolumeError(message)
        if len(spacing_zyx_mm) != 3 or min(spacing_zyx_mm) <= 0:
            message = f"spacing_zyx_mm must be three positive lengths, but is {tuple(spacing_zyx_mm)}."
            raise VolumeError(message)
        if not np.isfinite(image).any():
            message = "no voxel of the volume is a finite number. The file is damaged, or the wrong array was read."
            raise VolumeError(message)
        return image

    def _checked_hints(self, hints: Float32[np.ndarray, "k z y x"] | None) -> Float32[np.ndarray, "k z y x"] | None:
        wanted, given = self.card.plan.hints, 0 if hints is None else len(hints)
        if given != wanted:
            sees = f"sees the label set {self.card.spec.hints!r} beside the image" if wanted else "sees the image alone"
            where = (
                "It answers for cases of an archive that the teacher has drawn, as 'samdistill evaluate' asks it to; for scans of files train a student without student.hints."
                if wanted
                else "Give none."
            )
            message = f"student {self.name} {sees}, and needs {wanted} channels of hints, but was given {given}. {where}"
            raise VolumeError(message)
        return hints

    def predict_case(self, stored: Case) -> Prediction:
        """Segment one case of an archive, with the hints that it carries if the student sees hints.

        Raises:
            VolumeError: as for `predict`, or if the case does not carry the label set that the student sees, or lacks one of its channels.
        """
        return self.predict(self.image_of(stored), stored.spacing_zyx_mm, hints=self.hints_of(stored))

    def image_of(self, stored: Case) -> np.ndarray:
        """Return the channels of a case in the order in which the student knows them, where both have names for them.

        Raises:
            VolumeError: if the case lacks one.
        """
        return image_for(self.card, stored)

    def hints_of(self, stored: Case) -> Float32[np.ndarray, "k z y x"] | None:
        """Return what a case shows this student beside the image; None for a student that sees the image alone.

        Raises:
            VolumeError: if the case does not carry it.
        """
        label_set = self.card.spec.hints
        return None if label_set is None else read_hints(stored, label_set, self.card.classes)

    def _single(self, labels: np.ndarray) -> np.ndarray:
        import cc3d

        kept = np.zeros_like(labels)
        for info in self.card.classes:
            kept[cc3d.largest_k((labels == info.id).astype(np.uint8), k=1, connectivity=26) > 0] = info.id
        return kept


def image_for(card: StudentCard, stored: Case) -> np.ndarray:
    """Return the channels of a case as ``Student.image_of`` does, for a student of which there is only the card.

    Raises:
        VolumeError: if the case lacks one.
    """
    there = turned_channels(card, stored.record)
    if not there:
        return stored.read()
    wanted = [channel.name for channel in card.channels]
    lacking = [name for name in wanted if name not in there]
    if lacking:
        message = f"case {stored.id} has the channels {', '.join(there)}, but student {card.name} sees {', '.join(wanted)}: {', '.join(lacking)} is missing."
        raise VolumeError(message)
    return np.asarray(stored.read()[[there.index(name) for name in wanted]])


def turned_channels(card: StudentCard, record: CaseRecord) -> list[str]:
    """Return the names of a case's channels where they are not a student's own in its own order; none where either has no names."""
    wanted, there = ([channel.name for channel in each] for each in (card.channels, record.channels))
    return there if wanted and wanted != there else []


def predict_cases(
    student: Student,
    archive: Archive,
    cases: Sequence[str],
    *,
    label_set: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Write the student's labels for cases, skipping those that carry them already, and those without what the student sees beside the image.

    Args:
        student: Who answers.
        archive: Read from and written to.
        cases: Case ids.
        label_set: ``student/NAME`` when None.
        progress: Called with each case id when it is done.

    Returns:
        How many were written.
    """
    name = label_set or f"student/{student.name}"
    written, shown = 0, student.card.spec.hints
    for case in cases:
        stored = archive[case]
        if shown is not None and shown not in stored.label_sets():
            continue
        hints = None if shown is None else stored.labels(shown).history.fingerprint
        mark = answer_fingerprint(student, hints, turned_channels(student.card, stored.record))
        if not (name in stored.label_sets() and stored.labels(name).history.fingerprint == mark):
            found = student.predict_case(stored)
            coded = np.rint(found.probability * _PROBABILITY_TOP).astype(np.uint8)
            stored.write_labels(_history(student, name, mark), found.labels, probability_kzyx=coded)
            written += 1
        if progress:
            progress(case)
    return written


def answer_fingerprint(student: Student, shown: str | None = None, turned: Sequence[str] = ()) -> str:
    """Return a hash of all that decides a student's answer to a volume: inputs of its training, weights, how windows overlap, and the labels it is shown.

    So do ``turned_channels`` of the case, where there are any.
    """
    beside: dict[str, JsonValue] = {} if shown is None else {"shown": shown}
    beside |= {"channels": [*turned]} if turned else {}
    return fingerprint(student=student.card.fingerprint, weights=weights_digest(student.path), overlap=OVERLAP, **beside)


def _history(student: Student, label_set: str, mark: str) -> LabelHistory:
    return LabelHistory(
        label_set=label_set,
        classes=student.card.classes,
        made_by="students.predict",
        parameters={"student": student.name, "steps": student.card.steps, "overlap": OVERLAP},
        parents=(student.card.label_set,),
        fingerprint=mark,
    )
