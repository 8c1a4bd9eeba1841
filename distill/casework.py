"""A case on its way through labelling: its volume, what is to be asked about each class, and what is known so far."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from distill.answers import Answer, united
from distill.intensity import IntensitySpec, Window, choose_window, picture_of
from distill.prompts.axes import AXES, Axis, asked_axes, turned_record
from distill.prompts.choice import source_of
from distill.prompts.ends import Direction, open_ends
from distill.prompts.hints import hints_by_slice
from distill.prompts.schedule import SlicePlan, schedule_slices
from distill.uncertainty import EnsembleSummary
from storage import Archive, CaseRecord, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Where a track beyond the outermost prompts ended, and why."""

    z: int
    reason: str
    """A slug that reports count by: ``organ-ended``, ``area-ratio``, ``centroid-jump``, ``iou-below-tau``, ``outgrown``."""
    track: int = 0
    """Which piece."""


@dataclass(slots=True, kw_only=True)
class Track:
    """What is known so far about one piece of a class, on its way from slice to slice."""

    answers: dict[int, Answer] = field(default_factory=dict)
    """By slice."""
    absent: set[int] = field(default_factory=set)
    """Slices that were asked or reached, and on which the piece is not."""


@dataclass(slots=True, kw_only=True)
class ClassWork:
    """What is known so far about one class of one case; where it has several pieces on a slice, about all of them together."""

    plans: list[SlicePlan]
    probability: np.ndarray
    """``(z, y, x)`` float32, filled slice by slice."""
    summaries: dict[int, EnsembleSummary] = field(default_factory=dict)
    iou: dict[int, float] = field(default_factory=dict)
    tracks: defaultdict[int, Track] = field(default_factory=lambda: defaultdict(Track))
    """By the number that plans have."""
    plane_agreement: float | None = None
    """Mean Dice between the answers of three planes; None where only axial slices were asked."""
    stops: list[Stop] = field(default_factory=list)
    """Where going on beyond the outermost prompts ended."""
    round_trips: dict[str, float] = field(default_factory=dict)
    """``down`` and ``up``: Dice at the slice where a track began, between its mask and the one that the way back ends with."""
    unknown: set[int] = field(default_factory=set)
    """Slices of tracks whose way back did not meet their beginning."""
    open_ends: frozenset[Direction] = frozenset()
    """Towards which ends the prompts leave slices that are not asked, and do not say that the object has ended (``distill.prompts.ends``)."""
    axis: int = 0
    """Of the case, which comes first in all of these: that across which the prompts were drawn (``distill.prompts.axes``)."""
    vote: np.ndarray = field(init=False)
    """``(z, y, x)`` uint8: share of the members that say yes, 255 = all."""
    mutual_information: np.ndarray = field(init=False)
    """``(z, y, x)`` uint8: how much of the doubt comes from members contradicting each other, 255 = ln 2."""

    def __post_init__(self) -> None:
        """Make room for the maps."""
        self.vote, self.mutual_information = (np.zeros(self.probability.shape, np.uint8) for _ in range(2))

    @property
    def absent(self) -> set[int]:
        """Slices that were asked or reached, and on which the class is not."""
        return set().union(*(track.absent for track in self.tracks.values())) - self.summaries.keys()

    def in_case(self, name: str) -> np.ndarray:
        """Return one of the volumes as the case has its axes, ``(z, y, x)``."""
        return np.moveaxis(getattr(self, name), 0, self.axis)

    @property
    def most_pieces(self) -> int:
        """On one slice, as planned."""
        return max(Counter(plan.z for plan in self.plans).values(), default=0)

    def keep(self, z: int) -> None:
        """Unite what the tracks' answers say about a slice; the maps are kept once, as slices of the volumes'."""
        told = [self.tracks[number] for number in sorted(self.tracks) if z in self.tracks[number].answers]
        summary, self.iou[z] = united([track.answers[z] for track in told])
        kept = {}
        for name in ("probability", "vote", "mutual_information"):
            volume = getattr(self, name)
            volume[z] = getattr(summary, name)
            kept[name] = volume[z]
        self.summaries[z] = replace(summary, **kept)
        if not any(plan.track for plan in self.plans):  # with one piece, its answer need not be kept twice
            own = told[0].answers[z]
            parts = {name: each[own.region] for name, each in kept.items()}
            told[0].answers[z] = replace(own, summary=replace(own.summary, **parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseWork:
    """One case on its way through the wavefront."""

    record: CaseRecord
    volume_czyx: np.ndarray
    window: Window
    classes: dict[int, ClassWork]
    said_absent: dict[int, float] = field(default_factory=dict)
    """Class -> how sure a prompt was that it is not in the case; such a class is not asked about."""
    sources: tuple[str, ...] = ()
    """Who prompted, as recipes name them."""
    axis: int = 0
    """How the case is turned: its spatial axis that comes first here; three times that plus an axis of this one, where ``distill.planes`` turned it again."""
    turned: tuple["CaseWork", ...] = ()
    """The same case with another axis first, and the classes that are asked along it."""

    def picture(self, z: int) -> np.ndarray:
        """Return slice ``z`` as the teacher sees it, ``(H, W, 3)`` uint8."""
        return picture_of(self.volume_czyx, z, self.window)

    def fresh(self) -> "CaseWork":
        """Return the same questions without any answer."""
        classes = {
            key: ClassWork(
                plans=known.plans, probability=np.zeros(known.probability.shape, np.float32), open_ends=known.open_ends, axis=known.axis
            )
            for key, known in self.classes.items()
        }
        return replace(self, classes=classes, turned=tuple(work.fresh() for work in self.turned))

    @property
    def targets(self) -> dict[int, ClassWork]:
        """Return all classes, along whichever axis they are asked."""
        return dict(self.classes) | {key: target for work in self.turned for key, target in work.classes.items()}


def by_axis(works: Iterable[CaseWork]) -> list[list[CaseWork]]:
    """Return cases as they are, and then, axis by axis, those that are asked about other slices too; what is asked together looks the same way."""
    given = list(works)
    turned = [each for work in given for each in work.turned]
    return [given, *([each for each in turned if each.axis == axis] for axis in sorted({each.axis for each in turned}))]


def prepare_case(
    archive: Archive,
    record: CaseRecord,
    prompts: Iterable[Prompt],
    *,
    classes: Collection[int],
    intensity: IntensitySpec,
    propagate: bool = False,
) -> CaseWork:
    """Read a case and plan what to ask, nothing answered yet.

    Args:
        archive: holds the case.
        record: of the case.
        prompts: about it; those of other classes are left out.
        classes: ids, in the order in which the work is to have them.
        intensity: how native intensities become pictures.
        propagate: plan the whole volume, not only the gaps between prompts and as much again beyond them.
    """
    given = [prompt for prompt in prompts if prompt.class_id in classes]
    volume, axes = archive[record.id].read(), asked_axes(given)
    own = {axis: [prompt for prompt in given if axes.get(prompt.class_id) == axis] for axis in AXES}
    planned = {axis: _planned(turned_record(record, axis), each, classes, axis, propagate=propagate) for axis, each in own.items()}
    window = choose_window(record, volume, intensity)
    turned = tuple(
        CaseWork(
            record=turned_record(record, axis),
            volume_czyx=np.moveaxis(volume, n + 1, 1),
            window=window,
            classes=planned[axis],
            axis=n,
        )
        for n, axis in enumerate(AXES)
        if n and planned[axis]
    )
    drawn = {key for each in planned.values() for key in each}
    return CaseWork(
        record=record,
        volume_czyx=volume,
        window=window,
        classes=planned["z"],
        said_absent={prompt.class_id: prompt.confidence for prompt in given if prompt.kind == "absent" and prompt.class_id not in drawn},
        sources=tuple(sorted({source_of(prompt) for prompt in given})),
        turned=turned,
    )


def _planned(record: CaseRecord, prompts: list[Prompt], classes: Collection[int], axis: Axis, *, propagate: bool) -> dict[int, ClassWork]:
    """Plan the classes that are asked along one axis, which comes first in the record's shape."""
    hints, shape = hints_by_slice(record, prompts, axis), record.shape_czyx[1:]
    return {
        key: ClassWork(
            plans=schedule_slices(hints[key], shape[0], reach=shape[0] if propagate else None),
            probability=np.zeros(shape, np.float32),
            open_ends=frozenset() if propagate else open_ends(hints[key], (each for each in prompts if each.class_id == key), shape[0]),
            axis=AXES.index(axis),
        )
        for key in classes
        if key in hints
    }
