"""What is asked about a slice: the box, the points and the rough mask, and the batch of prompts that a group of slices becomes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from distill.casework import CaseWork, ClassWork, Track
from distill.errors import PromptError
from distill.patches import Patch, around_all
from distill.prompts.hints import box_of
from distill.prompts.resample import Resampling, resampling_of
from distill.prompts.schedule import SlicePlan
from distill.teachers.base import Embeddings, PromptBatch, Teacher
from distill.uncertainty import OUTSIDE, Weights, clip_box, jitter_boxes, seed_for
from distill.views import View, views_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSettings:
    """How each slice is asked, and when the organ is taken to have ended."""

    boxes: int = 5
    """Jittered boxes per slice and view, the unjittered one among them."""
    jitter: float = 0.05
    """Standard deviation of each box side, as a share of the box."""
    flips: bool = True
    """Ask about the left-right mirror image too."""
    rotations: tuple[float, ...] = ()
    """Ask about the picture turned by each of these degrees too."""
    scales: tuple[float, ...] = ()
    """... enlarged or shrunk inside its frame."""
    gammas: tuple[float, ...] = ()
    """... with grey levels to these powers."""
    window_shifts: tuple[float, ...] = ()
    """... under a window moved by these shares of its width."""
    points: int = 0
    """Positive points of each member, drawn anew from those that were given or from inside the rough mask; 0 leaves given points as they are."""
    multimask: bool = False
    """Ask for the candidates of the unjittered box too, whose disagreement is a score."""
    weights: Weights = "equal"
    """What each member counts in the mean probability (``distill.members``)."""
    planes: Literal["axial", "three"] = "three"
    """``three`` also asks coronal and sagittal slices of volumes that are near isotropic (see ``distill.planes``)."""
    box_margin: float = 0.10
    """Nothing is believed further outside the box than this share of its sides (and one pixel)."""
    end_area_share: float = 0.30
    """Beyond the outermost prompts, the organ has ended where the mask falls below this share of its neighbour's area."""
    end_agreement: float = 0.60
    """... or where the ensemble's pairwise Dice falls below this."""
    propagate: bool = False
    """Go through the whole volume in both directions, stop where the track is lost, and check the way back (``distill.propagation``)."""
    box_growth: float = 0.0
    """When propagating, each side of a neighbour's box is moved outward by this share. A teacher that fills its box grows with it from slice to slice, and
    ``box_margin`` lets masks grow anyway."""
    stop_area: tuple[float, float] = (0.5, 2.0)
    """A track is lost where the mask's area is less or more than this many times its neighbour's,"""
    stop_jump: float = 0.5
    """... where its centre moves by more than this share of the side of a square of the neighbour's area,"""
    stop_iou: float = 0.5
    """... where it shares less than this with its neighbour (IoU; micro-sam's default of 0.8 is for slices thinner than ours),"""
    stop_outgrown: float = 3.0
    """... or where its area is more than this many times that of the slice where the track began: small steps add up."""
    least_round_trip: float = 0.7
    """Slices of a track are unknown if the way back meets its beginning with a lower Dice."""
    seed: int = 0

    @property
    def views(self) -> tuple[View, ...]:
        """Return how each picture is shown, as it is first."""
        return views_of(
            flips=self.flips, rotations=self.rotations, scales=self.scales, gammas=self.gammas, window_shifts=self.window_shifts
        )

    def inputs(self) -> dict[str, Any]:
        """Return what a label's fingerprint takes in: what has always been there, and of the later settings those that ask for more."""
        unchanged = AskSettings()
        return {name: value for name, value in asdict(self).items() if name in _ALWAYS or value != getattr(unchanged, name)}

    def history(self) -> dict[str, str | float | int | bool | list[float]]:
        """Return the parameters that a label set's history keeps."""
        told = self.inputs() | {"planes": self.planes}
        names = [name for name in told if name not in ("box_margin", "end_area_share", "end_agreement")]
        return {name: list(told[name]) if isinstance(told[name], tuple) else told[name] for name in names}


_ALWAYS = frozenset({"boxes", "jitter", "flips", "planes", "box_margin", "end_area_share", "end_agreement", "seed"})
"""Settings that fingerprints have held from the start."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One piece of a class on one slice of one case, to be asked about."""

    work: CaseWork
    class_id: int
    plan: SlicePlan

    @property
    def target(self) -> ClassWork:
        """Where the answer goes."""
        return self.work.classes[self.class_id]

    @property
    def track(self) -> Track:
        """What is known about the piece on other slices."""
        return self.target.tracks[self.plan.track]

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
    rough: Patch | None
    """float32 in [0, 1]."""
    resampling: Resampling | None = None
    """Where members' own points are drawn from; None where all have those that were given."""

    @property
    def points(self) -> int:
        """How many points each member has; a decoder call takes prompts with equally many."""
        return self.ask.points if self.resampling is None else self.resampling.count


def can_be_asked(teacher: Teacher, ask: Ask) -> bool:
    """Say whether a teacher can be asked about a piece: one that takes no points leaves out those far from the boxes of a slice, as any beside a box.

    A slice with nothing but points is not left out, and is an error (``question_about``).
    """
    hint = ask.plan.hint
    if hint is None or hint.box is not None or "point" in teacher.profile.prompts:
        return True
    return not any(plan.z == ask.plan.z and plan.hint is not None and plan.hint.box is not None for plan in ask.target.plans)


def question_about(teacher: Teacher, embeddings: Embeddings, ask: Ask, picture: int, settings: AskSettings) -> Question:
    """Decide with which box and rough mask a slice is asked: the stored prompt's, or those that its neighbours' answers give.

    Args:
        teacher: turns points without a box into one.
        embeddings: of the pictures as they are, not mirrored.
        ask: about which slice.
        picture: its index among the embeddings.
        settings: how many positive points each member draws for itself, where the teacher takes points and there is something to draw from;
            and how much a box may grow from slice to slice.

    Raises:
        PromptError: if there are points only, and the teacher was not trained with any.
    """
    box, rough = _box_and_rough(teacher, embeddings, ask, picture)
    if settings.propagate and ask.plan.distance and ask.plan.box_between is None:
        more = np.tile(settings.box_growth * (box[2:] - box[:2]), 2)
        box = clip_box(box + more * (-1, -1, 1, 1), ask.size_px)
    draws = settings.points and "point" in teacher.profile.prompts
    resampling = resampling_of(ask.plan.hint, None if rough is None else rough.on(ask.size_px), settings.points) if draws else None
    return Question(ask, picture, box, rough, resampling)


def _box_and_rough(teacher: Teacher, embeddings: Embeddings, ask: Ask, picture: int) -> tuple[np.ndarray, Patch | None]:
    hint, parents = ask.plan.hint, ask.plan.parents
    if hint is not None:
        box = hint.box if hint.box is not None else _box_from_points(teacher, embeddings, ask, picture)
        return clip_box(box, ask.size_px), hint.mask
    known = [ask.track.answers[z] for z in parents if z not in ask.track.absent]
    rough = np.mean([each.probability for each in known], axis=0)
    seen = box_of(rough > 0.5)
    if seen is None and ask.plan.box_between is None:  # the parent was believed present but fell below one half everywhere
        seen = box_of(rough >= max(float(rough.max()), 1e-6))
    whole = np.array([0, 0, ask.size_px[1], ask.size_px[0]], np.float32)
    candidates = [each for each in (ask.plan.box_between, seen) if each is not None] or [whole]
    told = Patch.cut(rough, around_all([each.region for each in known]), OUTSIDE)
    return clip_box(np.mean(np.stack(candidates), axis=0), ask.size_px), told


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
    teacher: Teacher, embeddings: Embeddings, questions: Sequence[Question], settings: AskSettings, *, count: int, view: int
) -> PromptBatch:
    """Return one call's prompts; a kind of hint that the teacher was not trained with is left out.

    Args:
        teacher: who is asked.
        embeddings: of the pictures in this view.
        questions: with equally many points each.
        settings: how many boxes each question has.
        count: questions in the call; where there are fewer, the last one is repeated.
        view: which of ``settings.views`` the pictures are.
    """
    accepted, shown = teacher.profile.prompts, settings.views[view]
    boxes, masks, points, labels, regions = [], [], [], [], []
    for question in questions:
        boxes.append(_member_boxes(question, settings, view))
        regions.append(shown.region(believed_region(question, settings.box_margin), question.ask.size_px))
        masks.append(_mask_prompt(teacher, embeddings, question, shown))
        if "point" in accepted and question.points:
            xy, signs = _member_points(question, settings, view)
            points.append(xy)
            labels.append(signs)
    repeat = settings.boxes
    padding = count - len(questions)
    index = np.array([q.picture for q in questions] + [questions[-1].picture] * padding).repeat(repeat)
    # Half of the members judge the slice by its box alone, so that an error of the neighbour shows as doubt.
    has_mask = np.outer([q.rough is not None for q in questions] + [False] * padding, np.arange(repeat) % 2 == 0).reshape(-1)
    return PromptBatch(
        image_index=index,
        boxes_xyxy_px=np.concatenate([*boxes, *[boxes[-1]] * padding]),
        points_xy_px=np.concatenate([*points, *[points[-1]] * padding]) if points else None,
        point_labels=np.concatenate([*labels, *[labels[-1]] * padding]) if labels else None,
        mask_logits=np.stack([*masks, *[masks[-1]] * padding]) if "mask" in accepted else None,
        mask_index=np.arange(count).repeat(repeat) if "mask" in accepted else None,
        regions_xyxy_px=np.stack([*regions, *[regions[-1]] * padding]).repeat(repeat, axis=0),
        has_mask=has_mask if "mask" in accepted else None,
    )


def _member_boxes(question: Question, settings: AskSettings, view: int) -> np.ndarray:
    """Return the ``(boxes, 4)`` of one view's members, in its frame; each view has others."""
    ask, shown = question.ask, settings.views[view]
    rng = seed_for(ask.work.record.id, ask.class_id, ask.plan.z, settings.seed, piece=ask.plan.track)
    every = jitter_boxes(question.box, len(settings.views) * settings.boxes, settings.jitter, ask.size_px, rng)
    boxes = shown.boxes(every[view * settings.boxes : (view + 1) * settings.boxes], ask.size_px)
    return np.stack([clip_box(each, ask.size_px) for each in boxes]).astype(np.float32) if shown.moves else boxes


def _member_points(question: Question, settings: AskSettings, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(boxes, K, 2)`` points and ``(boxes, K)`` labels of one view's members, in its frame."""
    ask, shown, hint = question.ask, settings.views[view], question.ask.plan.hint
    if question.resampling is not None:
        name = f"{ask.work.record.id}/points/{view}"
        rng = seed_for(name, ask.class_id, ask.plan.z, settings.seed, piece=ask.plan.track)
        drawn = question.resampling.draw(settings.boxes, rng)
        return np.stack([shown.points(each, ask.size_px) for each in drawn]), np.tile(question.resampling.labels, (settings.boxes, 1))
    if hint is None or hint.points is None or hint.point_labels is None:
        return np.zeros((settings.boxes, 0, 2), np.float32), np.zeros((settings.boxes, 0), np.float32)
    points = shown.points(hint.points, ask.size_px)
    return np.tile(points, (settings.boxes, 1, 1)), np.tile(hint.point_labels, (settings.boxes, 1))


def _mask_prompt(teacher: Teacher, embeddings: Embeddings, question: Question, shown: View) -> np.ndarray:
    if question.rough is None:
        return np.zeros((teacher.mask_size_px, teacher.mask_size_px), np.float32)
    return teacher.mask_prompt(shown.mask(question.rough.on(question.ask.size_px)), embeddings.input_sizes_px[question.picture])


def believed_region(question: Question, margin: float) -> tuple[slice, slice]:
    """Return rows and columns of the pixels whose centres lie in the box widened by ``margin`` of its sides plus one pixel."""
    box = question.box
    dx, dy = margin * (box[2:] - box[:2]) + 1
    height, width = question.ask.size_px
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = [
        np.flatnonzero((rows > box[1] - dy) & (rows < box[3] + dy)),
        np.flatnonzero((columns > box[0] - dx) & (columns < box[2] + dx)),
    ]
    y, x = (slice(int(each[0]), int(each[-1]) + 1) for each in inside)
    return y, x
