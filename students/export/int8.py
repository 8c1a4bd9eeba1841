"""ONNX with 8-bit products: ranges are taken from patches of real cases, and what it costs is measured on others.

Static quantisation after training (Jacob et al. 2018), as onnxruntime does it: weights in signed 8 bits per output channel, activations in unsigned 8 bits per tensor.
Only convolutions, which are nearly all of the work, are quantised; normalisation, and all that adds or joins, stays in 32 bits.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from distill import quality
from storage import IGNORE, Archive, ClassInfo
from students.errors import ExportError
from students.origins import Int8Cost
from students.predict import Student, image_for
from students.runtime import IMAGE
from students.spec import StudentCard
from students.validation import spread
from students.whole_volume import CompactNetwork, prepared_volume

_CALIBRATION_CASES = 8
"""Ranges hardly move beyond that; each case gives two patches."""

_MEASURED_CASES = 20
"""At most, evenly over all there are: the cost is a mean of differences of the same cases, whose spread is small."""

METHOD = "static, per channel; weights int8, activations uint8, minimum to maximum; convolutions only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What answers are measured against."""

    cases: tuple[str, ...]
    label_set: str
    measure: Literal["Dice", "agreement"]


def find_yardstick(archive: Archive, card: StudentCard) -> Yardstick:
    """Return experts' labels of test cases where there are some, else the pseudo-labels of the cases held out in training.

    Nothing is chosen by them: the cost is stated, whatever it is.

    Raises:
        ExportError: if there are neither.
    """
    tested = [record.id for record in archive.cases(part="test", with_labels="gold") if record.patient not in card.training_patients]
    if tested:
        return Yardstick(cases=tuple(spread(tested, _MEASURED_CASES)), label_set="gold", measure="Dice")
    held = [case for case in card.validation_cases if case in archive and card.label_set in archive[case].label_sets()]
    if held:
        return Yardstick(cases=tuple(spread(held, _MEASURED_CASES)), label_set=card.label_set, measure="agreement")
    message = (
        f"{archive.url} has neither test cases with experts' labels nor the cases that were held out when {card.name} was trained, so what 8-bit products "
        "cost could not be said. Name the archive that it was trained from."
    )
    raise ExportError(message)


def quantise(source: Path, out: Path, card: StudentCard, archive: Archive) -> tuple[str, ...]:
    """Write an ONNX network with 8-bit products, and return the cases whose patches set its ranges.

    Args:
        source: The network in 32 bits.
        out: The file to write.
        card: The student's.
        archive: That it was trained from.

    Raises:
        ExportError: if none of the cases that it learnt from is in the archive.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    cases = spread([case for case in card.training_cases if case in archive], _CALIBRATION_CASES)
    if not cases:
        message = f"{archive.url} holds none of the cases that {card.name} learnt from. Name the archive that it was trained from."
        raise ExportError(message)
    with _quiet_logging():
        quantize_static(
            source,
            out,
            _Patches(_patches(archive, cases, card)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )
    return tuple(cases)


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence onnxruntime's advice to optimise the graph first, on the root logger: our graphs have nothing to fold, and its optimiser fixes shapes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Patches:
    """Hands patches to onnxruntime one by one, in its own interface (``CalibrationDataReader``)."""

    def __init__(self, patches: Iterator[np.ndarray]) -> None:
        self._patches = patches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, or None at the end."""
        patch = next(self._patches, None)
        return None if patch is None else {IMAGE: patch}


def _patches(archive: Archive, cases: Sequence[str], card: StudentCard) -> Iterator[Float32[np.ndarray, "1 c ..."]]:
    """Cut two patches out of each case, prepared as a prediction prepares it: the middle, and one anywhere."""
    rng, plan = np.random.default_rng(0), card.plan
    for case in cases:
        stored = archive[case]
        volume = prepared_volume(plan, image_for(card, stored), stored.spacing_zyx_mm).numpy()
        pads = [(0, max(want - have, 0)) for want, have in zip(plan.patch_zyx, volume.shape[1:], strict=True)]
        volume = np.pad(volume, [(0, 0), *pads], mode="edge")
        room = [have - want for want, have in zip(plan.patch_zyx, volume.shape[1:], strict=True)]
        for start in ([each // 2 for each in room], [int(rng.integers(0, each + 1)) for each in room]):
            window = tuple(slice(at, at + size) for at, size in zip(start, plan.patch_zyx, strict=True))
            patch = np.ascontiguousarray(volume[(slice(None), *window)][None])
            yield patch if plan.dimensions == "3d" else patch[:, :, 0]


def measure_cost(before: Student, after: Student, archive: Archive, yardstick: Yardstick, calibration: tuple[str, ...]) -> Int8Cost:
    """Return what two students score on the same cases."""
    scores: list[tuple[float, float]] = []
    for case in yardstick.cases:
        stored = archive[case]
        truth = stored.labels(yardstick.label_set).read()
        answers = [student.predict(student.image_of(stored), stored.spacing_zyx_mm).labels for student in (before, after)]
        scores += [pair for info in before.card.classes if (pair := _pair(answers, truth, info)) is not None]
    if not scores:
        message = f"none of the classes of {before.name} is in {yardstick.label_set!r} of {', '.join(yardstick.cases[:3])}, ...: nothing can be measured."
        raise ExportError(message)
    mean = np.asarray(scores).mean(0)
    return Int8Cost(
        method=METHOD,
        calibration_cases=calibration,
        cases=yardstick.cases,
        against=yardstick.label_set,
        measure=yardstick.measure,
        before=round(float(mean[0]), 6),
        after=round(float(mean[1]), 6),
    )


def _pair(answers: Sequence[UInt8[np.ndarray, "z y x"]], truth: UInt8[np.ndarray, "z y x"], info: ClassInfo) -> tuple[float, float] | None:
    """Return the Dice of both answers for one class where it is there; voxels that truth ignores do not count."""
    known, wanted = truth != IGNORE, truth == info.id
    if not wanted.any():
        return None
    first, second = (quality.dice((answer == info.id) & known, wanted) for answer in answers)
    return first, second


def as_student(card: StudentCard, network: Any, folder: Path) -> Student:
    """Return a student around a network that is not finished yet."""
    import torch

    cpu = torch.device("cpu")
    return Student(card, CompactNetwork(network, card.plan, cpu), cpu, folder)
