"""The block ``rounds`` of a recipe: whether teacher, labels and student are gone through more than once, and what ends that."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flows.durations import seconds_from
from flows.recipe_parts import Block
from students.relabel import Relabel

MOST_ROUNDS = 5
"""Published loops make two or three; more would take longer than they could tell, and are refused."""


def _seconds(value: object) -> object:
    return None if value is None else seconds_from(value)


class RoundsBlock(Block):
    """Teacher, pseudo-labels, student, and again with what the student has learnt (docs/rounds.md)."""

    most: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    """At most so many; 1 is a run without further rounds."""
    relabel: Relabel = "teacher"
    """Who labels anew: the teacher, prompted by students that never saw the case; these students themselves; the teacher where they agree; or the mean
    of their probability and of what the teacher drew in the first round."""
    agreement: float = Field(default=0.6, ge=0, le=1)
    """Least Dice of the teacher's mask with these students' answer; below it the mask is ``ignore``. Heard where the teacher draws anew."""
    drop: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the cases that is not learnt from in later rounds: those whose labels changed most."""
    guard: Literal["auto", "gold", "agreement"] = "auto"
    """What a new student is judged by: gold of calibration cases, or agreement with the first round's labels on patients that no student has
    learnt from; ``auto`` takes gold where there is some."""
    may_fall: float = Field(default=0.01, ge=0, le=1)
    """Mean Dice by which a new student may be worse than the one so far before the rounds end."""
    folds: int = Field(default=2, ge=2, le=5)
    """Groups of patients; each is answered for by a student that learnt from the others."""
    budget: Annotated[float | None, BeforeValidator(_seconds)] = None
    """Seconds of training for each of these students; by default the student's own budget."""
