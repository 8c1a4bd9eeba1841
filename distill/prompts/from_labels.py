"""The source ``student``: masks that are there already become prompts, which is the second half of the loop.

A student has learnt from many cases what one case's teacher could not know; its masks show the teacher where to look, and the teacher draws
the border anew ("SAM carries the burden", arXiv 2411.12602, 2024). Any label set will do: a student's, an earlier round's, an imported one.

Each piece of a class on each slice gives a box, as loose as those that the teacher was trained with, its innermost pixel (Archit et al. 2025,
micro-sam), and points on other classes that come near; the mask goes along as a rough one. What the label set missed, the teacher is not asked
about, and what it made up, the teacher is asked to draw.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cc3d
import numpy as np

from distill.errors import PlanError, PromptError
from distill.label_plan import LabelPlan
from distill.prompts.grouping import NEAR
from distill.prompts.pieces import LOOSE_PX, Piece, innermost, parts_of, widened
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.student_options import StudentPrompts
from distill.teachers.checkpoints import inspect_checkpoint
from storage import Archive, ClassInfo, LabelHistory, LabelSetNotFoundError, Prompt, fingerprint
from storage.rle import encode as encode_rle
from storage.wording import plain_name

VERSION = "1"
"""Raised whenever the same masks become other prompts."""
OUTWARD = {"medsam": 0.05, "lite-medsam": 0.05}
"""Profile -> by what share of its sides a box is widened where nobody says otherwise. MedSAM's training moved every side outward by up to
20 of 1024 pixels; SAM's and this package's own moved sides in and out alike, so that a wider box is a worse one."""
MOST_NEGATIVES = 2
"""Per piece, of other classes whose innermost pixel comes near: more of them only push the mask away from where nobody would draw it."""
_TOP = 255.0


def make(context: SourceContext, options: object) -> "LabelSource":
    """Make the source from ``StudentPrompts``, or the mapping that stands for them.

    Raises:
        PlanError: if no label set is named, or no case of the archive has it.
    """
    told = options if isinstance(options, StudentPrompts) else StudentPrompts.model_validate(options or {})
    if told.labels is None:
        message = "the source of prompts 'student' needs a label set: prompts: {source: student, student: {labels: student/NAME}}."
        raise PlanError(message)
    marks = context.archive.catalog.fingerprints(told.labels)
    if not marks:
        known = ", ".join(sorted(context.archive.catalog.count_label_sets())) or "none"
        message = f"no case has the label set {told.labels!r}, which is to become prompts. {_cure(told.labels)} There are: {known}."
        raise PlanError(message)
    if told.margin is None:
        told = told.model_copy(update={"margin": _usual_margin(context.plan)})
    return LabelSource(context.archive, told, fingerprint(version=VERSION, options=told.model_dump(), labels=marks))


def _usual_margin(plan: LabelPlan) -> float:
    """Return how much wider than its object a teacher expects a box to be."""
    profile = plan.profile or inspect_checkpoint(plan.teacher, base=plan.base).profile
    return OUTWARD.get(profile or "", 0.0)


class LabelSource:
    """Turns the masks of one label set into prompts, slice by slice."""

    name = "student"

    def __init__(self, archive: Archive, options: StudentPrompts, mark: str) -> None:
        self.fingerprint = mark
        self._archive, self._options = archive, options

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return boxes, points and masks of the asked classes that the label set names.

        Raises:
            PromptError: if the case lacks the label set, or its classes go by other names.
        """
        wanted, case = self._options.labels or "", subject.record.id
        if not subject.classes:
            return []
        try:
            labels = self._archive[case].labels(wanted)
        except LabelSetNotFoundError:
            message = f"case {case} has no label set {wanted!r}, which is to become prompts. {_cure(wanted)}"
            raise PromptError(message) from None
        _check_names(case, labels.history, subject.classes)
        drawn = _Drawn(
            case=case,
            ids=labels.read(),
            probability=None if labels.probability is None else np.asarray(labels.probability[...]),
            order=tuple(info.id for info in labels.history.classes),
            scores=labels.scores,
        )
        return [prompt for info in subject.classes if info.id in drawn.order for prompt in self._about(drawn, info.id)]

    def _about(self, drawn: "_Drawn", class_id: int) -> list[Prompt]:
        """Return the prompts about one class."""
        kept = without_strays(drawn.ids == class_id, self._options.least_share)
        slices = np.flatnonzero(kept.any(axis=(1, 2)))
        if not len(slices):
            return (
                [Prompt(case=drawn.case, class_id=class_id, kind="absent", confidence=drawn.absence(class_id))]
                if self._options.absent
                else []
            )
        return [prompt for z in slices for prompt in self._on_slice(drawn, class_id, int(z), kept[z])]

    def _on_slice(self, drawn: "_Drawn", class_id: int, z: int, mask: np.ndarray) -> Iterator[Prompt]:
        """Yield the prompts about one class on one slice; ``mask`` is ``(H, W)`` bool."""
        told = self._options
        pieces = large_parts(mask, told.pieces, told.least_share)
        others = drawn.centres(z) if told.negatives else {}
        for piece in pieces:
            box = around(piece, told.margin or 0.0, mask.shape)
            sure = drawn.confidence(class_id, z, piece.on(mask.shape))
            if told.boxes:
                yield Prompt(case=drawn.case, class_id=class_id, kind="box", slice=z, box_xyxy_px=box, confidence=sure)
            if told.points:
                yield Prompt(case=drawn.case, class_id=class_id, kind="point", slice=z, points_xy_px=(innermost(piece),), confidence=sure)
            near = [point for other, point in others.items() if other != class_id and _within(point, around(piece, NEAR, mask.shape))]
            if near[:MOST_NEGATIVES]:
                points = tuple(near[:MOST_NEGATIVES])
                yield Prompt(
                    case=drawn.case, class_id=class_id, kind="point", slice=z, points_xy_px=points, positive=False, confidence=sure
                )
        if told.masks:
            whole = np.any([piece.on(mask.shape) for piece in pieces], axis=0)
            yield Prompt(
                case=drawn.case,
                class_id=class_id,
                kind="mask",
                slice=z,
                mask_rle=encode_rle(whole),
                mask_size_yx=(whole.shape[0], whole.shape[1]),
                confidence=drawn.confidence(class_id, z, whole),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What a label set says about one case."""

    case: str
    ids: np.ndarray
    """``(z, y, x)``."""
    probability: np.ndarray | None
    """``(k, z, y, x)`` uint8, in the order of ``order``."""
    order: tuple[int, ...]
    scores: Mapping[str, float]

    def confidence(self, class_id: int, z: int, mask: np.ndarray) -> float:
        """Return the mean probability inside a mask, or else how much those who drew the case agreed, or else 1."""
        if self.probability is None:
            return float(np.clip(self.scores.get(f"pairwise_dice/{class_id}", 1.0), 0, 1))
        return round(float(self.probability[self.order.index(class_id), z][mask].mean()) / _TOP, 4)

    def absence(self, class_id: int) -> float:
        """Return how sure it is that a class is nowhere: what its likeliest voxel leaves."""
        if self.probability is None:
            return 1.0
        return round(1 - float(self.probability[self.order.index(class_id)].max()) / _TOP, 4)

    def centres(self, z: int) -> dict[int, tuple[float, float]]:
        """Return class -> the innermost pixel of its largest piece on a slice."""
        here = (int(each) for each in np.unique(self.ids[z]))
        return {each: innermost(parts_of(self.ids[z] == each)[0]) for each in here if each in self.order}


def without_strays(mask: np.ndarray, least_share: float) -> np.ndarray:
    """Return ``(z, y, x)`` bool without the 26-connected pieces that have less than a share of the largest one's voxels."""
    # cc3d has too little room for a bool array of one slice with a lone pixel in every second row and column; for bytes it has enough.
    labelled, count = cc3d.connected_components(np.ascontiguousarray(mask, np.uint8), connectivity=26, return_N=True)
    if count < 2:
        return mask
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((sizes >= max(1.0, least_share * sizes.max()))[labelled])


def large_parts(mask: np.ndarray, most: int, least_share: float) -> list[Piece]:
    """Return the 8-connected pieces of a ``(H, W)`` bool mask, the largest first: at most ``most``, none below a share of the largest."""
    parts = parts_of(mask)
    areas = [np.count_nonzero(part.mask) for part in parts]
    return [part for part, area in zip(parts[:most], areas, strict=False) if area >= least_share * areas[0]]


def around(piece: Piece, margin: float, size_yx: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the box xyxy of a piece, inside the slice, wider at each side by a share of it; if wider, by two pixels at least."""
    return widened(piece.box_xyxy_px, margin, size_yx, least_px=LOOSE_PX if margin else 0.0)


def _within(point: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _check_names(case: str, history: LabelHistory, classes: tuple[ClassInfo, ...]) -> None:
    """Refuse to prompt one organ with the masks of another that goes by the same number."""
    theirs = {info.id: info.name for info in history.classes}
    for info in classes:
        if info.id in theirs and plain_name(theirs[info.id]) != plain_name(info.name):
            message = (
                f"case {case}: class {info.id} is {info.name!r} here, but {theirs[info.id]!r} in the label set {history.label_set!r}. "
                "Give both the same name, or name another label set in prompts.student.labels."
            )
            raise PromptError(message)


def _cure(label_set: str) -> str:
    """Say which command writes a label set."""
    kind, _, name = label_set.partition("/")
    if kind == "student" and name:
        return f"'samdistill predict results/students/{name} ARCHIVE' has the student label every case of the archive."
    return "Check the name of the label set in prompts.student.labels."
