"""Training patches straight from the archive.

A small case is read once, normalised, resampled to the training spacing and kept, until the byte budget is spent; every other case
is read patch by patch, so that memory follows the budget and never the archive. Batches are a function of (seed, step): a resumed
run sees what the undisturbed one would have seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Integer, UInt8

from distill.unknown import believed_ids
from storage import IGNORE, Archive, Case, ClassInfo
from students.batches import Batch
from students.errors import TrainingError
from students.hints import beside, read_hints
from students.preparation import Intensities, measure_intensities, resample, shape_at_spacing
from students.soft import soft_targets
from students.spec import NetworkPlan

FOREGROUND_SHARE = 0.67
"""Share of patches centred on an object voxel: enough to see small organs, while a third shows where they are not."""

_REMEMBERED_VOXELS = 4096
"""Object voxels remembered per case as patch centres."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One window of one case, at the training spacing."""

    image: Float32[np.ndarray, "c z y x"]
    ids: UInt8[np.ndarray, "z y x"]
    soft: UInt8[np.ndarray, "k z y x"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One case, ready for patches."""

    intensities: Intensities
    centres_zyx: Integer[np.ndarray, "n 3"]
    """Some object voxels, at the training spacing."""
    shape_zyx: tuple[int, int, int]
    """At the training spacing."""
    image: Float32[np.ndarray, "c z y x"] | None
    ids: UInt8[np.ndarray, "z y x"] | None
    """None for a case too large to keep."""
    soft: UInt8[np.ndarray, "k z y x"] | None = None
    """None also where nobody asks for probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a patch is."""

    case: str
    held: Held
    start: Sequence[int]
    """Voxel ``z y x`` at the training spacing, below 0 where the patch is larger than the case."""


def thickness_px(ids: UInt8[np.ndarray, "z y x"], class_ids: Sequence[int]) -> dict[int, float]:
    """Return the diameter of the largest disc inside each class, in pixels, in the slice that shows most of it.

    Args:
        ids: Class ids.
        class_ids: Those to measure; one that is nowhere in ``ids`` is left out.
    """
    from scipy.ndimage import distance_transform_edt

    found = {}
    for class_id in class_ids:
        mask = ids == class_id
        if mask.any():
            fullest = mask[int(mask.sum((1, 2)).argmax())]
            found[class_id] = 2 * float(distance_transform_edt(np.pad(fullest, 1)).max())
    return found


class PatchSource:
    """Normalised patches with their labels, from any number of cases in bounded memory; without a label set all is ``IGNORE``."""

    def __init__(  # noqa: PLR0913 - all but the archive by name
        self,
        archive: Archive,
        *,
        cases: Sequence[str],
        label_set: str | None,
        classes: tuple[ClassInfo, ...],
        plan: NetworkPlan,
        cache_bytes: int,
        weights: Mapping[str, float] | None = None,
        soft: bool = False,
        hints: str | None = None,
    ) -> None:
        self.cases = tuple(cases)
        self._archive = archive
        self._label_set = label_set
        self._plan = plan
        self._room = cache_bytes
        self._held: dict[str, Held] = {}
        self._weights = weights or {}
        self._classes = classes
        self._lookup = _id_lookup(classes)
        self._soft = soft
        self._hints = hints

    def batch(self, seed: int, step: int, fraction: float = 0.0, own: slice = slice(None)) -> Batch:  # noqa: ARG002 - sources that mix go by the fraction
        """Return the batch of this step, the same each time it is asked for; of one that others share, its ``own`` patches."""
        rng = np.random.default_rng((seed, step))
        return self.cut(self.draw(rng, self._plan.batch)[own])

    def draw(self, rng: np.random.Generator, count: int) -> list[Place]:
        """Return where so many patches are, of any of the cases."""
        drawn = [self.cases[n] for n in rng.integers(0, len(self.cases), count)]
        return [self._place(case, rng) for case in drawn]

    def cut(self, places: Sequence[Place]) -> Batch:
        """Return the patches that are there."""
        patches = [self._patch(place) for place in places]
        soft = [patch.soft for patch in patches if patch.soft is not None]
        return Batch(
            image=torch.from_numpy(np.stack([patch.image for patch in patches])),
            ids=torch.from_numpy(np.stack([patch.ids for patch in patches])),
            weight=torch.tensor([self._weights.get(place.case, 1.0) for place in places]),
            soft=torch.from_numpy(np.stack(soft)) if soft else None,
        )

    def whole(self, case: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
        """Return a case as stored, for validation: image ``c z y x``, label indices ``z y x``, spacing in mm."""
        stored = self._archive[case]
        return self._seen(stored, stored.read()), self._ids(stored), stored.spacing_zyx_mm

    def _seen(self, stored: Case, image_czyx: np.ndarray, where: tuple[int | slice, ...] = (slice(None),)) -> np.ndarray:
        """Return a window of a case's image with the hints of the same window, where the network sees hints."""
        return image_czyx if self._hints is None else beside(image_czyx, read_hints(stored, self._hints, self._classes, where))

    def _ids(self, stored: Case, where: tuple[int | slice, ...] = (slice(None),)) -> UInt8[np.ndarray, "..."]:
        """Return a window of a case's labels as the network counts them."""
        if self._label_set is None:
            # A view of one voxel: nothing of the case's size is allocated.
            return np.broadcast_to(np.uint8(IGNORE), stored.record.shape_czyx[1:])[where]
        return np.asarray(self._lookup[believed_ids(stored.labels(self._label_set), where)])

    def depth(self) -> int:
        """Return the number of slices of the case in the middle."""
        return int(np.median([self._archive[case].record.shape_czyx[1] for case in self.cases]))

    def _place(self, case: str, rng: np.random.Generator) -> Place:
        held = self._held.get(case) or self._prepare(case)
        centre = self._centre(held, rng)
        start = [self._start(c, size, want, rng) for c, size, want in zip(centre, held.shape_zyx, self._plan.patch_zyx, strict=True)]
        return Place(case=case, held=held, start=start)

    def _patch(self, place: Place) -> Patch:
        held = place.held
        if held.image is None or held.ids is None:
            return self._read_patch(self._archive[place.case], held, place.start)
        return self._window(held.image, held.ids, held.soft, place.start)

    def _window(
        self, image: np.ndarray, ids: np.ndarray, soft: np.ndarray | None, start: Sequence[int], first_slice: int | None = None
    ) -> Patch:
        """Cut a patch out of arrays at the training spacing, the image with its neighbouring slices as channels.

        Args:
            image: where ``first_slice`` says at which of its slices the patch with its neighbours begins.
            ids: where ``start`` says at which voxel the patch begins.
            soft: likewise.
            start: likewise.
            first_slice: by default that of an image that begins where the labels do.
        """
        size, beside = self._plan.patch_zyx, self._plan.neighbours
        begin = start[0] - beside if first_slice is None else first_slice
        seen = _cut(image, (begin, start[1], start[2]), (size[0] + 2 * beside, size[1], size[2]), "edge")
        return Patch(
            image=seen if not beside else seen.reshape(-1, 1, size[1], size[2]),
            ids=_cut(ids[None], start, size, "ignore")[0],
            soft=None if soft is None else _cut(soft, start, size, "edge"),
        )

    def _centre(self, held: Held, rng: np.random.Generator) -> np.ndarray:
        """Return an object voxel for most patches, any voxel for the rest."""
        if len(held.centres_zyx) and rng.random() < FOREGROUND_SHARE:
            return np.asarray(held.centres_zyx[rng.integers(len(held.centres_zyx))])
        return rng.integers(0, held.shape_zyx)

    @staticmethod
    def _start(centre: int, size: int, want: int, rng: np.random.Generator) -> int:
        """Return where the patch begins: near the centre, inside the image if it fits, else around it with equal chances."""
        if size <= want:
            return -int(rng.integers(0, want - size + 1))
        jitter = int(rng.integers(-(want // 4), want // 4 + 1))
        return int(np.clip(centre - want // 2 + jitter, 0, size - want))

    def _prepare(self, case: str) -> Held:
        """Read what patches of this case need, and keep the volume itself while there is room."""
        stored = self._archive[case]
        shape = shape_at_spacing(
            stored.record.shape_czyx[1:], stored.spacing_zyx_mm, self._plan.spacing_zyx_mm, keep_z=self._plan.dimensions == "2d"
        )
        channels = stored.record.shape_czyx[0] + self._plan.hints
        cost = int(np.prod(shape)) * (4 * channels + 1 + (len(self._classes) if self._soft else 0))
        held = self._load(stored, shape) if cost <= self._room else self._scan(stored, shape)
        if held.image is not None:
            self._room -= cost
        self._held[case] = held
        return held

    def _load(self, stored: Case, shape: tuple[int, int, int]) -> Held:
        image = self._seen(stored, stored.read())
        intensities = measure_intensities(image, self._plan.normalisation, self._plan.hints)
        ids = self._ids(stored)
        ready = resample(torch.from_numpy(intensities.apply(image)), shape).numpy()
        labels = _labels_at(ids, shape)
        soft = self._soft_at(stored, ids, shape)
        return Held(intensities=intensities, centres_zyx=_centres(labels), shape_zyx=shape, image=ready, ids=labels, soft=soft)

    def _soft_at(
        self, stored: Case, ids: np.ndarray, shape: tuple[int, int, int], where: tuple[int | slice, ...] = (slice(None),)
    ) -> np.ndarray | None:
        """Return the probabilities of a window at the training spacing; None where nobody asks for them."""
        if not self._soft:
            return None
        labels = None if self._label_set is None else stored.labels(self._label_set)
        found = torch.from_numpy(soft_targets(labels, ids, self._classes, where)).float()
        return np.asarray(resample(found, shape).round().to(torch.uint8))

    def _scan(self, stored: Case, shape: tuple[int, int, int]) -> Held:
        """Measure a large case slice by slice, holding one at a time."""
        depth = stored.record.shape_czyx[1]
        looked_at = range(0, depth, max(1, depth // 16))
        sample = self._seen(stored, np.stack([stored.read_slice(z) for z in looked_at], axis=1), (slice(0, depth, max(1, depth // 16)),))
        centres = []
        for z in range(depth):
            hit = self._ids(stored, (z,))
            found = np.argwhere((hit > 0) & (hit != IGNORE))
            centres.append(_remember(np.insert(found, 0, z, axis=1), _REMEMBERED_VOXELS // 16))
        scale = np.asarray(shape) / np.asarray(stored.record.shape_czyx[1:])
        kept = _remember((np.concatenate(centres) * scale).astype(np.int64))
        intensities = measure_intensities(sample, self._plan.normalisation, self._plan.hints)
        return Held(intensities=intensities, centres_zyx=kept, shape_zyx=shape, image=None, ids=None)

    def _read_patch(self, stored: Case, held: Held, start: Sequence[int]) -> Patch:
        """Read the source voxels under one patch, and bring them to the training spacing."""
        patch, full = self._plan.patch_zyx, np.asarray(stored.record.shape_czyx[1:])
        scale = full / np.asarray(held.shape_zyx)
        lo = np.maximum(start, 0)
        hi = np.minimum(np.asarray(start) + patch, held.shape_zyx)
        a, b = np.floor(lo * scale).astype(int), np.minimum(np.ceil(hi * scale).astype(int), full)
        # Neighbours are a 2D network's, whose slices are never resampled.
        beside = self._plan.neighbours
        top, bottom = max(int(a[0]) - beside, 0), min(int(b[0]) + beside, int(full[0]))
        rows, columns = slice(int(a[1]), int(b[1])), slice(int(a[2]), int(b[2]))
        image = held.intensities.apply(
            self._seen(stored, stored.read_block(top, bottom)[:, :, rows, columns], (slice(top, bottom), rows, columns))
        )
        window = tuple(slice(int(low), int(high)) for low, high in zip(a, b, strict=True))
        ids = self._ids(stored, window)
        size = (int(hi[0] - lo[0]), int(hi[1] - lo[1]), int(hi[2] - lo[2]))
        ready = resample(torch.from_numpy(image), (size[0] + (bottom - top) - int(b[0] - a[0]), size[1], size[2])).numpy()
        begin = start[0] - beside - top if beside else None
        return self._window(ready, _labels_at(ids, size), self._soft_at(stored, ids, size, window), [min(s, 0) for s in start], begin)


def _labels_at(ids: UInt8[np.ndarray, "z y x"], shape: tuple[int, int, int]) -> UInt8[np.ndarray, "z y x"]:
    """Return labels on another number of voxels over the same extent, each by its nearest one."""
    if ids.shape == shape:
        return ids
    return resample(torch.from_numpy(ids.astype(np.float32))[None], shape, nearest=True)[0].numpy().astype(np.uint8)


def _centres(labels: UInt8[np.ndarray, "z y x"]) -> Integer[np.ndarray, "n 3"]:
    """Return some object voxels, evenly from all of them in their order in memory."""
    found = _remember(np.flatnonzero((labels > 0) & (labels != IGNORE)))
    return np.stack(np.unravel_index(found, labels.shape), axis=1)


def _remember(found: np.ndarray, count: int = _REMEMBERED_VOXELS) -> np.ndarray:
    """Thin a list of voxels out evenly to at most ``count``."""
    return found[:: max(1, -(-len(found) // count))]


def _id_lookup(classes: tuple[ClassInfo, ...]) -> UInt8[np.ndarray, " 256"]:
    """Return stored id -> network channel; ids that are no class of the student become ``IGNORE``: unknown is not background."""
    table = np.full(256, IGNORE, np.uint8)
    table[0] = 0
    for channel, info in enumerate(classes, start=1):
        if not 0 < info.id < IGNORE:
            message = f"class {info.name!r} has id {info.id}; ids are 1 to 254 (0 is background, {IGNORE} means ignore)."
            raise TrainingError(message)
        table[info.id] = channel
    return table


def _cut(volume_czyx: np.ndarray, start: Sequence[int], size: Sequence[int], outside: str) -> np.ndarray:
    """Return the window; beyond the volume the image repeats its edge and labels are ``IGNORE``."""
    inner, pads = [slice(None)], [(0, 0)]
    for begin, want, have in zip(start, size, volume_czyx.shape[1:], strict=True):
        inner.append(slice(max(begin, 0), min(begin + want, have)))
        pads.append((max(-begin, 0), max(begin + want - have, 0)))
    window = volume_czyx[tuple(inner)]
    if outside == "edge":
        return np.pad(window, pads, mode="edge")
    return np.pad(window, pads, mode="constant", constant_values=IGNORE)
