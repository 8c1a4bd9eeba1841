"""What the source ``everything`` asks for, and what a class looks like, as a recipe says it."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.prompts.presets import Given

Range = tuple[float, float]


class GridOptions(BaseModel):
    """How densely slices are asked for masks that nobody named, and which of them are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int = Field(default=16, ge=1, le=64)
    """Points of the grid along each side of a slice; each is asked for three masks."""
    crops: int = Field(default=0, ge=0, le=2)
    """Layers of overlapping crops that are asked too, for small objects: 4 pictures more, then 16 more."""
    least_iou: float | None = Field(default=None, ge=0, le=1)
    """Predicted IoU. Without it what suits the teacher: 0.35 for the bundled one, 0.7 for others (0.88 is for photographs)."""
    least_stability: float | None = Field(default=None, ge=0, le=1)
    """Without it 0.25 for the bundled teacher, whose borders are soft, and 0.85 for others."""
    least_px: int = Field(default=20, ge=0)
    """Smaller masks are left out, smaller islands and holes of a mask are mended."""


class Look(BaseModel):
    """What a class looks like on a slice. Two numbers are the range in which 95 % of its masks lie; what is not said is not judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intensity: Range | None = None
    """Median native intensity: HU in CT."""
    percentile: Range | None = None
    """The same as a percentile of the body's voxels, 0 to 100, for scales that are none."""
    area: Range | None = None
    """mm2, without a known spacing pixels."""
    x: Range | None = None
    """Middle of the mask in the body's box, 0 the patient's right, 1 the left; in pictures without geometry from left to right."""
    y: Range | None = None
    """0 front, 1 back; in pictures from top to bottom."""
    z: Range | None = None
    """0 feet, 1 head; by slices where the geometry is not known."""
    eccentricity: Range | None = None
    """0 a disc, towards 1 a line."""
    solidity: Range | None = None
    """Share of its convex hull that a mask fills."""
    contrast: Range | None = None
    """How well the rim inside is told from the rim outside, 0 to 1."""
    side: Literal["left", "right"] | None = None
    """Of the patient: nothing on the other side is taken."""
    most: int = Field(default=1, ge=1, le=1000)
    """Masks on one slice."""
    absent: bool = False
    """Where no mask of a case is taken, say that the class is not there, instead of nothing."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name in TRAITS:
            bounds = getattr(self, name)
            if bounds is not None and not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
                message = f"{name} must be two rising numbers, such as [0.2, 0.4], but is [{bounds[0]:g}, {bounds[1]:g}]."
                raise ValueError(message)
        if self.area is not None and self.area[0] <= 0:
            message = f"area must be above 0, as areas are compared by their logarithms, but begins at {self.area[0]:g}."
            raise ValueError(message)
        return self


TRAITS = ("intensity", "percentile", "area", "x", "y", "z", "eccentricity", "solidity", "contrast")
"""What is measured of a mask, in the order of all arrays of traits."""


class EverythingOptions(BaseModel):
    """What the source ``everything`` is asked to find, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[str, Look] = Field(default_factory=dict)
    """By name or id of the class."""
    exemplars: int = Field(default=0, ge=0, le=10)
    """So many cases of the ``calibration`` part say, by their gold, what the classes look like where ``classes`` does not."""
    reject: float = Field(default=4.0, gt=0)
    """Mean squared deviation of a mask's traits, in standard deviations, from which it is no class: 4 is two of them in every trait."""
    unsure: float = Field(default=4.0, ge=0)
    """What taking a mask costs besides, times 1 minus its predicted IoU: of the whole and its parts the teacher is surest of one."""
    grid: GridOptions = GridOptions()
    margin: float = Field(default=0.05, ge=0, le=0.5)
    """Boxes are moved out by this share of their sides, and by one pixel at least."""
    give: tuple[Given, ...] = Field(default=("box", "point", "mask"), min_length=1)
    """What is proposed for each mask."""

    @model_validator(mode="before")
    @classmethod
    def _ids_are_names(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("classes"), dict):
            return value | {"classes": {str(key): look for key, look in value["classes"].items()}}
        return value
