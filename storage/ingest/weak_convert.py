"""Turn a row into a prompt on a case of the archive, or say why it cannot be one."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from storage import rle
from storage.archive import Archive
from storage.case import IGNORE, MOST_POINTS, CaseRecord, ClassInfo, Prompt
from storage.channels import without_number
from storage.errors import IngestError
from storage.ingest.images import read_label_image
from storage.ingest.polygon import fill_polygons
from storage.ingest.source import case_id_from_name
from storage.ingest.weak_schema import AnyRow, Box3dRow, BoxRow, ExtremeRow, MaskRow, PointRow, RecistRow, ScribbleRow
from storage.wording import plain_name

_LOOKED_FOR = 50
"""Unknown cases of one import for which similar ids are looked up, at about 5 ms each; a file may have a hundred thousand."""
_INSIDE_SHARE = 0.5
"""A box is clipped to the image if at least this share of it lies inside; one that is mostly outside was meant for another image."""

_INWARD_PX = 2.0
"""How far extreme points of a volume are moved inward: on the border itself a point says as much about the outside."""


@dataclass(slots=True, kw_only=True)
class Converter:
    """Knows the cases and classes that rows may speak of."""

    archive: Archive
    folder: Path
    """Where paths of mask files begin."""
    source: str
    classes: tuple[ClassInfo, ...] | None
    """The only classes that rows may speak of; None allows every id."""
    names: Mapping[str, int] = field(default_factory=dict)
    """Ids of class names, for rows without an id."""
    _records: dict[str, CaseRecord | None] = field(default_factory=dict)
    _suffixes: set[str] | None = None
    _missed: int = 0
    """Rows so far whose case is not in the archive."""
    _renamed: Counter[tuple[int, str]] = field(default_factory=Counter)
    """(class id, the name a row gives it) -> how many rows, where the recipe calls it otherwise."""
    _thinned: int = 0
    """Rows so far of which not every point is asked."""
    _renumbered: dict[tuple[int, str], int] = field(default_factory=dict)
    """(COCO's number of a category, its name) -> the recipe's id of that name, where they differ."""

    def prompts(self, row: AnyRow) -> list[Prompt]:
        """Convert one row.

        Raises:
            IngestError: with the slug ``unknown-case``, ``unknown-class``, ``slice-axis``, ``slice-missing``, ``slice-out-of-range``, ``not-finite``,
                ``inverted-box``, ``box-outside-image``, ``point-outside-image``, ``bad-mask``, ``empty-mask`` or ``mask-file``.
        """
        record = self.record(row.case if row.case is not None else case_id_from_name(_last_part(row.image or "")))
        class_id = self.class_id(row.class_id, row.class_name)
        if isinstance(row, Box3dRow):
            return [self._prompt(row, record, class_id, slice_index=None, box_zyxzyx_px=_clip_3d(row, record))]
        if isinstance(row, ExtremeRow) and row.extreme_points_ijk is not None:
            return self._extremes_of_a_volume(row, row.extreme_points_ijk, record, class_id)
        index, size_yx = slice_and_size(row, record)
        if isinstance(row, BoxRow):
            x0, y0, x1, y1 = row.corners
            letters = "xy" if row.box_ij is None else "ij"
            x0, y0, x1, y1 = _clip((x0, y0, x1, y1), size_yx[::-1], letters, row.shown, record.id)
            return [self._prompt(row, record, class_id, slice_index=index, box_xyxy_px=(x0, y0, x1, y1))]
        if isinstance(row, PointRow | ScribbleRow | ExtremeRow | RecistRow):
            _check_points(row.places, size_yx, record.id)
            self._thinned += isinstance(row, PointRow | ScribbleRow) and len(row.places) > MOST_POINTS
            return [self._prompt(row, record, class_id, slice_index=index, points_xy_px=row.places)]
        mask = self._mask(row, size_yx, record.id)
        return [self._prompt(row, record, class_id, slice_index=index, mask_rle=rle.encode(mask), mask_size_yx=size_yx)]

    def record(self, case: str) -> CaseRecord:
        """Find the case a row means.

        Raises:
            IngestError: ``unknown-case``.
        """
        if case not in self._records:
            last = case_id_from_name(_last_part(case))
            names = dict.fromkeys((case, last, without_number(last)))
            self._records[case] = next(filter(None, map(self.archive.catalog.find_case, names)), None) or self._by_channel(last)
        record = self._records[case]
        if record is None:
            raise IngestError("unknown-case", self._no_such_case(case))
        return record

    def _by_channel(self, name: str) -> CaseRecord | None:
        """Find the case of which this is the file of one channel, as people draw on ``case_0000.nii.gz``."""
        if self._suffixes is None:
            self._suffixes = {channel.suffix for record in self.archive.cases() for channel in record.channels if channel.suffix}
        found = (self.archive.catalog.find_case(name.removesuffix(each)) for each in sorted(self._suffixes) if name.endswith(each))
        return next((record for record in found if record is not None and record.channels), None)

    def _no_such_case(self, case: str) -> str:
        """Say that there is no such case; what it may be called instead is looked for only so often, as that takes longer than all else."""
        self._missed += 1
        return self.archive.no_such_case(case) if self._missed <= _LOOKED_FOR else f"no case {case!r} in {self.archive.url}."

    def class_id(self, class_id: int | None, name: str | None) -> int:
        """Find the class a row means.

        Raises:
            IngestError: ``unknown-class``, also if id and name are those of two classes.
        """
        named = None if name is None else {plain_name(known): number for known, number in self._known_names().items()}.get(plain_name(name))
        if class_id is not None and named is not None and named != class_id:
            message = (
                f"class_id {class_id} and class_name {name!r} are not one class: {self._listed()}. Correct one of them, or leave one out."
            )
            raise IngestError("unknown-class", message)
        found = named if class_id is None else class_id
        if found is None or found not in (range(1, IGNORE) if self.classes is None else [c.id for c in self.classes]):
            raise IngestError("unknown-class", self._no_such_class(class_id, name))
        if class_id is not None and name is not None and named is None and class_id in self._known_names().values():
            self._renamed[class_id, name] += 1
        return found

    def id_of_category(self, number: int, name: str) -> int | None:
        """Return the id of the class that a COCO category names; None if no class is called so.

        Labelling tools number their categories themselves, so the name decides; where the numbers differ, ``notes`` says so.
        """
        found = {plain_name(known): each for known, each in self._known_names().items()}.get(plain_name(name))
        if found is not None and found != number:
            self._renumbered[number, name] = found
        return found

    def notes(self) -> tuple[str, ...]:
        """What a person should know of the rows that were converted."""
        known = {number: name for name, number in self._known_names().items()}
        by_name = (
            f"category {number} {name!r} is class {found} in the recipe, taken by name"
            for (number, name), found in sorted(self._renumbered.items())
        )
        by_number = (
            f"class {number} is {known[number]!r} in the recipe and {name!r} in {count:,} row{'s' if count > 1 else ''}, taken by number"
            for (number, name), count in sorted(self._renamed.items())
        )
        thinned = (
            f"{self._thinned:,} row{'s have' if self._thinned > 1 else ' has'} more than {MOST_POINTS} points, of which the {MOST_POINTS} "
            "that cover them best are asked; for more, write several rows"
        )
        return (*by_name, *by_number, *([thinned] if self._thinned else []))

    def _known_names(self) -> dict[str, int]:
        return {c.name: c.id for c in self.classes or ()} | dict(self.names)

    def _listed(self) -> str:
        return ", ".join(f"{number} {name}" for name, number in sorted(self._known_names().items(), key=lambda item: item[1]))

    def _no_such_class(self, class_id: int | None, name: str | None) -> str:
        if class_id is None and not self._known_names():
            return f"class_name {name!r} needs a recipe that names its classes: run 'samdistill run RECIPE', or give class_id (1 to 254)."
        shown = ", ".join([*["1 to 254"] * (self.classes is None), *[self._listed()] * bool(self._known_names())])
        asked = repr(name) if class_id is None else str(class_id)
        return f"there is no class {asked}. Known: {shown}. 0 is the background, {IGNORE} means ignore."

    def _prompt(self, row: AnyRow, record: CaseRecord, class_id: int, *, slice_index: int | None, **content: object) -> Prompt:
        fields = {
            "case": record.id,
            "class_id": class_id,
            "kind": row.kind,
            "axis": row.axis,
            "slice": slice_index,
            "positive": row.positive,
        }
        return Prompt(**(fields | {"source": self.source, "confidence": row.confidence} | content))  # type: ignore[arg-type]  # Prompt names its own fields

    def _extremes_of_a_volume(
        self, row: ExtremeRow, points_ijk: Sequence[tuple[float, float, float]], record: CaseRecord, class_id: int
    ) -> list[Prompt]:
        """Return the 3D box of six points, and each of them on its slice, moved 2 pixels towards the middle of the box."""
        lower, upper = ([limit(values) for values in zip(*points_ijk, strict=True)] for limit in (min, max))
        shown = f"the box of extreme_points_ijk {(*lower, *upper)}"
        x0, y0, z0, x1, y1, z1 = _clip((*lower, *upper), record.shape_czyx[:0:-1], "ijk", shown, record.id)
        found = [self._prompt(row, record, class_id, slice_index=None, kind="box3d", box_zyxzyx_px=(z0, y0, x0, z1, y1, x1))]
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        for i, j, k in points_ijk:
            place = np.clip((i, j), (x0, y0), (x1, y1))
            way = middle - place
            x, y = place + way * min(_INWARD_PX / max(float(np.linalg.norm(way)), 1e-6), 0.5)
            index = int(min(max(math.floor(k), math.floor(z0)), math.ceil(z1) - 1))
            found.append(self._prompt(row, record, class_id, slice_index=index, kind="point", points_xy_px=((float(x), float(y)),)))
        return found

    def _mask(self, row: MaskRow, size_yx: tuple[int, int], case: str) -> np.ndarray:
        try:
            if row.path is not None:
                mask = self._mask_file(row.path)
            elif row.polygons_xy is not None:
                mask = fill_polygons(row.polygons_xy, size_yx)
            elif row.size_yx is not None and row.size_yx != size_yx:  # not decoded: it may say anything
                raise ValueError(_other_size(row.size_yx, size_yx))  # noqa: TRY301 - one place names the case
            else:
                mask = rle.decode(row.rle or "", size_yx)
        except IngestError as error:
            raise IngestError("mask-file", f"case {case}: {error}") from error
        except ValueError as error:
            raise IngestError("bad-mask", f"case {case}: {error}") from error
        if mask.shape != size_yx:
            raise IngestError("bad-mask", f"case {case}: {_other_size(mask.shape, size_yx)}")
        if not mask.any():
            raise IngestError("empty-mask", f"case {case}: the mask has no pixel inside the slice. Leave the row out if nothing is there.")
        return mask

    def _mask_file(self, name: str) -> np.ndarray:
        """Read a mask beside the prompt file, and from nowhere else; the path may have been written on Windows."""
        relative = PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or PureWindowsPath(name).drive:
            message = f"the mask path {name!r} leads out of the folder of the prompt file."
            raise ValueError(message)
        return np.asarray(read_label_image(self.folder / relative)[0] > 0)


def _last_part(path: str) -> str:
    """Return the name of a file, whether its path was written on Windows or elsewhere."""
    return re.split(r"[\\/]", path)[-1]


def _other_size(found: tuple[int, ...], size_yx: tuple[int, int]) -> str:
    return f"the mask has {found} rows and columns, but the slice {size_yx}."


def slice_and_size(row: AnyRow, record: CaseRecord) -> tuple[int, tuple[int, int]]:
    """Return the slice a row is about, and its rows and columns.

    Raises:
        IngestError: ``slice-axis``, ``slice-missing`` or ``slice-out-of-range``.
    """
    if row.axis != "z" and record.shape_czyx[1] == 1:
        message = f"case {record.id} is a single picture, which has no slices along {row.axis}. Leave slice_axis out, or write k."
        raise IngestError("slice-axis", message)
    depth, height, width = record.shape_czyx[1:]
    count, size_yx = {"z": (depth, (height, width)), "y": (height, (depth, width)), "x": (width, (depth, height))}[row.axis]
    index = row.slice
    if index is None:
        if count > 1:
            message = f"case {record.id}: the row names no slice, but the case has {count} along {row.axis}. Add the column slice."
            raise IngestError("slice-missing", message)
        index = 0
    if not 0 <= index < count:
        message = f"case {record.id}: slice {index} is out of range; along {row.axis} there are the slices 0 to {count - 1}."
        raise IngestError("slice-out-of-range", message)
    return index, size_yx


def _clip_3d(row: Box3dRow, record: CaseRecord) -> tuple[float, float, float, float, float, float]:
    """Clip in the order that the row is written in; return ``z0, y0, x0, z1, y1, x1``."""
    shape_zyx = record.shape_czyx[1:]
    if row.box_ijk is not None:
        x0, y0, z0, x1, y1, z1 = _clip(row.box_ijk, shape_zyx[::-1], "ijk", row.shown, record.id)
    else:
        z0, y0, x0, z1, y1, x1 = _clip(row.corners, shape_zyx, "zyx", row.shown, record.id)
    return (z0, y0, x0, z1, y1, x1)


def _clip(corners: Sequence[float], size: Sequence[int], axes: str, shown: str, case: str) -> tuple[float, ...]:
    """Clip a box of any dimension to the image.

    Args:
        corners: Lower corner, then upper.
        size: Of the image, in the same order of axes.
        axes: Their letters.
        shown: The box as the row has it, for messages.
        case: The case id, for messages.
    """
    lower, upper = corners[: len(size)], corners[len(size) :]
    if not all(math.isfinite(value) for value in corners):
        raise IngestError("not-finite", f"case {case}: {shown} holds a value that is no number.")
    if wrong := [f"{a} goes from {low:g} to {high:g}" for a, low, high in zip(axes, lower, upper, strict=True) if low >= high]:
        message = f"case {case}: {shown} is inverted or empty: {', '.join(wrong)}. Lower corner first; upper bounds are exclusive."
        raise IngestError("inverted-box", message)
    low = [max(value, 0.0) for value in lower]
    high = [min(value, float(n)) for value, n in zip(upper, size, strict=True)]
    inside = math.prod(max(b - a, 0.0) for a, b in zip(low, high, strict=True))
    whole = math.prod(b - a for a, b in zip(lower, upper, strict=True))
    if inside < _INSIDE_SHARE * whole:
        ranges = [f"{axis} goes from 0 to {n}" for axis, n in zip(axes, size, strict=True)]
        message = (
            f"case {case}: only {inside / whole:.0%} of {shown} lies inside the image, whose {' and '.join(ranges)}. "
            "Was it drawn on another image, or are x and y swapped?"
        )
        raise IngestError("box-outside-image", message)
    return (*low, *high)


def _check_points(places_xy: Sequence[tuple[float, float]], size_yx: tuple[int, int], case: str) -> None:
    height, width = size_yx
    for x, y in places_xy:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise IngestError("not-finite", f"case {case}: the point ({x}, {y}) holds a value that is no number.")
        if not (0 <= x <= width and 0 <= y <= height):
            message = (
                f"case {case}: the point x {x}, y {y} lies outside the slice of {width} columns and {height} rows. Are x and y swapped?"
            )
            raise IngestError("point-outside-image", message)
