"""Every object of a picture without a prompt: a grid of points, three candidates each, and what survives the filters.

The filters and their order are segment-anything's (Kirillov et al. 2023, ``SamAutomaticMaskGenerator``), so the same weights give
the same masks. What differs is the order of work: a candidate that its predicted IoU already rules out is never upscaled, points
of many crops and pictures share encoder and decoder calls, and masks are thresholded, measured and boxed once, at picture resolution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import cc3d
import numpy as np
import torch
from torchvision.ops import nms

from distill.errors import PromptError
from distill.teachers.base import DrawsSelectively, Embeddings, Promising, PromptBatch, Teacher, sizes_of

MASKS_AT_ONCE = 192
"""Masks that are brought to picture resolution together: the candidates of 64 points."""
EDGE_PX = 20.0
"""A mask whose box comes this near to a crop's border, but not to the picture's, is cut off and belongs to another crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """How densely a picture is asked and what is kept; defaults are segment-anything's."""

    points_per_side: int = 32
    points_per_call: int | None = None
    """Of all pictures that were encoded together; None is what the teacher takes at once, on a CPU 64."""
    least_predicted_iou: float = 0.88
    least_stability: float = 0.95
    stability_offset: float = 1.0
    """Logit distance above and below zero between which a stable mask's area hardly changes."""
    nms_iou: float = 0.70
    """Of two masks of one crop whose boxes overlap more than this, the one with the higher predicted IoU stays."""
    crop_layers: int = 0
    """Layer ``n`` asks again in ``(2 ** n) ** 2`` overlapping crops, for small objects."""
    crop_nms_iou: float = 0.70
    crop_overlap: float = 512 / 1500
    crop_points_divisor: int = 1
    """Layer ``n`` uses ``points_per_side / divisor ** n`` points per side, at least one."""
    least_region_px: int = 0
    """Islands and holes smaller than this are removed from each mask."""

    def __post_init__(self) -> None:
        """Refuse grids without points."""
        if (
            self.points_per_side < 1
            or (self.points_per_call is not None and self.points_per_call < 1)
            or self.crop_points_divisor < 1
            or self.crop_layers < 0
        ):
            message = f"points_per_side, points_per_call and crop_points_divisor must be at least 1 and crop_layers at least 0, but are {self.points_per_side}, {self.points_per_call}, {self.crop_points_divisor}, {self.crop_layers}."
            raise PromptError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One mask that nobody asked for by name."""

    mask: np.ndarray
    """``(H, W)`` bool, picture frame."""
    box_xyxy_px: tuple[int, int, int, int]
    """Upper bound exclusive."""
    area_px: int
    predicted_iou: float
    stability: float
    point_xy_px: tuple[float, float]
    """The grid point that led to it."""
    crop_xyxy_px: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Crop:
    """A part of a picture that is shown to the teacher by itself, or all of it."""

    image: int
    picture_px: tuple[int, int]
    box: tuple[int, int, int, int]
    points: np.ndarray
    """``(P, 2)`` xy in the crop."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates of one crop; boxes are inclusive, as the filters were defined on them."""

    masks: list[np.ndarray]
    boxes: np.ndarray
    iou: np.ndarray
    stability: np.ndarray
    points: np.ndarray

    def take(self, rows: np.ndarray) -> "_Found":
        """Return some of them."""
        return _Found([self.masks[n] for n in rows], self.boxes[rows], self.iou[rows], self.stability[rows], self.points[rows])


_NOTHING = _Found([], np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0), np.zeros((0, 2)))


def _joined(parts: Sequence[_Found]) -> _Found:
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "iou", "stability", "points"))
    return _Found([mask for part in parts for mask in part.masks], *arrays)


def find_objects(teacher: Teacher, image: np.ndarray, settings: GridSettings | None = None) -> list[Candidate]:
    """Return every candidate of a picture that passes the filters, best predicted IoU first.

    Args:
        teacher: one that was trained with points.
        image: ``(H, W, 3)`` uint8 RGB.
        settings: grid and filters.

    Raises:
        PromptError: if the teacher does not answer points.
    """
    return find_objects_in(teacher, [image], settings)[0]


def find_objects_in(teacher: Teacher, images: Sequence[np.ndarray], settings: GridSettings | None = None) -> list[list[Candidate]]:
    """Return what ``find_objects`` does of each of several pictures, which share encoder and decoder calls as large as the teacher takes them.

    Args:
        teacher: one that was trained with points.
        images: each ``(H, W, 3)`` uint8 RGB, of any sizes.
        settings: grid and filters.

    Raises:
        PromptError: if the teacher does not answer points.
    """
    settings = settings or GridSettings()
    if "point" not in teacher.profile.prompts:
        message = f"the profile {teacher.profile.name!r} was not trained with points, so it cannot segment everything. Use a teacher that answers points, such as 'bundled' or SAM."
        raise PromptError(message)
    crops = [crop for n, image in enumerate(images) for crop in _crops_of(n, image.shape[:2], settings)]
    found: list[list[Candidate]] = [[] for _ in images]
    at_once = sizes_of(teacher).pictures
    for start in range(0, len(crops), at_once):
        some = crops[start : start + at_once]
        for crop, inside in zip(some, _ask_grids(teacher, images, some, settings), strict=True):
            found[crop.image] += _in_picture(inside, crop)
    return [_distinct(each, settings) for each in found]


def _crops_of(image: int, size_px: tuple[int, int], settings: GridSettings) -> list[_Crop]:
    """Return the whole picture and its crops, each with its grid."""
    crops = []
    for box, layer in crop_boxes(size_px, settings.crop_layers, settings.crop_overlap):
        grid = point_grid(max(1, int(settings.points_per_side / settings.crop_points_divisor**layer)))
        points = grid * np.array([box[2] - box[0], box[3] - box[1]])
        crops.append(_Crop(image=image, picture_px=size_px, box=box, points=points))
    return crops


def _distinct(found: list[Candidate], settings: GridSettings) -> list[Candidate]:
    """Drop what other crops found too, and specks."""
    if settings.crop_layers and found:
        smallest_first = [1.0 / _area(each.crop_xyxy_px) for each in found]
        found = [found[n] for n in _nms(_inclusive_boxes(found), np.array(smallest_first), settings.crop_nms_iou)]
    return _without_specks(found, settings) if settings.least_region_px else found


def point_grid(per_side: int) -> np.ndarray:
    """Return ``(per_side ** 2, 2)`` xy in the open unit square, evenly spaced, half a step from the border, row by row."""
    steps = (np.arange(per_side) + 0.5) / per_side
    return np.stack([np.tile(steps, per_side), np.repeat(steps, per_side)], axis=1)


def crop_boxes(size_px: tuple[int, int], layers: int, overlap_share: float) -> list[tuple[tuple[int, int, int, int], int]]:
    """Return ``(x0, y0, x1, y1)`` and layer of the whole picture and of each layer's overlapping crops."""
    height, width = size_px
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_share * min(size_px) * (2 / count))
        crop_w, crop_h = (ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for i, j in product(range(count), repeat=2):
            x0, y0 = (crop_w - overlap) * i, (crop_h - overlap) * j
            x1, y1 = min(x0 + crop_w, width), min(y0 + crop_h, height)
            if x0 < x1 and y0 < y1:  # rounding up pushes the last crops of a picture of a few pixels outside
                boxes.append(((x0, y0, x1, y1), layer))
    return boxes


def _ask_grids(teacher: Teacher, images: Sequence[np.ndarray], crops: Sequence[_Crop], settings: GridSettings) -> list[_Found]:
    """Encode some crops in one call, ask about all their points in calls of one size, and return what passes of each crop."""
    sizes = sizes_of(teacher)
    shown = [np.ascontiguousarray(images[crop.image][crop.box[1] : crop.box[3], crop.box[0] : crop.box[2]]) for crop in crops]
    embeddings = teacher.encode(shown + [shown[-1]] * (sizes.padded(len(shown), sizes.pictures) - len(shown)))
    points = np.concatenate([crop.points for crop in crops])
    which = np.repeat(np.arange(len(crops)), [len(crop.points) for crop in crops])
    most = settings.points_per_call or sizes.prompts
    parts: list[list[_Found]] = [[_NOTHING] for _ in crops]
    for start in range(0, len(points), most):
        some = slice(start, start + most)
        count = sizes.padded(len(points[some]), most) if sizes.padding == "power" else most
        for n, found in _survivors(teacher, embeddings, which[some], points[some], crops, settings, count=count):
            parts[n].append(found)
    joined = [_joined(each) for each in parts]
    return [found.take(_nms(found.boxes, found.iou, settings.nms_iou)) for found in joined]


def _survivors(
    teacher: Teacher,
    embeddings: Embeddings,
    which: np.ndarray,
    points: np.ndarray,
    crops: Sequence[_Crop],
    settings: GridSettings,
    *,
    count: int,
) -> Iterator[tuple[int, _Found]]:
    """Ask one call's points ``(P, 2)``, each about the crop that ``which (P,)`` says, and yield what passes, crop by crop.

    The call is filled up with repeats to ``count`` points: an answer's last bits may depend on the size of its call.
    """
    rows = np.minimum(np.arange(count), len(points) - 1)
    prompts = PromptBatch(
        image_index=which[rows], points_xy_px=points[rows, None].astype(np.float32), point_labels=np.ones((count, 1), np.float32)
    )
    found = _promising(teacher, embeddings, prompts, settings.least_predicted_iou)
    point, iou = found.prompt.cpu().numpy(), found.iou.cpu().numpy()
    asked = point < len(points)
    for n in np.unique(which[point[asked]]):
        mine = np.flatnonzero(asked & (which[np.minimum(point, len(points) - 1)] == n))
        for part in (mine[start : start + MASKS_AT_ONCE] for start in range(0, len(mine), MASKS_AT_ONCE)):
            drawn = found.low_res_logits[torch.from_numpy(part).to(found.low_res_logits.device)]
            logits = teacher.upsample(drawn, embeddings.sizes_px[n], embeddings.input_sizes_px[n])[:, 0].float().cpu().numpy()
            yield int(n), _passed(logits, iou[part], points[point[part]], crops[n], settings)


def _passed(logits: np.ndarray, iou: np.ndarray, points: np.ndarray, crop: _Crop, settings: GridSettings) -> _Found:
    """Return those of a crop's masks ``(K, H, W)`` that are stable and not cut off."""
    stability = stability_scores(logits, settings.stability_offset)
    keep = stability >= settings.least_stability if settings.least_stability > 0 else np.ones(len(logits), bool)
    masks = logits[keep] > 0
    boxes = inclusive_boxes(masks)
    whole = ~_cut_off(boxes, crop.box, crop.picture_px)
    return _Found(list(masks[whole]), boxes[whole], iou[keep][whole], stability[keep][whole], points[keep][whole])


def _promising(teacher: Teacher, embeddings: Embeddings, prompts: PromptBatch, least_iou: float) -> Promising:
    if isinstance(teacher, DrawsSelectively):
        return teacher.decode_promising(embeddings, prompts, least_iou)
    decoded = teacher.decode(embeddings, prompts, multimask=True)
    row, token = torch.nonzero(decoded.iou > least_iou, as_tuple=True)
    return Promising(
        prompt=row, token=token, low_res_logits=decoded.low_res_logits[row, token][:, None], iou=decoded.iou[row, token].float()
    )


def stability_scores(logits: np.ndarray, offset: float) -> np.ndarray:
    """Return ``(K,)``: the IoU of each mask of ``logits (K, H, W)`` cut ``offset`` above and below zero; 0 where both are empty."""
    high = np.array([np.count_nonzero(each > offset) for each in logits], float)
    low = np.array([np.count_nonzero(each > -offset) for each in logits], float)
    scores: np.ndarray = np.divide(high, low, out=np.zeros_like(high), where=low > 0)
    return scores


def inclusive_boxes(masks: np.ndarray) -> np.ndarray:
    """Return ``(K, 4)`` first and last column and row (x0, y0, x1, y1) of each mask ``(K, H, W)``; zeros for an empty one."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for n, mask in enumerate(masks):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(columns):
            boxes[n] = columns[0], rows[0], columns[-1], rows[-1]
    return boxes


def _cut_off(boxes: np.ndarray, crop: tuple[int, int, int, int], picture_px: tuple[int, int]) -> np.ndarray:
    """Say which inclusive crop-frame boxes end at their crop's border rather than at the picture's."""
    placed = boxes + np.array([crop[0], crop[1], crop[0], crop[1]])
    near_crop = np.abs(placed - np.array(crop)) <= EDGE_PX
    near_picture = np.abs(placed - np.array([0, 0, picture_px[1], picture_px[0]])) <= EDGE_PX
    cut: np.ndarray = (near_crop & ~near_picture).any(axis=1)
    return cut


def _nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> np.ndarray:
    """Return the rows that survive non-maximum suppression, best first."""
    kept: np.ndarray = nms(torch.from_numpy(np.asarray(boxes, np.float32)), torch.from_numpy(np.asarray(scores, np.float32)), iou).numpy()
    return kept


def _in_picture(found: _Found, crop: _Crop) -> list[Candidate]:
    x0, y0, x1, y1 = crop.box
    candidates = []
    for n, inside in enumerate(found.masks):
        mask = inside
        if (y1 - y0, x1 - x0) != crop.picture_px:
            mask = np.zeros(crop.picture_px, bool)
            mask[y0:y1, x0:x1] = inside
        point = tuple(found.points[n] + np.array([x0, y0]))
        candidates.append(_candidate(mask, float(found.iou[n]), float(found.stability[n]), point, crop.box))
    return candidates


def _candidate(mask: np.ndarray, iou: float, stability: float, point: tuple[float, ...], crop: tuple[int, int, int, int]) -> Candidate:
    x0, y0, x1, y1 = (int(side) for side in inclusive_boxes(mask[None])[0])
    return Candidate(
        mask=mask,
        box_xyxy_px=(x0, y0, x1 + 1, y1 + 1) if mask.any() else (0, 0, 0, 0),
        area_px=int(np.count_nonzero(mask)),
        predicted_iou=iou,
        stability=stability,
        point_xy_px=(float(point[0]), float(point[1])),
        crop_xyxy_px=crop,
    )


def _inclusive_boxes(found: Sequence[Candidate]) -> np.ndarray:
    return inclusive_boxes(np.stack([each.mask for each in found]))


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _without_specks(found: list[Candidate], settings: GridSettings) -> list[Candidate]:
    """Fill small holes, drop small islands, and drop what has become a duplicate by it, unchanged masks first."""
    cleaned = [without_small_regions(each.mask, settings.least_region_px) for each in found]
    if not found:
        return found
    unchanged = np.array([np.array_equal(mask, each.mask) for mask, each in zip(cleaned, found, strict=True)], float)
    kept = _nms(inclusive_boxes(np.stack(cleaned)), unchanged, max(settings.nms_iou, settings.crop_nms_iou))
    return [_candidate(cleaned[n], found[n].predicted_iou, found[n].stability, found[n].point_xy_px, found[n].crop_xyxy_px) for n in kept]


def without_small_regions(mask: np.ndarray, least_px: int) -> np.ndarray:
    """Return the mask ``(H, W)`` without holes, then without islands, of fewer than ``least_px`` pixels (8-connected).

    The largest island stays even if it is small, so that an object never vanishes.
    """
    filled = ~_without_islands(~mask, least_px, keep_largest=False)
    return _without_islands(filled, least_px, keep_largest=True)


def _without_islands(mask: np.ndarray, least_px: int, *, keep_largest: bool) -> np.ndarray:
    regions, count = cc3d.connected_components(mask, connectivity=8, return_N=True)
    if not count:
        return mask
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    keep = sizes >= least_px
    keep[0] = False
    if keep_largest and not keep.any():
        keep[1 + sizes[1:].argmax()] = True
    kept: np.ndarray = keep[regions]
    return kept
