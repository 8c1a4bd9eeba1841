"""The keys of a recipe that say what of the teacher's drawing is believed."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from flows.durations import seconds_from
from flows.recipe_parts import Block, ClassId, chained

SemanticTest = Literal["prior", "student", "reverse"]

_MOST_WEIGHT = 4.0


def _edge_rule(value: object) -> bool | float | Literal["auto"]:
    """Keep YAML's ``1`` a number: it is the weight 1, and no truth."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and 0 < value <= _MOST_WEIGHT:
        return float(value)
    if value == "auto":
        return "auto"
    message = f"must be auto, true, false, or a weight above 0 and up to {_MOST_WEIGHT:g}, but is {value!r}."
    raise ValueError(message)


EdgeRule = Annotated[bool | float | Literal["auto"], PlainValidator(_edge_rule)]


class CleaningBlock(Block):
    """Which pieces and holes of one class stay, and how its edge is drawn."""

    components: int = Field(default=1, ge=1)
    """How many of the largest pieces stay, where ``largest_component`` is on."""
    piece_share: float = Field(default=0.1, gt=0, le=1)
    """Pieces from this share of the largest one on stay if they lie near it, and are ``ignore`` where they are taken away."""
    piece_gap_mm: float = Field(default=5.0, ge=0)
    """How near; 0 takes all but the largest away. Not judged where the spacing is unknown."""
    least_mm3: float = Field(default=0.0, ge=0)
    """Smaller pieces go; not judged where the spacing is unknown."""
    least_px: int = Field(default=0, ge=0)
    holes: Literal["slices", "3d", "none"] = "slices"
    """Holes that are closed within a slice are filled, or only those closed on all sides, or none."""
    holes_to_mm3: float | None = Field(default=None, ge=0)
    """Larger holes stay; not judged where the spacing is unknown."""
    holes_to_px: int | None = Field(default=None, ge=0)
    rectify_edges: EdgeRule = False
    """Whether intensity decides about the edge, where the teacher's probability lies between 0.2 and 0.8, weighed against the teacher's belief if a number is given;
    ``auto`` has calibration gold say whether, and how much."""
    disputed_from: float | None = Field(default=None, gt=0, le=0.5)
    """Share of the ensemble in the minority from which a voxel is ``ignore``."""


class RefineBlock(Block):
    """What of the teacher's drawing is believed."""

    consistency: Literal["none", "3d"] = "3d"
    largest_component: bool = True
    risk: float = Field(default=0.10, gt=0, lt=1)
    """Highest accepted expected disagreement (1 - Dice) of what is trained on; set on the calibration cases."""
    guarantee: Literal["none", "mask"] = "none"
    """``mask`` makes ``risk`` hold for new patients, by conformal risk control (docs/calibration.md)."""
    semantic: Annotated[tuple[SemanticTest, ...], BeforeValidator(chained)] = ("prior",)
    """Tests of whether a mask is of the right object (docs/uncertainty.md): ``prior`` compares place, size and brightness with other
    patients' masks, ``student`` trains two students that never saw the case, ``reverse`` asks what a mask teaches about calibration gold."""
    witness_budget: Annotated[float, BeforeValidator(seconds_from)] = 120.0
    """Seconds of training for each student of ``semantic: student``."""
    classes: dict[ClassId, CleaningBlock] = Field(default_factory=dict)
    """Rules for single classes; those that are not named get the defaults."""
