"""What is asked about a slice: the box, the points and the rough mask, and the batch of prompts that a group of slices becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.casework import CaseWork, ClassWork
from distill.errors import PromptError
from distill.prompts.hints import box_of
from distill.prompts.schedule import SlicePlan
from distill.teachers.base import Embeddings, PromptBatch, Teacher
from distill.uncertainty import clip_box, jitter_boxes, seed_for


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How each slice is asked, and when the organ is taken to have ended."""

    boxes: int = 5
    """Jittered boxes per slice and mirror, the unjittered one among them."""
    jitter: float = 0.05
    """Standard deviation of each box side, as a share of the box."""
    flips: bool = True
    """Ask about the left-right mirror image too."""
    planes: Literal["axial", "three"] = "three"
    """``three`` also asks coronal and sagittal slices of volumes that are near isotropic (see ``distill.planes``)."""
    box_margin: float = 0.10
    """Nothing is believed further outside the box than this share of its sides (and one pixel)."""
    end_area_share: float = 0.30
    """Beyond the outermost prompts, the organ has ended where the mask falls below this share of its neighbour's area."""
    end_agreement: float = 0.60
    """... or where the ensemble's pairwise Dice falls below this."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """One class on one slice of one case, to be asked about."""

    work: CaseWork
    class_id: int
    plan: SlicePlan

    @property
    def target(self) -> ClassWork:
        """Where the answer goes."""
        return self.work.classes[self.class_id]

    @property
    def slice_key(self) -> tuple[str, int]:
        """Which picture it is about: case and slice."""
        return self.work.record.id, self.plan.z

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return self.work.record.shape_czyx[2:]

    @property
    def points(self) -> int:
        """How many points the stored prompt has; a decoder call takes prompts with equally many."""
        hint = self.plan.hint
        return 0 if hint is None or hint.points is None else len(hint.points)


@dataclass(frozen=True, slots=True)
class Question:
    """An ask with its box and rough mask decided."""

    ask: Ask
    picture: int
    """Index into the pictures that were encoded together."""
    box: np.ndarray
    """``(4,)`` xyxy."""
    rough: np.ndarray | None
    """``(H, W)`` in [0, 1]."""


def question_about(teacher: Teacher, embeddings: Embeddings, ask: Ask, picture: int) -> Question:
    """Decide with which box and rough mask a slice is asked: the stored prompt's, or those that its neighbours' answers give.

    Args:
        teacher: turns points without a box into one.
        embeddings: of the pictures as they are, not mirrored.
        ask: about which slice.
        picture: its index among the embeddings.

    Raises:
        PromptError: if there are points only, and the teacher was not trained with any.
    """
    hint, parents = ask.plan.hint, ask.plan.parents
    if hint is not None:
        box = hint.box if hint.box is not None else _box_from_points(teacher, embeddings, ask, picture)
        return Question(ask, picture, clip_box(box, ask.size_px), hint.mask)
    rough = np.mean([ask.target.probability[z] for z in parents if z not in ask.target.absent], axis=0)
    seen = box_of(rough > 0.5)
    if seen is None and ask.plan.box_between is None:  # the parent was believed present but fell below one half everywhere
        seen = box_of(rough >= max(float(rough.max()), 1e-6))
    whole = np.array([0, 0, ask.size_px[1], ask.size_px[0]], np.float32)
    candidates = [each for each in (ask.plan.box_between, seen) if each is not None] or [whole]
    return Question(ask, picture, clip_box(np.mean(np.stack(candidates), axis=0), ask.size_px), rough)


def _box_from_points(teacher: Teacher, embeddings: Embeddings, ask: Ask, picture: int) -> np.ndarray:
    """Let the teacher turn points into a first mask, choosing among its candidates by predicted IoU, and take that mask's box."""
    hint = ask.plan.hint
    if hint is None or hint.points is None or hint.point_labels is None:
        height, width = ask.size_px
        return np.array([0, 0, width, height], np.float32)
    if "point" not in teacher.profile.prompts:
        message = (
            f"case {ask.work.record.id}, slice {ask.plan.z}: there are points and no box, but {teacher.profile.name} was trained with "
            f"{' and '.join(teacher.profile.prompts)} prompts only. Give a box on this slice, or use a teacher that answers points."
        )
        raise PromptError(message)
    batch = PromptBatch(image_index=np.array([picture]), points_xy_px=hint.points[None], point_labels=hint.point_labels[None])
    decoded = teacher.decode(embeddings, batch, multimask=True)
    best = int(decoded.iou[0].argmax())
    logits = teacher.upsample(decoded.low_res_logits[:, best : best + 1], ask.size_px, embeddings.input_sizes_px[picture])
    box = box_of(logits[0, 0].float().cpu().numpy() > 0)
    return np.concatenate([hint.points.min(axis=0) - 2, hint.points.max(axis=0) + 3]) if box is None else box


def prompts_for(
    teacher: Teacher, embeddings: Embeddings, questions: Sequence[Question], settings: AskSettings, *, count: int, mirrored: bool
) -> PromptBatch:
    """Return one call's prompts; a kind of hint that the teacher was not trained with is left out.

    Args:
        teacher: who is asked.
        embeddings: of the pictures, mirrored or not.
        questions: with equally many points each.
        settings: how many boxes each question has.
        count: questions in the call; where there are fewer, the last one is repeated.
        mirrored: whether the pictures are.
    """
    accepted = teacher.profile.prompts
    boxes, masks, points, labels = [], [], [], []
    for question in questions:
        boxes.append(_member_boxes(question, settings, mirrored=mirrored))
        masks.append(_mask_prompt(teacher, embeddings, question, mirrored=mirrored))
        hint = question.ask.plan.hint
        if "point" in accepted and hint is not None and hint.points is not None and hint.point_labels is not None:
            points.append(np.stack([_mirror_x(hint.points, question.ask.size_px[1])] if mirrored else [hint.points]))
            labels.append(hint.point_labels[None])
    repeat = settings.boxes
    padding = count - len(questions)
    index = np.array([q.picture for q in questions] + [questions[-1].picture] * padding).repeat(repeat)
    # Half of the members judge the slice by its box alone, so that an error of the neighbour shows as doubt.
    has_mask = np.outer([q.rough is not None for q in questions] + [False] * padding, np.arange(repeat) % 2 == 0).reshape(-1)
    return PromptBatch(
        image_index=index,
        boxes_xyxy_px=np.concatenate([*boxes, *[boxes[-1]] * padding]),
        points_xy_px=np.concatenate([*points, *[points[-1]] * padding]).repeat(repeat, axis=0) if points else None,
        point_labels=np.concatenate([*labels, *[labels[-1]] * padding]).repeat(repeat, axis=0) if labels else None,
        mask_logits=np.stack([*masks, *[masks[-1]] * padding]).repeat(repeat, axis=0) if "mask" in accepted else None,
        has_mask=has_mask if "mask" in accepted else None,
    )


def _member_boxes(question: Question, settings: AskSettings, *, mirrored: bool) -> np.ndarray:
    ask = question.ask
    rng = seed_for(ask.work.record.id, ask.class_id, ask.plan.z, settings.seed)
    both = jitter_boxes(question.box, 2 * settings.boxes, settings.jitter, ask.size_px, rng)
    boxes = both[settings.boxes :] if mirrored else both[: settings.boxes]
    return _mirror_boxes(boxes, ask.size_px[1]) if mirrored else boxes


def _mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _mirror_x(points: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - 1 - points[:, 0], points[:, 1]], axis=1)


def _mask_prompt(teacher: Teacher, embeddings: Embeddings, question: Question, *, mirrored: bool) -> np.ndarray:
    if question.rough is None:
        return np.zeros((teacher.mask_size_px, teacher.mask_size_px), np.float32)
    rough = question.rough[:, ::-1] if mirrored else question.rough
    return teacher.mask_prompt(rough, embeddings.input_sizes_px[question.picture])
