"""What the source ``student`` can be told; kept apart from its work, so that a recipe is read without loading it."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

SCORES = "gold"
"""The label set that others are scored against."""


class StudentPrompts(BaseModel):
    """Which label set becomes prompts, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: str | None = None
    """The label set, such as ``student/first``: of a finished student, under another name than the one that is to be trained."""
    boxes: bool = True
    """A box around each piece."""
    points: bool = True
    """The innermost pixel of each piece."""
    negatives: bool = True
    """Points on other classes that come near."""
    masks: bool = True
    """The mask itself, for teachers that take one."""
    margin: float | None = Field(default=None, ge=0, le=1)
    """By how much a box is wider than its piece at each side, as a share of the side, two pixels at least; 0 is the tight box. By default as the
    teacher was trained."""
    pieces: int = Field(default=3, ge=1, le=64)
    """How many pieces of a class are prompted on one slice, the largest first."""
    least_share: float = Field(default=0.10, ge=0, le=1)
    """Pieces smaller than this share of the largest, in the volume and on the slice, are taken for strays."""
    absent: bool = False
    """Whether a class that the label set names and that is nowhere in a case is said to be absent; otherwise nothing is said."""

    @field_validator("labels")
    @classmethod
    def _not_what_scores(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9][A-Za-z0-9._-]*)?", value):
            message = f"must be the name of a label set, such as student/first or pseudo/r1, but is {value!r}."
            raise ValueError(message)
        if value.split("/")[0] == SCORES:
            message = (
                f"must not be {value!r}: what the teacher draws on test cases is scored against gold, and would have seen it. "
                "Name labels that a model has drawn, such as student/first."
            )
            raise ValueError(message)
        return value
