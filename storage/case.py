"""What moves through the product: one case, its geometry, and what is said about its label sets.

Axes are always ``c z y x``. A NIfTI array is indexed ``i j k``; ours is its transpose, so ``x = i``, ``y = j``, ``z = k``,
and the affine stays the NIfTI one: it maps ``(i, j, k, 1)`` to millimetres in the RAS frame.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from storage.errors import InvalidCaseError

Part = Literal["archive", "calibration", "test"]
"""``archive``: unlabeled, pseudo-labelled and trained on. ``calibration``: gold may set thresholds. ``test``: gold only scores."""

_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_case_id(case: str) -> str:
    """Return ``case`` if it can name a folder on every file system and object store.

    Raises:
        InvalidCaseError: if it cannot.
    """
    if not _SAFE_ID.fullmatch(case):
        message = (
            f"case id {case!r} is not usable: it must be 1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit. "
            "Rename the file, or give another id on ingest."
        )
        raise InvalidCaseError(message)
    return case


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the voxels of a case lie in the patient."""

    spacing_zyx_mm: tuple[float, float, float]
    """Distance between voxel centres in millimetres, in array order."""
    affine: tuple[tuple[float, float, float, float], ...]
    """4 x 4, row-major: NIfTI index ``(i, j, k, 1)`` = ``(x, y, z, 1)`` to RAS millimetres."""
    nifti: dict[str, float | int | list[float]] = field(default_factory=dict)
    """Numeric NIfTI header fields that an exact round trip needs (form codes, quaternion, units); empty for other sources."""
    spacing_known: bool = True
    """False when the source had no spacing (a PNG, say) and 1 mm was assumed."""

    def __post_init__(self) -> None:
        """Refuse lengths that are not positive and matrices that are not 4 x 4."""
        if len(self.spacing_zyx_mm) != 3 or not all(0 < s < 1e4 for s in self.spacing_zyx_mm):
            message = (
                f"spacing_zyx_mm must be three positive lengths, but is {self.spacing_zyx_mm}. "
                "A zero usually means the slice thickness was missing from the header."
            )
            raise InvalidCaseError(message)
        if len(self.affine) != 4 or any(len(row) != 4 for row in self.affine):
            message = f"affine must be 4 x 4, but is {self.affine}."
            raise InvalidCaseError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One of several images of the same place: an MR sequence, or PET beside CT."""

    name: str
    """Letters, digits, ``.``, ``_`` and ``-``."""
    modality: str = "unknown"
    """DICOM's code of this channel alone."""
    suffix: str = ""
    """What its file's name ends in, before the ending: ``_0000``; one file may also hold all channels."""

    def __post_init__(self) -> None:
        """Refuse names that cannot be written in a recipe."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            message = f"a channel is called {self.name!r}: write 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit."
            raise InvalidCaseError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRecord:
    """Everything the catalog knows about one case before anyone labels it."""

    id: str
    patient: str
    """A pseudonym. Splits are by this, never by case."""
    shape_czyx: tuple[int, int, int, int]
    dtype: str
    geometry: Geometry
    modality: str = "unknown"
    """DICOM's code: ``CT``, ``MR``, ``US``, ... or ``unknown``."""
    part: Part = "archive"
    attributes: dict[str, str | float | int] = field(default_factory=dict)
    """Allow-listed facts for subgroups (``sex``, ``age_years``, ``vendor``); never names, dates or free text."""
    fingerprint: str = ""
    """Hash of the pixels and geometry; label work depends on it."""
    channels: tuple[Channel, ...] = ()
    """What each channel is, in the order of the pixels; empty where nobody said, and for one channel or a colour picture."""

    def __post_init__(self) -> None:
        """Validate the id and the shape once."""
        check_case_id(self.id)
        if len(self.shape_czyx) != 4 or min(self.shape_czyx) < 1:
            message = f"case {self.id}: shape_czyx must be four positive sizes, but is {self.shape_czyx}."
            raise InvalidCaseError(message)
        names = [channel.name for channel in self.channels]
        if names and (len(names) != self.shape_czyx[0] or len(set(names)) < len(names)):
            message = (
                f"case {self.id}: {self.shape_czyx[0]} channel(s) need as many different names, but they are called {', '.join(names)}."
            )
            raise InvalidCaseError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInfo:
    """One class of a label set."""

    id: int
    name: str
    rgba: tuple[int, int, int, int] = (228, 60, 60, 255)


IGNORE = 255
"""The class id that means: nobody should learn here. Stored in every label array that needs it; never a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHistory:
    """Promise 5: where every voxel of one label set of one case came from."""

    label_set: str
    """``gold``, ``teacher/r1``, ``pseudo/r1``, ``student/NAME`` or ``review``."""
    classes: tuple[ClassInfo, ...]
    made_by: str
    """The step and version that wrote it, such as ``distill.engine``."""
    teacher: str = ""
    """Fingerprint of the checkpoint, where one was asked."""
    prompt_source: str = ""
    parameters: dict[str, str | float | int | bool | list[float]] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """Label sets it was derived from."""
    round: int = 1
    fingerprint: str = ""
    """Fingerprint of the unit of work that wrote it: same inputs and parameters, same fingerprint."""


MOST_POINTS = 4
"""Of one point prompt or scribble a teacher is asked with so many points at most. Teachers are trained with few, and a fifth point of one object moves masks little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One hint about one class on one slice (or in one volume), in voxel index coordinates of the archive array.

    Coordinates count array indices, pixel ``n`` covering ``[n, n + 1)``: a box's upper bound is exclusive.
    """

    case: str
    class_id: int
    kind: Literal["box", "point", "scribble", "mask", "box3d", "extreme", "recist", "absent"]
    """``absent`` says that the class is not in the case: the one prompt that asks nothing, and answers with background."""
    axis: Literal["z", "y", "x"] = "z"
    """The axis that ``slice`` counts along."""
    slice: int | None = None
    """Index along ``axis``; None for a prompt on the whole volume."""
    box_xyxy_px: tuple[float, float, float, float] | None = None
    """In the slice's own (column, row) order: for ``axis='z'`` that is ``(x0, y0, x1, y1)``."""
    box_zyxzyx_px: tuple[float, float, float, float, float, float] | None = None
    points_xy_px: tuple[tuple[float, float], ...] = ()
    """Points of a point prompt, the polyline of a scribble, the four extreme points, or the ends of RECIST's long and then of its short diameter."""
    positive: bool = True
    mask_rle: str = ""
    """COCO run-length string of a rough mask (columns first), with ``mask_size_yx``."""
    mask_size_yx: tuple[int, int] | None = None
    source: str = "weak"
    confidence: float = 1.0
