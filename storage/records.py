"""Small records that the catalog keeps besides cases and prompts."""

from dataclasses import dataclass, field
from typing import Any, Literal

Scalar = str | float | int | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRecord:
    """One file or row that could not go into the archive."""

    source: str
    """Path of the file the problem was found in; DICOM goes by pseudonyms."""
    row: str
    """Row, key or series in that file; empty when the whole file is meant."""
    reason: str
    """A slug that reports count by, such as ``truncated-gzip``."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecord:
    """One trained student: where it is, and what it learned from."""

    name: str
    kind: str
    """``compact``, ``nnunet`` or ``promptable``."""
    path: str
    label_set: str
    """The label set it was trained on."""
    round: int = 1
    parameters: int = 0
    """Number of trainable parameters."""
    fingerprint: str = ""
    """Of what it was trained from."""
    metrics: dict[str, Scalar] = field(default_factory=dict)
    """What is known of how good it is: ``agreement`` of its training, ``dice`` with experts once it was scored, ..."""
    weights: str = ""
    """Hash of its weights: a training stopped by the clock gives others each time."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The parts of the recipe that decide about it, in a recipe's own words; no places of files or databases."""
    code: str = ""
    """Version of the program that trained it, with a hash of its source."""
    trained_at: str = ""
    """When it was finished, in UTC, to the second: ``2026-11-21T16:30:00Z``."""
    revision: int = 1
    """Which training under this name: 1 for the first, then 2, ...; counted by the catalog."""
    promoted: int = 0
    """The revision that somebody chose as the one to use; 0 for none, and another one where it was trained again since."""

    @property
    def is_promoted(self) -> bool:
        """Whether this is the student to use, as it is now."""
        return self.promoted == self.revision


Opinion = Literal["accept", "ignore", "reject"]
"""What a reviewer may say of a mask: right, not sure, or wrong."""
Sampling = Literal["random", "ranked", "asked"]
"""Why a person looked: the case was drawn at random, ranked high, or looked at without having been listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRecord:
    """What a person decided about one class of one label set of one case."""

    case: str
    label_set: str
    """The teacher's, such as ``teacher/r1``: its masks are judged, as refinement made pseudo-labels of them."""
    class_id: int
    verdict: Opinion
    """A mask for which a person drew a new box counts as ``reject`` until it is drawn anew."""
    source: Sampling = "asked"
    by: str = ""
    """A name that reviewers know each other by: letters, digits, ``.``, ``_`` and ``-``."""
    at: str = ""
    """When, in UTC, to the second: ``2026-11-21T16:30:00Z``."""
    filter_said: str = ""
    """What refinement had decided by itself, such as ``accept``; empty where it had not been there yet."""
    fingerprint: str = ""
    """Of the labels that were looked at; the verdict holds for these and no others."""
    note: str = ""
    action: Literal["judge", "rebox", "undo"] = "judge"
    """``undo`` takes back the verdict that it repeats."""
    revision: int = 0
    """1 for the first that was decided about this mask, then 2, ...; 0 until it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingRecord:
    """What a reviewer was last shown of one class of one case."""

    case: str
    label_set: str
    class_id: int
    by: str
    source: Sampling
    fingerprint: str
    """Of the labels that were shown."""
    revision: int
    """How many decisions about it there were at that time."""
