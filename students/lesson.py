"""What any trainer is asked, by name. Free of torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from storage import ClassInfo
from students.spec import StudentSpec, TrainProgress


class Lesson(TypedDict):
    """What a student is to learn, and where it is kept."""

    label_set: str
    """What to learn, ``pseudo/r1`` for example."""
    classes: tuple[ClassInfo, ...]
    """What the student tells apart, with the ids its label sets use."""
    spec: StudentSpec
    """What is asked for."""
    workdir: Path
    """The student becomes the folder ``workdir / spec.name``."""
    cases: NotRequired[Sequence[str] | None]
    """Cases to learn from; by default every ``archive`` case that carries the label set. Training on ``calibration`` cases (a few-gold arm) must be
    asked for by name here; ``test`` cases are always refused."""
    case_weights: NotRequired[Mapping[str, float] | None]
    """How much a case counts, 1 where not given; a case of weight 0 is left out."""
    progress: NotRequired[Callable[[TrainProgress], None] | None]
    """Called about once a second."""
