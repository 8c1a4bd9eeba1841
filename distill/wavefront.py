"""Ask a teacher about the slices of several cases, nearest to a prompt first, in batches that cross case borders.

Every encoder call has the same shape, and so has every decoder call with the same kind of prompt: pictures and questions are cut into
groups of a fixed size, padded with repeats where there is too little to ask. On a CPU that makes an answer independent, to the last
bit, of what it was batched with; so a run that was killed and resumed with other neighbours writes the same bytes as an undisturbed
one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np

from distill.errors import PromptError
from distill.intensity import Window, picture_of
from distill.prompts.hints import box_of
from distill.prompts.schedule import SlicePlan
from distill.teachers.base import Embeddings, PromptBatch, Teacher
from distill.uncertainty import EnsembleSummary, clip_box, jitter_boxes, seed_for, summarise
from storage.case import CaseRecord

SLICES_PER_CALL = 8
"""Pictures per encoder call, and questions per decoder call where their prompts fit."""
PROMPTS_PER_CALL = 64
"""The most prompts of one decoder call. No more than a teacher decodes in one piece (``SamTeacher.decode_chunk``): it would cut the
call itself, and an answer would depend on which piece its question came to lie in."""


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


@dataclass(frozen=True, slots=True)
class _Ask:
    work: CaseWork
    class_id: int
    plan: SlicePlan

    @property
    def target(self) -> ClassWork:
        return self.work.classes[self.class_id]

    @property
    def size_px(self) -> tuple[int, int]:
        return self.work.record.shape_czyx[2:]

    @property
    def points(self) -> int:
        hint = self.plan.hint
        return 0 if hint is None or hint.points is None else len(hint.points)


@dataclass(frozen=True, slots=True)
class _Question:
    """An ask with its box and rough mask decided."""

    ask: _Ask
    picture: int
    """Index into the chunk's pictures."""
    box: np.ndarray
    rough: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Views:
    """A chunk of pictures, encoded as they are and mirrored."""

    embeddings: tuple[Embeddings, ...]
    order: dict[tuple[str, int], int]


def run_wavefront(teacher: Teacher, works: Sequence[CaseWork], settings: AskSettings) -> None:
    """Fill the probabilities and summaries of all ``works`` in place."""
    asks = [_Ask(work, class_id, plan) for work in works for class_id, target in work.classes.items() for plan in target.plans]
    asks.sort(key=lambda a: (a.plan.distance, a.work.record.id, a.plan.z, a.class_id))
    for _, front in groupby(asks, key=lambda a: a.plan.distance):
        alive = [ask for ask in front if not _ended(ask)]
        for chunk in _chunks_of_slices(alive):
            _answer(teacher, chunk, settings)


def _ended(ask: _Ask) -> bool:
    """Mark and drop a slice all of whose parents are beyond the organ's end."""
    parents = ask.plan.parents
    if parents and all(z in ask.target.absent for z in parents):
        ask.target.absent.add(ask.plan.z)
        return True
    return False


def _chunks_of_slices(asks: list[_Ask]) -> Iterator[list[_Ask]]:
    """Yield asks about at most ``SLICES_PER_CALL`` different slices at a time."""
    chunk: list[_Ask] = []
    seen: set[tuple[str, int]] = set()
    for ask in asks:
        key = (ask.work.record.id, ask.plan.z)
        if key not in seen and len(seen) == SLICES_PER_CALL:
            yield chunk
            chunk, seen = [], set()
        chunk.append(ask)
        seen.add(key)
    if chunk:
        yield chunk


def _answer(teacher: Teacher, chunk: list[_Ask], settings: AskSettings) -> None:
    views = _encode(teacher, chunk, mirrored=settings.flips)
    questions = [_question(teacher, views, ask) for ask in chunk]
    for _, group in groupby(sorted(questions, key=lambda q: q.ask.points), key=lambda q: q.ask.points):
        members = list(group)
        for start in range(0, len(members), _questions_per_call(settings)):
            asked = members[start : start + _questions_per_call(settings)]
            for question, logits, iou in zip(asked, *_ask_ensemble(teacher, views, asked, settings), strict=True):
                _record(question, logits, iou, settings)


def _questions_per_call(settings: AskSettings) -> int:
    """Return how many questions every decoder call holds, padding included: as many as slices, fewer where each has many boxes."""
    return max(1, min(SLICES_PER_CALL, PROMPTS_PER_CALL // settings.boxes))


def _encode(teacher: Teacher, chunk: list[_Ask], *, mirrored: bool) -> _Views:
    order: dict[tuple[str, int], int] = {}
    pictures = []
    for ask in chunk:
        if (ask.work.record.id, ask.plan.z) not in order:
            order[ask.work.record.id, ask.plan.z] = len(order)
            pictures.append(ask.work.picture(ask.plan.z))
    pictures += [pictures[-1]] * (SLICES_PER_CALL - len(pictures))
    sides = (pictures, [np.ascontiguousarray(p[:, ::-1]) for p in pictures]) if mirrored else (pictures,)
    return _Views(tuple(teacher.encode(side) for side in sides), order)


def _question(teacher: Teacher, views: _Views, ask: _Ask) -> _Question:
    picture = views.order[ask.work.record.id, ask.plan.z]
    hint, parents = ask.plan.hint, ask.plan.parents
    if hint is not None:
        box = hint.box if hint.box is not None else _box_from_points(teacher, views, ask, picture)
        return _Question(ask, picture, clip_box(box, ask.size_px), hint.mask)
    rough = np.mean([ask.target.probability[z] for z in parents if z not in ask.target.absent], axis=0)
    seen = box_of(rough > 0.5)
    if seen is None and ask.plan.box_between is None:  # the parent was believed present but fell below one half everywhere
        seen = box_of(rough >= max(float(rough.max()), 1e-6))
    whole = np.array([0, 0, ask.size_px[1], ask.size_px[0]], np.float32)
    candidates = [each for each in (ask.plan.box_between, seen) if each is not None] or [whole]
    return _Question(ask, picture, clip_box(np.mean(np.stack(candidates), axis=0), ask.size_px), rough)


def _box_from_points(teacher: Teacher, views: _Views, ask: _Ask, picture: int) -> np.ndarray:
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
    decoded = teacher.decode(views.embeddings[0], batch, multimask=True)
    best = int(decoded.iou[0].argmax())
    logits = teacher.upsample(decoded.low_res_logits[:, best : best + 1], ask.size_px, views.embeddings[0].input_sizes_px[picture])
    box = box_of(logits[0, 0].float().cpu().numpy() > 0)
    return np.concatenate([hint.points.min(axis=0) - 2, hint.points.max(axis=0) + 3]) if box is None else box


def _ask_ensemble(
    teacher: Teacher, views: _Views, questions: list[_Question], settings: AskSettings
) -> tuple[list[np.ndarray], list[float]]:
    """Ask at most a call's worth of questions, and return each one's member logits ``(E, H, W)`` and mean predicted IoU."""
    pieces: list[list[np.ndarray]] = [[] for _ in questions]
    ious: list[list[float]] = [[] for _ in questions]
    for side, embeddings in enumerate(views.embeddings):
        batch = _batch(teacher, embeddings, questions, settings, mirrored=side == 1)
        decoded = teacher.decode(embeddings, batch)
        for n, question in enumerate(questions):
            rows = slice(n * settings.boxes, (n + 1) * settings.boxes)
            size = embeddings.input_sizes_px[question.picture]
            logits = teacher.upsample(decoded.low_res_logits[rows], question.ask.size_px, size)[:, 0].float().cpu().numpy()
            pieces[n].append(logits[:, :, ::-1] if side == 1 else logits)
            ious[n].extend(decoded.iou[rows, 0].float().cpu().tolist())
    return [np.concatenate(each) for each in pieces], [float(np.mean(each)) for each in ious]


def _batch(teacher: Teacher, embeddings: Embeddings, questions: list[_Question], settings: AskSettings, *, mirrored: bool) -> PromptBatch:
    """Return one call's prompts; a kind of hint that the teacher was not trained with is left out."""
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
    padding = _questions_per_call(settings) - len(questions)
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


def _member_boxes(question: _Question, settings: AskSettings, *, mirrored: bool) -> np.ndarray:
    ask = question.ask
    rng = seed_for(ask.work.record.id, ask.class_id, ask.plan.z, settings.seed)
    both = jitter_boxes(question.box, 2 * settings.boxes, settings.jitter, ask.size_px, rng)
    boxes = both[settings.boxes :] if mirrored else both[: settings.boxes]
    return _mirror_boxes(boxes, ask.size_px[1]) if mirrored else boxes


def _mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _mirror_x(points: np.ndarray, width: int) -> np.ndarray:
    return np.stack([width - 1 - points[:, 0], points[:, 1]], axis=1)


def _mask_prompt(teacher: Teacher, embeddings: Embeddings, question: _Question, *, mirrored: bool) -> np.ndarray:
    if question.rough is None:
        return np.zeros((teacher.mask_size_px, teacher.mask_size_px), np.float32)
    rough = question.rough[:, ::-1] if mirrored else question.rough
    return teacher.mask_prompt(rough, embeddings.input_sizes_px[question.picture])


def _record(question: _Question, logits: np.ndarray, iou: float, settings: AskSettings) -> None:
    """Keep the answer, or note that the organ has ended."""
    ask, target = question.ask, question.ask.target
    outside = ~_inside(question.box, ask.size_px, settings.box_margin)
    logits = np.where(outside, np.float32(-20), logits)
    summary = summarise(logits)
    if ask.plan.distance and ask.plan.box_between is None and _is_end(ask, summary, settings):
        target.absent.add(ask.plan.z)
        return
    target.probability[ask.plan.z] = summary.probability
    target.summaries[ask.plan.z] = summary
    target.iou[ask.plan.z] = iou


def _is_end(ask: _Ask, summary: EnsembleSummary, settings: AskSettings) -> bool:
    before = max((ask.target.summaries[z].area_px for z in ask.plan.parents if z in ask.target.summaries), default=0)
    return summary.area_px < max(1.0, settings.end_area_share * before) or summary.pairwise_dice < settings.end_agreement


def _inside(box: np.ndarray, size_px: tuple[int, int], margin: float) -> np.ndarray:
    """Return ``(H, W)`` bool: pixels whose centre lies in the box widened by ``margin`` of its sides plus one pixel."""
    dx, dy = margin * (box[2:] - box[:2]) + 1
    rows, columns = np.arange(size_px[0]) + 0.5, np.arange(size_px[1]) + 0.5
    return np.outer((rows > box[1] - dy) & (rows < box[3] + dy), (columns > box[0] - dx) & (columns < box[2] + dx))
