"""What the source ``threshold`` looks for: rules, ready-made ones by name, and how a recipe changes them."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Bound = float | None
Given = Literal["box", "point", "mask"]


class ThresholdRule(BaseModel):
    """One class as a range of intensities and what its pieces look like.

    Sizes are cubic millimetres, in a case of one slice square millimetres, and where the spacing is not known voxels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str | None = None
    """Start from this ready-made rule; every other key that is given replaces one of its."""
    window: tuple[Bound, Bound] | None = None
    """Lowest and highest native intensity (HU in CT); null is open."""
    percentiles: tuple[float, float] | None = None
    """The same, as percentiles of the voxels of the body."""
    otsu: Literal["bright", "dark"] | None = None
    """The same, by Otsu's method: the brightest or the darkest of ``levels`` groups of the body's voxels."""
    levels: int = Field(default=2, ge=2, le=4)
    within: Literal["body", "picture"] = "body"
    """Inside the patient's outline, or anywhere."""
    modalities: tuple[str, ...] = ()
    """Only cases of these (DICOM's codes); about others the rule says nothing. Empty: all."""
    smooth_px: float = Field(default=0.0, ge=0, le=10)
    """Standard deviation of a Gaussian over each slice before it is cut."""
    erode: int = Field(default=1, ge=0, le=10)
    """Pixels: bridges up to twice as wide are cut, and what is thinner vanishes; the rest gets its border back."""
    close: int = Field(default=0, ge=0, le=10)
    """Pixels: gaps up to twice as wide are closed before holes are filled, such as those in the cortex of a bone."""
    fill: bool = True
    """Fill holes, slice by slice."""
    split_px: int = Field(default=0, ge=0, le=100)
    """Cut pieces at their waists, where the middles of the parts are at least so far apart; 0 does not."""
    size: tuple[float, Bound] = (0.0, None)
    """Smallest and largest piece."""
    median: tuple[Bound, Bound] = (None, None)
    """Of the native intensities of a piece."""
    border: Literal["keep", "drop"] = "keep"
    """What becomes of pieces that the side of a slice cuts off."""
    keep: int | None = Field(default=None, ge=1)
    """So many pieces, the largest first; all without it."""
    margin: float = Field(default=0.05, ge=0, le=0.5)
    """Boxes are moved out by this share of their sides, and by one pixel at least."""
    give: tuple[Given, ...] = Field(default=("box", "point", "mask"), min_length=1)
    """What is proposed for each piece on each slice."""
    absent: bool = False
    """Where nothing fits, say that the class is not there, instead of nothing."""

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            message = f"there is no preset {value!r}. Known: {', '.join(PRESETS)}."
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        given = [name for name in RANGES if getattr(self, name) is not None]
        if len(given) > 1:
            message = f"gives {' and '.join(given)}. Keep one of them."
            raise ValueError(message)
        if not given and self.preset is None:
            message = f"says nothing about intensities. Give one of preset, {', '.join(RANGES)}."
            raise ValueError(message)
        for name in ("window", "percentiles", "size", "median"):
            low, high = getattr(self, name) or (None, None)
            if low is not None and high is not None and low >= high:
                message = f"{name} must be two rising numbers, but is [{low:g}, {high:g}]."
                raise ValueError(message)
        return self

    def resolved(self) -> "ThresholdRule":
        """Return the rule with what its preset says filled in."""
        if self.preset is None:
            return self
        changes = {name: getattr(self, name) for name in self.model_fields_set if name != "preset"}
        if set(RANGES) & set(changes):
            changes = dict.fromkeys(RANGES) | changes
        return PRESETS[self.preset].model_copy(update=changes)


RANGES = ("window", "percentiles", "otsu")

PRESETS: dict[str, ThresholdRule] = {}
"""Ready-made rules. HU ranges are those of radiology's textbooks; each says how it keeps lookalikes out."""

PRESETS |= {
    # All that is denser than fat with much air in it. The table is another piece.
    "body": ThresholdRule(window=(-500, None), modalities=("CT",), keep=1, erode=2, size=(5e4, None), absent=True),
    # Gas in bowel and stomach is darker (-1000) than a lung (-700 to -870) as a whole, and the airways are bridges.
    "lungs": ThresholdRule(
        window=(-1000, -400), modalities=("CT",), keep=2, size=(5e3, None), median=(-930, -500), give=("box", "point", "mask"), absent=True
    ),
    # Spongy bone is half below 170 HU at 3 mm, where the textbook's 250 finds a third of it; vessels with contrast need [300, null].
    "bones": ThresholdRule(window=(150, None), modalities=("CT",), erode=0, close=1, size=(500, None), absent=True),
    "fat": ThresholdRule(window=(-150, -30), modalities=("CT",), size=(1e3, None), fill=False),
    "bowel-gas": ThresholdRule(window=(None, -800), modalities=("CT",), size=(200, None), median=(None, -930)),
    "calcifications": ThresholdRule(window=(130, None), modalities=("CT",), erode=0, size=(3, 500)),
    # Without a scale there is no telling whether a lesion is there: something is always brightest. So these never say absent.
    "bright-lesions": ThresholdRule(otsu="bright", levels=4, size=(20, 5e4), border="drop"),
    # The air along the outline is a dark ring, and what it encloses is no hole in it.
    "dark-lesions": ThresholdRule(otsu="dark", levels=4, size=(20, 5e4), border="drop", fill=False),
    # Microscopy: lit objects on a dark ground, stained ones on a light one.
    "bright-objects": ThresholdRule(otsu="bright", within="picture", smooth_px=1, size=(20, None), split_px=5),
    "dark-objects": ThresholdRule(otsu="dark", within="picture", smooth_px=1, size=(20, None), split_px=5),
}


class ThresholdOptions(BaseModel):
    """What the source ``threshold`` is asked to find."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[str, ThresholdRule] = Field(default_factory=dict)
    """By name or id of the class. A class without a rule has that of the preset that is called like it, if there is one."""

    @field_validator("classes", mode="before")
    @classmethod
    def _ids_are_names(cls, value: object) -> object:
        return {str(key): rule for key, rule in value.items()} if isinstance(value, dict) else value

    def rule_for(self, class_id: int, name: str) -> ThresholdRule | None:
        """Return the rule about a class, or None."""
        given = self.classes.get(str(class_id)) or self.classes.get(name)
        if given is not None:
            return given.resolved()
        return PRESETS.get(name)
