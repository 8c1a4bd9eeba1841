"""One row of a file of weak prompts. ``docs/prompts.md`` explains it to the people who write such files.

Letters: ``i j k`` count along the axes of a NIfTI array, which are our ``x y z``. On a slice across ``k`` the pair
``ij`` is the same as ``xy``. Pixel ``n`` covers ``[n, n + 1)``; upper bounds are exclusive.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

Two = tuple[float, float]
Three = tuple[float, float, float]
Four = tuple[float, float, float, float]
Six = tuple[float, float, float, float, float, float]


class _Row(BaseModel):
    """What every row says: whose slice, and which class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str | None = None
    image: str | None = None
    """A file name instead of ``case``; its ending is cut off."""
    subject: str | None = None
    """Allowed because annotation tools write it; the archive knows the patient already."""
    class_id: int | None = None
    class_name: str | None = None
    slice: int | None = None
    slice_axis: Literal["k", "j", "i", "z", "y", "x"] = "k"
    confidence: float = Field(default=1.0, ge=0, le=1)
    positive: bool = True

    @model_validator(mode="after")
    def _names_a_case_and_a_class(self) -> "_Row":
        if (self.case is None) == (self.image is None):
            message = "give either case or image"
            raise ValueError(message)
        if self.class_id is None and self.class_name is None:
            message = "give class_id or class_name"
            raise ValueError(message)
        return self

    @property
    def axis(self) -> Literal["z", "y", "x"]:
        """The axis that ``slice`` counts along, as the archive calls it."""
        names: dict[str, Literal["z", "y", "x"]] = {"k": "z", "j": "y", "i": "x"}
        return names.get(self.slice_axis) or ("z" if self.slice_axis == "z" else "y" if self.slice_axis == "y" else "x")


def _exactly_one(row: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(row, name) is not None]
    if len(given) != 1:
        message = f"give exactly one of {', '.join(names)}, not {', '.join(given) or 'none'}"
        raise ValueError(message)


def _as_written(row: BaseModel, *names: str) -> str:
    """Return the field that was given: ``box_xyxy [6, 3, 2, 9]``."""
    name = next(name for name in names if getattr(row, name) is not None)
    return f"{name} [{', '.join(f'{value:.6g}' for value in getattr(row, name))}]"


def _ij_needs_k(row: _Row, *names: str) -> None:
    if row.axis != "z" and any(getattr(row, name) is not None for name in names):
        message = f"{' and '.join(names)} are for slice_axis k; use the xy form, which is (column, row) of the slice"
        raise ValueError(message)


class BoxRow(_Row):
    """A box on one slice."""

    kind: Literal["box"]
    box_xyxy: Four | None = None
    box_ij: Four | None = None
    box_xywh: Four | None = None

    @model_validator(mode="after")
    def _one_box(self) -> "BoxRow":
        _exactly_one(self, "box_xyxy", "box_ij", "box_xywh")
        _ij_needs_k(self, "box_ij")
        return self

    @property
    def shown(self) -> str:
        """The box as the row has it, for messages."""
        return _as_written(self, "box_xyxy", "box_ij", "box_xywh")

    @property
    def corners(self) -> Four:
        """The box as ``x0, y0, x1, y1``."""
        if self.box_xywh is not None:
            x, y, width, height = self.box_xywh
            return (x, y, x + width, y + height)
        return self.box_xyxy or self.box_ij or (0.0, 0.0, 0.0, 0.0)


class _PointsRow(_Row):
    """Places on one slice, in one of two letterings."""

    points_xy: tuple[Two, ...] | None = Field(default=None, min_length=1)
    points_ij: tuple[Two, ...] | None = Field(default=None, min_length=1)

    @property
    def places(self) -> tuple[Two, ...]:
        """The places as ``x, y``."""
        return self.points_xy or self.points_ij or ()


class PointRow(_PointsRow):
    """One point, or several of the same sign."""

    kind: Literal["point"]
    point_xy: Two | None = None
    point_ij: Two | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "PointRow":
        _exactly_one(self, "point_xy", "point_ij", "points_xy", "points_ij")
        _ij_needs_k(self, "point_ij", "points_ij")
        return self

    @property
    def places(self) -> tuple[Two, ...]:
        """The places as ``x, y``."""
        single = self.point_xy or self.point_ij
        return (single,) if single is not None else self.points_xy or self.points_ij or ()


class ScribbleRow(_PointsRow):
    """A line drawn over the object (or, when not positive, over what it is not)."""

    kind: Literal["scribble"]

    @model_validator(mode="after")
    def _one_form(self) -> "ScribbleRow":
        _exactly_one(self, "points_xy", "points_ij")
        _ij_needs_k(self, "points_ij")
        return self


Fours = Annotated[tuple[Two, ...], Field(min_length=4, max_length=4)]


def _enclose_something(places: tuple[tuple[float, ...], ...]) -> None:
    if any(max(values) <= min(values) for values in zip(*places, strict=True)):
        shown = ", ".join(f"({', '.join(f'{value:g}' for value in place)})" for place in places)
        message = f"the {'four' if len(places) == 4 else 'six'} points enclose nothing: {shown}"
        raise ValueError(message)


class ExtremeRow(_Row):
    """The object's leftmost, topmost, rightmost and lowest point on a slice, in any order."""

    kind: Literal["extreme"]
    extreme_points_xy: Fours | None = None
    extreme_points_ijk: Annotated[tuple[Three, ...], Field(min_length=6, max_length=6)] | None = None
    """Of a volume: the outermost points along ``i``, ``j`` and ``k`` both ways, in any order; without a slice."""

    @model_validator(mode="after")
    def _encloses(self) -> "ExtremeRow":
        _exactly_one(self, "extreme_points_xy", "extreme_points_ijk")
        if self.extreme_points_ijk is not None and (self.slice is not None or self.axis != "z"):
            message = "extreme_points_ijk are of a volume: leave slice and slice_axis out"
            raise ValueError(message)
        _enclose_something(self.extreme_points_xy or self.extreme_points_ijk or ())
        return self

    @property
    def places(self) -> tuple[Two, ...]:
        """The points of a slice as ``x, y``."""
        return self.extreme_points_xy or ()


class RecistRow(_Row):
    """The longest diameter of a lesion and the longest one across it, as RECIST 1.1 measures them (Eisenhauer et al. 2009)."""

    kind: Literal["recist"]
    recist_xy: Fours
    """Both ends of the long diameter, then both of the short one."""

    @model_validator(mode="after")
    def _encloses(self) -> "RecistRow":
        _enclose_something(self.recist_xy)
        return self

    @property
    def places(self) -> tuple[Two, ...]:
        """The ends as ``x, y``."""
        return self.recist_xy


class MaskRow(_Row):
    """A rough mask of one slice."""

    kind: Literal["mask"]
    rle: str | tuple[int, ...] | None = None
    """COCO run lengths, columns first: the compressed string, or the list of counts."""
    size_yx: tuple[int, int] | None = None
    """Rows and columns that ``rle`` was made for; by default those of the slice."""
    polygons_xy: tuple[tuple[float, ...], ...] | None = Field(default=None, min_length=1)
    path: str | None = None
    """An image beside the prompt file; what is not zero is the mask."""

    @model_validator(mode="after")
    def _one_form(self) -> "MaskRow":
        _exactly_one(self, "rle", "polygons_xy", "path")
        return self


class Box3dRow(_Row):
    """A box in a volume."""

    kind: Literal["box3d"]
    box_zyxzyx: Six | None = None
    box_ijk: Six | None = None
    """``i0, j0, k0, i1, j1, k1``."""

    @model_validator(mode="after")
    def _one_form(self) -> "Box3dRow":
        _exactly_one(self, "box_zyxzyx", "box_ijk")
        return self

    @property
    def shown(self) -> str:
        """The box as the row has it, for messages."""
        return _as_written(self, "box_zyxzyx", "box_ijk")

    @property
    def corners(self) -> Six:
        """The box as ``z0, y0, x0, z1, y1, x1``."""
        if self.box_ijk is not None:
            i0, j0, k0, i1, j1, k1 = self.box_ijk
            return (k0, j0, i0, k1, j1, i1)
        return self.box_zyxzyx or (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


AnyRow = BoxRow | PointRow | ScribbleRow | ExtremeRow | RecistRow | MaskRow | Box3dRow

ROW: TypeAdapter[AnyRow] = TypeAdapter(Annotated[AnyRow, Field(discriminator="kind")])
