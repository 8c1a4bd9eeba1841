"""The keys of a recipe that say what the student is compared with."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flows.recipe_parts import Block

ArmName = Literal["ellipse", "ellipse-student", "few-gold", "all-gold", "gold-alone", "teacher-gold-boxes"]

UNTRAINED: frozenset[ArmName] = frozenset({"ellipse", "teacher-gold-boxes"})
"""Arms that train nobody."""


class EvaluateBlock(Block):
    """What the student is compared with, on the test cases."""

    arms: tuple[ArmName, ...] = ("ellipse",)
    """What is compared beside student and teacher. Those but ``ellipse`` and ``teacher-gold-boxes`` train another student each, with the same budget."""
    tolerance_mm: float = Field(default=1.0, gt=0)
    """Of the normalised surface Dice: how far two borders may be apart and still count as equal."""
    gold_curve: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of archive patients, such as ``[1, 3, 5, 10]``: the same net is trained on the gold of so many, alone and beside pseudo-labels, for each."""
    gold_curve_seeds: tuple[int, ...] = ()
    """Each draws its own patients and trains anew; by default ``student.seed`` alone."""

    @field_validator("gold_curve", "gold_curve_seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))
