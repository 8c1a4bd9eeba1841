"""Whether a teacher can be asked what it is asked, in one sentence where it cannot: networks answer nonsense as readily as sense."""

import numpy as np

from distill.errors import PromptError
from distill.teachers.base import PromptBatch, TeacherProfile


def one_picture_batch(
    boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, mask: np.ndarray | None, *, prompt_free: bool
) -> PromptBatch:
    """Return what ``Teacher.predict`` takes as a batch about one picture.

    Args:
        boxes: ``(N, 4)``, or ``(4,)`` for one.
        points: ``(N, K, 2)``, or ``(K, 2)`` for one prompt.
        labels: ``(N, K)`` or ``(K,)``; default all 1.
        mask: ``(N, m, m)`` logits.
        prompt_free: whether the teacher is asked without any.

    Raises:
        PromptError: if there is no prompt, a shape is another, or boxes and points disagree in number.
    """
    boxes = None if boxes is None else np.atleast_2d(np.asarray(boxes, np.float32))
    points = None if points is None else np.asarray(points, np.float32)
    if points is not None and points.ndim == 2:
        points = points[None]
    if points is not None:
        labels = np.ones(points.shape[:2], np.float32) if labels is None else np.atleast_2d(np.asarray(labels, np.float32))
    _check_shapes(boxes, points, labels, mask)
    counts = {len(given) for given in (boxes, points, labels, mask) if given is not None}
    if len(counts) > 1:
        message = f"boxes, points, labels and masks must be equally many prompts, but are {sorted(counts)}."
        raise PromptError(message)
    if prompt_free and not counts:
        return PromptBatch(image_index=np.zeros(1, np.int64), prompt_free=True)
    return PromptBatch(
        image_index=np.zeros(counts.pop() if counts else 0, np.int64),
        boxes_xyxy_px=boxes,
        points_xy_px=points,
        point_labels=labels,
        mask_logits=mask,
    )


def _check_shapes(boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, mask: np.ndarray | None) -> None:
    rules = (
        (boxes, (2, 4), "boxes must be (N, 4)"),
        (points, (3, 2), "points must be (N, K, 2), or (K, 2) for one prompt"),
        (mask, None, "mask_input must be (N, m, m)"),
    )
    for given, form, wanted in rules:
        if given is None:
            continue
        shape = np.shape(given)
        if (len(shape) != 3) if form is None else (len(shape), shape[-1]) != form:
            message = f"{wanted}, but is {shape}."
            raise PromptError(message)
    if points is None and labels is not None:
        message = (
            f"point_labels {np.asarray(labels).tolist()} belong to points, but there are none. Give points too, or leave the labels out."
        )
        raise PromptError(message)
    if points is not None and labels is not None and labels.shape != points.shape[:2]:
        message = f"point_labels must be one number per point, {points.shape[:2]}, but are {labels.shape}."
        raise PromptError(message)


def check_predict(prompts: PromptBatch, profile: TeacherProfile, side_px: int, shape: tuple[int, ...]) -> None:
    """Refuse what ``Teacher.predict`` cannot answer about one picture.

    Args:
        prompts: all about it.
        profile: of the teacher.
        side_px: of the frame of its masks.
        shape: of the picture; what is wrong with one that is none is said where it is encoded.

    Raises:
        PromptError: as the three checks below.
    """
    check_kinds(prompts, profile)
    check_mask(prompts, side_px)
    if len(shape) >= 2:
        check_inside(prompts, (shape[0], shape[1]))


def check_kinds(prompts: PromptBatch, profile: TeacherProfile) -> None:
    """Refuse prompts of a kind that a teacher was not trained with, and asking one that needs prompts without any.

    Raises:
        PromptError: naming the kinds that it answers.
    """
    if not profile.prompts and not prompts.prompt_free:
        message = f"{profile.name} segments without prompts, but was given some. Ask it with none: predict(image)."
        raise PromptError(message)
    if profile.prompts and prompts.prompt_free:
        message = f"{profile.name} needs boxes, points or masks, but was asked without any."
        raise PromptError(message)
    given = {"box": prompts.boxes_xyxy_px, "point": prompts.points_xy_px, "mask": prompts.mask_logits}
    for kind, hints in given.items():
        if hints is not None and kind not in profile.prompts and not prompts.prompt_free:
            known = " and ".join(profile.prompts)
            message = f"{profile.name} was trained with {known} prompts only, but was given a {kind}. Leave it out, or ask a teacher that takes it."
            raise PromptError(message)


def check_points_only(prompts: PromptBatch) -> None:
    """Refuse what cannot be drawn selectively.

    Raises:
        PromptError: if the prompts are other than points.
    """
    others = prompts.boxes_xyxy_px is not None or prompts.mask_logits is not None
    if prompts.points_xy_px is None or prompts.point_labels is None or others:
        message = "only prompts by points, without boxes and masks, can be drawn selectively. Use decode."
        raise PromptError(message)


def check_mask(prompts: PromptBatch, side_px: int) -> None:
    """Refuse masks of another frame than the network's, and with numbers that are none.

    Raises:
        PromptError: naming the size that is wanted, or the first prompt whose mask is broken.
    """
    masks = prompts.mask_logits
    if masks is None:
        return
    if masks.shape[1:] != (side_px, side_px):
        message = f"mask_input must be (N, {side_px}, {side_px}) logits, but is {masks.shape}. Teacher.mask_prompt makes them from a mask."
        raise PromptError(message)
    broken = np.flatnonzero(~np.isfinite(masks).all(axis=(1, 2)))
    if len(broken):
        message = f"prompt {broken[0]}: its mask holds NaN or infinity; give finite logits."
        raise PromptError(message)


def check_inside(prompts: PromptBatch, size_px: tuple[int, int]) -> None:
    """Refuse points outside a picture and boxes that do not touch it; a box may stick out, as jittered and hand-drawn ones do.

    Args:
        prompts: all about one picture.
        size_px: its (height, width).

    Raises:
        PromptError: naming the first that is outside.
    """
    height, width = size_px
    cure = "Coordinates are x, then y, in pixels of the picture as given."
    if prompts.boxes_xyxy_px is not None:
        boxes = prompts.boxes_xyxy_px
        outside = np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= (width, height)).any(axis=1))
        if len(outside):
            box = boxes[outside[0]].tolist()
            message = f"prompt {outside[0]}: box {box} lies outside the picture of {width} x {height} pixels. {cure}"
            raise PromptError(message)
    if prompts.points_xy_px is not None and prompts.point_labels is not None:
        points = prompts.points_xy_px
        wrong = (points < -0.5).any(axis=2) | (points > np.array([width - 0.5, height - 0.5])).any(axis=2)
        places = np.argwhere(wrong & (prompts.point_labels != -1))
        if len(places):
            row, nth = places[0]
            message = f"prompt {row}: point {points[row, nth].tolist()} lies outside the picture of {width} x {height} pixels. {cure}"
            raise PromptError(message)
