"""Look at a volume from its other two sides, once the axial slices have said roughly where the object is.

A teacher that sees slices one by one leaves stairs between them. Where voxels are near isotropic, the coronal and sagittal slices
through the axial answer are asked too, with the box and rough mask that this answer gives them, and the three probabilities are
averaged, each with the eighth power of its mean Dice with the other two as weight: a plane in which the organ cannot be told from
its neighbours disagrees with both others and loses its say. How well the three agree is a score of its own. Slices that nobody asked about
(``distill.unasked``) take no part in it: there the axial plane has not said no.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.casework import CaseWork, ClassWork
from distill.embedding_memory import EmbeddingMemory
from distill.patches import Patch
from distill.prompts.hints import SliceHint, box_of
from distill.prompts.pieces import parts_of
from distill.prompts.schedule import SlicePlan
from distill.quality import dice
from distill.questions import AskSettings
from distill.teachers.base import Teacher
from distill.unasked import unasked_slices
from distill.uncertainty import LN2, binary_entropy, in_bytes
from distill.wavefront import run_wavefront
from storage import CaseRecord

ANISOTROPY = 1.5
"""Up to this ratio of the largest to the smallest spacing, slices across the others are worth looking at."""
LEAST_SIDE_PX = 16
LEAST_AREA_PX = 4
AGREEMENT_POWER = 8
"""On the 10 calibration hippocampi: power 0 (plain mean) 0.829, 4 0.829, 8 0.833, 16 0.833; the best single plane 0.836, the axial 0.815."""


def near_isotropic(work: CaseWork) -> bool:
    """Say whether coronal and sagittal slices of a case look like slices at all; where nobody knows how far slices are apart, nobody knows that either."""
    return work.record.geometry.spacing_known and is_alike(work.record)


def is_alike(record: CaseRecord) -> bool:
    """Say whether the spacing that is stored, known or not, is near isotropic, and the volume large enough."""
    spacing = record.geometry.spacing_zyx_mm
    return max(spacing) / min(spacing) <= ANISOTROPY and min(record.shape_czyx[1:]) >= LEAST_SIDE_PX


def plane_inputs(record: CaseRecord, settings: AskSettings) -> dict[str, str]:
    """Return what a label's fingerprint takes in where planes were once asked across pages of unknown distance, and nothing elsewhere."""
    left_out = settings.planes == "three" and not record.geometry.spacing_known and is_alike(record)
    return {"pages": "1"} if left_out else {}


def ask_other_planes(
    teacher: Teacher,
    works: Sequence[CaseWork],
    settings: AskSettings,
    *,
    check: Callable[[], None] | None = None,
    memory: EmbeddingMemory | None = None,
    unasked_mm: float = 0.0,
) -> None:
    """Fuse what the coronal and sagittal slices say into the works' probabilities, and note how the planes agree.

    Cases that are far from isotropic are left as they are. ``check`` and ``memory`` are ``run_wavefront``'s, ``unasked_mm`` is the limit of
    ``unasked_slices``.
    """
    chosen = [work for work in works if near_isotropic(work)]
    answers = [{key: [_Said.of(target, 0)] for key, target in work.classes.items()} for work in chosen]
    for axis in (1, 2):
        turned = [_turn(work, axis) for work in chosen]
        run_wavefront(teacher, turned, settings, check=check, memory=memory)
        for work, found in zip(turned, answers, strict=True):
            for key, target in work.classes.items():
                found[key].append(_Said.of(target, axis))
    for work, found in zip(chosen, answers, strict=True):
        for key, target in work.classes.items():
            _fuse(target, found[key], unasked_slices(work, target, unasked_mm, propagate=settings.propagate))


@dataclass(frozen=True, slots=True)
class _Said:
    """What one plane's members say about one class, as volumes ``(z, y, x)``."""

    probability: np.ndarray
    vote: np.ndarray
    mutual_information: np.ndarray

    @classmethod
    def of(cls, target: ClassWork, axis: int) -> "_Said":
        """Turn the answers about slices across ``axis`` back into the case's frame."""
        return cls(*(np.moveaxis(each, 0, axis) for each in (target.probability, target.vote, target.mutual_information)))


def _fuse(target: ClassWork, planes: Sequence[_Said], unasked: Collection[int]) -> None:
    """Average the planes' answers; what their contradiction adds to the doubt becomes part of the mutual information.

    How the planes agree is judged without the ``unasked`` slices.
    """
    agreement = plane_agreement([np.delete(each.probability, sorted(unasked), axis=0) for each in planes])
    weights = np.maximum(agreement, 1e-3) ** AGREEMENT_POWER
    target.plane_agreement = float(agreement.mean())
    target.probability = np.average(np.stack([each.probability for each in planes]), axis=0, weights=weights).astype(np.float32)
    shares = (weights / weights.sum()).astype(np.float32)
    vote, own = np.zeros((2, *target.probability.shape), np.float32)
    for share, said in zip(shares, planes, strict=True):
        vote += share * said.vote
        own += share * (binary_entropy(said.probability) - np.float32(LN2 / 255) * said.mutual_information)
    target.vote = np.rint(vote).astype(np.uint8)
    target.mutual_information = in_bytes((binary_entropy(target.probability) - own) / LN2)


def plane_agreement(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Return ``(P,)``: each plane's mean Dice with the other ones, 1 where both are empty."""
    masks = [each > 0.5 for each in probabilities]
    pairs = np.array([[1.0 if np.isnan(value := dice(a, b)) else value for b in masks] for a in masks])
    others: np.ndarray = (pairs.sum(axis=1) - 1) / (len(masks) - 1)
    return others


def _turn(work: CaseWork, axis: int) -> CaseWork:
    """Return the same case with spatial axis ``axis`` first, prompted on every slice that the axial answer touches."""
    volume = np.moveaxis(work.volume_czyx, axis + 1, 1)
    record = replace(work.record, shape_czyx=(volume.shape[0], volume.shape[1], volume.shape[2], volume.shape[3]))
    classes = {
        key: _prompted_by(np.moveaxis(target.probability, axis, 0), in_pieces=target.most_pieces > 1)
        for key, target in work.classes.items()
    }
    return CaseWork(record=record, volume_czyx=volume, window=work.window, classes=classes, axis=3 * work.axis + axis)


def _prompted_by(rough: np.ndarray, *, in_pieces: bool) -> ClassWork:
    """Plan to ask about each slice that an answer ``(z, y, x)`` touches; about its connected pieces one by one if the answer was drawn in pieces."""
    plans = []
    for n, each in enumerate(rough):
        mask = each > 0.5
        if mask.sum() >= LEAST_AREA_PX:
            hints = _piece_hints(each, mask) if in_pieces else [SliceHint(box=box_of(mask), mask=Patch(values=each))]
            plans += [
                SlicePlan(z=n, distance=0, parents=(), hint=hint, box_between=None, track=number) for number, hint in enumerate(hints)
            ]
    return ClassWork(plans=plans, probability=np.zeros(rough.shape, np.float32))


def _piece_hints(rough: np.ndarray, mask: np.ndarray) -> list[SliceHint]:
    """Return a hint for each connected piece of a mask ``(H, W)``: its box, and of the rough one what is the piece's or nobody's."""
    hints = []
    for part in parts_of(mask):
        if np.count_nonzero(part.mask) >= LEAST_AREA_PX:
            x0, y0, x1, y1 = part.box_xyxy_px
            region = slice(max(0, y0 - 1), y1 + 1), slice(max(0, x0 - 1), x1 + 1)
            others = mask & ~part.on(mask.shape)
            values = np.where(others[region], np.float32(0), rough[region])
            hints.append(
                SliceHint(
                    box=np.array(part.box_xyxy_px, np.float32), mask=Patch(values=values, corner_yx=(region[0].start, region[1].start))
                )
            )
    return hints
