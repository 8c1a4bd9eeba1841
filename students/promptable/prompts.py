"""What student and teacher are asked while the one learns from the other: places that the teacher itself finds, and boxes anywhere.

Coordinates are pixels of the network's square.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from segment_anything.modeling import Sam

from distill.prompts.hints import box_of
from distill.teachers.base import TeacherProfile
from distill.teachers.decode import decode_prompts

ASKED_POINTS = 6
"""Places of a picture at which the teacher is asked for objects."""
RANDOM_BOXES = 2
"""Boxes anywhere, beside those of objects: a teacher answers those too, and an encoder must not forget what lies there."""
LEAST_CELLS, MOST_SHARE = 12, 0.6
"""Of the low-resolution frame, and of the picture: masks outside are no objects."""
JITTER = (0.35, 0.08)
"""Share of boxes that stay as they are, and the largest standard deviation of the other ones' sides, as a part of the box."""

Kind = Literal["box", "point", "box and mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """What may be asked about one picture; ``N`` objects."""

    boxes: np.ndarray
    """``(N, 4)`` float32 xyxy."""
    points: np.ndarray
    """``(N, 2)`` float32 xy, each inside its object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """``P`` prompts about the pictures of one batch, all of one kind."""

    kind: Kind
    index: torch.Tensor
    """``(P,)`` which picture."""
    boxes: torch.Tensor | None
    """``(P, 4)``."""
    points: torch.Tensor | None
    """``(P, K, 2)``."""
    labels: torch.Tensor | None
    """``(P, K)``: 1 inside, 0 outside, -1 none."""


@torch.inference_mode()
def find_objects(sam: Sam, profile: TeacherProfile, features: torch.Tensor, size_px: tuple[int, int], rng: np.random.Generator) -> Objects:
    """Ask a teacher what lies at random places of a picture, and add boxes anywhere.

    Args:
        sam: the teacher.
        profile: the teacher's.
        features: ``(1, C, h, w)`` of the picture.
        size_px: (height, width) of the picture inside the square.
        rng: draws the places.
    """
    boxes, points = random_boxes(rng, size_px, RANDOM_BOXES if "point" in profile.prompts else RANDOM_BOXES + ASKED_POINTS)
    if "point" not in profile.prompts:
        return Objects(boxes=boxes, points=points)
    asked = (rng.random((ASKED_POINTS, 1, 2)) * (size_px[1], size_px[0])).astype(np.float32)
    device = features.device
    logits, iou = decode_prompts(
        sam,
        features,
        torch.zeros(ASKED_POINTS, dtype=torch.long, device=device),
        points=torch.from_numpy(asked).to(device),
        point_labels=torch.ones(ASKED_POINTS, 1, device=device),
    )
    side = profile.image_size / logits.shape[-1]
    height, width = (max(1, round(each / side)) for each in size_px)
    masks = (logits + profile.logit_shift > 0)[..., :height, :width].cpu().numpy()
    chances = np.exp(4 * iou.float().cpu().numpy())
    for mask, chance, point in zip(masks, chances, asked[:, 0], strict=True):
        found = mask[int(rng.choice(len(mask), p=chance / chance.sum()))]
        box = box_of(found)
        if box is not None and LEAST_CELLS <= found.sum() <= MOST_SHARE * found.size:
            column, row = (point // side).astype(int)
            hit = found[min(row, found.shape[0] - 1), min(column, found.shape[1] - 1)]
            inside = point if hit else _some_cell(found, rng, side)
            boxes = np.concatenate([boxes, (box * side).astype(np.float32)[None]])
            points = np.concatenate([points, inside.astype(np.float32)[None]])
    return Objects(boxes=boxes, points=points)


def random_boxes(rng: np.random.Generator, size_px: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes ``(count, 4)`` of any size anywhere in a picture, and their centres."""
    whole = np.array([size_px[1], size_px[0]])
    sides = np.exp(rng.uniform(np.log(0.06), np.log(0.7), (count, 1)) + rng.normal(0, 0.2, (count, 2))).clip(0.04, 0.9) * whole
    centres = sides / 2 + rng.random((count, 2)) * (whole - sides)
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32), centres.astype(np.float32)


def _some_cell(mask: np.ndarray, rng: np.random.Generator, side: float) -> np.ndarray:
    """Return the middle of a cell of a mask, xy in pixels of the square."""
    rows, columns = np.nonzero(mask)
    pick = int(rng.integers(len(rows)))
    return (np.array([columns[pick], rows[pick]]) + 0.5) * side


def draw_questions(
    objects: list[Objects], per_picture: int, profile: TeacherProfile, rng: np.random.Generator, device: torch.device
) -> Questions:
    """Choose so many objects of each picture, and ask about all of them in one way that the teacher was trained with."""
    kind = _kind(profile, rng)
    index = np.repeat(np.arange(len(objects)), per_picture)
    rows = [rng.integers(0, len(each.boxes), per_picture) for each in objects]
    boxes = np.concatenate([each.boxes[some] for each, some in zip(objects, rows, strict=True)])
    points = np.concatenate([each.points[some] for each, some in zip(objects, rows, strict=True)])
    asks_point = kind == "point"
    return Questions(
        kind=kind,
        index=torch.from_numpy(index).to(device),
        boxes=None if asks_point else torch.from_numpy(jittered(boxes, rng)).to(device),
        points=torch.from_numpy(points[:, None]).to(device) if asks_point else None,
        labels=torch.ones(len(index), 1, device=device) if asks_point else None,
    )


def _kind(profile: TeacherProfile, rng: np.random.Generator) -> Kind:
    """Draw a kind of question: boxes most of the time, as labelling asks with boxes most of the time."""
    known = profile.prompts
    chances: dict[Kind, float] = {"box": 0.6 * ("box" in known), "point": 0.2 * ("point" in known)}
    chances["box and mask"] = 0.2 * ("box" in known and "mask" in known)
    kinds = list(chances)
    weights = np.array([chances[each] for each in kinds])
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def jittered(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return boxes ``(N, 4)`` with their sides moved, as people draw them; a share of them as they are."""
    exact, most = JITTER
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + rng.normal(size=boxes.shape) * sides * rng.uniform(0, most, (len(boxes), 1)) * (rng.random((len(boxes), 1)) > exact)
    broken = (moved[:, 2:] - moved[:, :2] <= 1).any(axis=1)
    moved[broken] = boxes[broken]
    answer: np.ndarray = moved.astype(np.float32)
    return answer


def point_between(student: torch.Tensor, teacher: torch.Tensor, side: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each prompt a place where two masks differ, as a person would correct the student.

    Args:
        student: ``(P, m, m)`` bool.
        teacher: likewise.
        side: of a cell in pixels.
        rng: draws the place.

    Returns:
        Points ``(P, 1, 2)`` and labels ``(P, 1)``: 1 where the student misses something, 0 where it draws too much, -1 where they agree.
    """
    points, labels = np.zeros((len(student), 1, 2), np.float32), -np.ones((len(student), 1), np.float32)
    wanted = teacher.cpu().numpy()
    for row, differs in enumerate((student ^ teacher).cpu().numpy()):
        if differs.any():
            points[row, 0] = _some_cell(differs, rng, side)
            x, y = (points[row, 0] // side).astype(int)
            labels[row, 0] = wanted[row, y, x]
    return torch.from_numpy(points).to(student.device), torch.from_numpy(labels).to(student.device)
