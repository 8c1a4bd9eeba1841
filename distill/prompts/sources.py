"""Sources of prompts: whoever looks at a case and proposes where its classes are.

A source is made once per run from its options and a context, and is then asked case by case. What it proposes are ``storage.Prompt``
values like those that people leave: boxes, points, scribbles and rough masks on slices, in voxel indices of the case, each with a confidence.
``absent`` says that the class is not there; a source that says nothing about a class leaves it to the next one in the chain.

``distill.prompts.registry`` knows which there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from distill.appoint import appoint
from distill.devices import resolve_devices
from distill.errors import PlanError
from distill.intensity import Window, choose_window, picture_of
from distill.label_plan import LabelPlan
from distill.prompts.registry import load_maker
from distill.teachers.base import Teacher
from storage import Archive, CaseRecord, ClassInfo, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A case that a source is asked about."""

    record: CaseRecord
    volume_czyx: np.ndarray
    """Native intensities ``(c, z, y, x)``."""
    window: Window
    classes: tuple[ClassInfo, ...]
    """What to look for: the classes that no earlier source of the chain has prompted."""
    stored: tuple[Prompt, ...] = ()
    """Every prompt that is known about the case, whoever made it."""

    @property
    def shown(self) -> int | None:
        """Which channel the teacher is shown; None where there is one, or a picture of all."""
        return self.window.source if isinstance(self.window.source, int) else None

    def picture(self, z: int) -> np.ndarray:
        """Return slice ``z`` as the teacher sees it, ``(H, W, 3)`` uint8."""
        return picture_of(self.volume_czyx, z, self.window)


@dataclass(kw_only=True)
class SourceContext:
    """What a source may use besides the case: the archive to learn from, and the teacher that will be asked."""

    archive: Archive
    plan: LabelPlan
    """Classes, intensity and teacher of the run."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Return the classes of the run."""
        return self.plan.classes

    @cached_property
    def teacher(self) -> Teacher:
        """The run's teacher on its first device; loaded when a source first needs it."""
        return appoint(self.plan, resolve_devices(self.plan.device)[0])

    def subject(self, record: CaseRecord, classes: Sequence[ClassInfo], stored: Sequence[Prompt] = ()) -> Subject:
        """Read a case as sources see it."""
        volume = self.archive[record.id].read()
        window = choose_window(record, volume, self.plan.intensity)
        return Subject(record=record, volume_czyx=volume, window=window, classes=tuple(classes), stored=tuple(stored))


@runtime_checkable
class PromptSource(Protocol):
    """Proposes prompts, case by case. Contract: ``tests/distill/prompts/source_contract.py``."""

    name: str
    """As recipes call it."""
    fingerprint: str
    """Hash of all that its proposals depend on besides the case: version, options, exemplars. A new one has every case asked again."""

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return prompts about ``subject.classes``; none about a class means: no opinion.

        The same subject must give the same prompts. Whatever is raised is recorded with the case, which is tried again and then set aside.
        """
        ...


def warning_of(source: PromptSource) -> str:
    """Return what must be known before the prompts of a source are believed, such as what it could not learn: its attribute ``warning``, if it has one."""
    return str(getattr(source, "warning", ""))


def channel_version_of(source: PromptSource) -> str:
    """Return the version of what a source finds where one of several channels is shown: its attribute ``channel_version``, if it has one.

    Cases of one channel are not asked about anew when it is raised.
    """
    return str(getattr(source, "channel_version", ""))


Maker = Callable[[SourceContext, Any], PromptSource]
"""Makes a source from the context and its options: a pydantic model of ours, or the mapping that a recipe gives for somebody else's."""


def make_source(name: str, context: SourceContext, options: object) -> PromptSource:
    """Make a source by its name.

    Raises:
        PlanError: if there is none of this name, or what is made is none.
    """
    maker: Maker = load_maker(name)
    made: object = maker(context, options)
    if not isinstance(made, PromptSource):
        message = f"the source of prompts {name!r} is a {type(made).__name__} without name, fingerprint and propose(subject). See docs/extending.md."
        raise PlanError(message)
    return made
