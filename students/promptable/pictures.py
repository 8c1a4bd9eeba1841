"""Slices of an archive's images as the teacher sees them, changed a little each time; no label and no prompt is read."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from distill.intensity import IntensitySpec, Window, choose_window, picture_of
from distill.planes import is_alike
from storage import Archive, CaseRecord

SLICES_PER_VISIT = 8
"""Of one case, before the next one is read: reading a volume costs more than looking at a slice of it."""
PLAIN_SHARE = 0.25
"""Of the pictures are shown as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One slice of one case."""

    case: str
    axis: int
    """Spatial axis across which the slice lies: 0 is z."""
    index: int


class Pictures:
    """An endless row of pictures, a function of seed and number alone; cases take turns, each read at most once per turn.

    Args:
        archive: where images are read from.
        records: of which cases.
        intensity: how native intensities become pictures.
        planes: look at near isotropic volumes from all three sides, as labelling does.
        cache_bytes: volumes kept in memory, at most; at least one.
    """

    def __init__(
        self, archive: Archive, records: Sequence[CaseRecord], *, intensity: IntensitySpec, planes: bool, cache_bytes: int = 1 << 28
    ) -> None:
        self.records = tuple(records)
        self._archive, self._intensity, self._planes, self._room = archive, intensity, planes, cache_bytes
        self._turns = np.array([min(SLICES_PER_VISIT, self._slices(record)) for record in self.records])
        self._held: OrderedDict[str, tuple[np.ndarray, Window]] = OrderedDict()

    @property
    def slices(self) -> int:
        """How many different slices there are."""
        return sum(self._slices(record) for record in self.records)

    @property
    def most_bytes(self) -> int:
        """What the largest picture takes."""
        sides = [sorted(record.shape_czyx[1:])[1:] if len(self._axes(record)) > 1 else record.shape_czyx[2:] for record in self.records]
        return max((3 * rows * columns for rows, columns in sides), default=0)

    def place(self, seed: int, number: int) -> Place:
        """Return which slice is the ``number``-th."""
        round_, rest = divmod(number, int(self._turns.sum()))
        order = np.random.default_rng((seed, round_)).permutation(len(self.records))
        ends = np.cumsum(self._turns[order])
        turn = int(np.searchsorted(ends, rest, side="right"))
        record = self.records[order[turn]]
        within = rest - (int(ends[turn - 1]) if turn else 0)
        rng = np.random.default_rng((seed, round_, int(order[turn])))
        chosen = int(rng.permutation(self._slices(record))[within])
        for axis in self._axes(record):
            if chosen < record.shape_czyx[1 + axis]:
                return Place(case=record.id, axis=axis, index=chosen)
            chosen -= record.shape_czyx[1 + axis]
        raise AssertionError  # a slice's number is below the number of slices

    def picture(self, seed: int, number: int, *, changed: bool = True) -> np.ndarray:
        """Return the ``number``-th picture ``(H, W, 3)`` uint8, mirrored, cropped and brightened as the seed has it."""
        place = self.place(seed, number)
        volume, window = self._volume(place.case)
        picture = picture_of(np.moveaxis(volume, 1 + place.axis, 1), place.index, window)
        return change(picture, np.random.default_rng((seed, number, 1))) if changed else picture

    def _axes(self, record: CaseRecord) -> tuple[int, ...]:
        return (0, 1, 2) if self._planes and record.geometry.spacing_known and is_alike(record) else (0,)

    def _slices(self, record: CaseRecord) -> int:
        return sum(record.shape_czyx[1 + axis] for axis in self._axes(record))

    def _volume(self, case: str) -> tuple[np.ndarray, Window]:
        if case not in self._held:
            stored = self._archive[case]
            volume = stored.read()
            self._held[case] = volume, choose_window(stored.record, volume, self._intensity)
            while len(self._held) > 1 and sum(each.nbytes for each, _ in self._held.values()) > self._room:
                self._held.popitem(last=False)
        self._held.move_to_end(case)
        return self._held[case]


def change(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a picture ``(H, W, 3)`` uint8 mirrored, turned a little, cropped and brightened by chance; a share of them as it is."""
    if rng.random() < PLAIN_SHARE:
        return picture
    height, width = picture.shape[:2]
    zoom, stretch, angle = float(np.exp(rng.uniform(-0.1, 0.6))), float(np.exp(rng.normal(0, 0.08))), np.deg2rad(rng.normal(0, 8))
    mirror = np.array([rng.choice((-1, 1)), rng.choice((-1, 1), p=(0.25, 0.75))])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom * np.array([stretch, 1 / stretch]) * mirror
    size, free = np.array([width, height]), max(0.0, 1 - 1 / zoom) / 2
    seen = size / 2 + rng.uniform(-free, free, 2) * size  # the place of the picture that comes to lie in the middle
    matrix = np.concatenate([turn, ((size - 1) / 2 - turn @ (seen - 0.5))[:, None]], axis=1)
    moved = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    low, high = rng.uniform(-0.15, 0.15), 1 + rng.uniform(-0.15, 0.15)
    unit = np.clip((np.arange(256) / 255 - low) / (high - low), 0, 1) ** np.exp(rng.normal(0, 0.25))
    curve = np.rint(255 * unit).astype(np.uint8)
    changed: np.ndarray = curve[moved]
    return changed
