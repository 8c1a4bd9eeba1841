"""Small records that the catalog keeps besides cases and prompts."""

from dataclasses import dataclass, field
from typing import Literal

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
    metrics: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRecord:
    """What a person decided about one label set of one case."""

    case: str
    label_set: str
    verdict: Literal["accept", "ignore", "reject", "review"]
    note: str = ""
