"""Source ``exemplar``: from a few gold cases to boxes and points on all others, without a single prompt.

Every exemplar slice is encoded by the teacher, with some variations of it; ``prototypes`` says where another slice looks like the class. The exemplars are then held out one
by one to learn where to cut that score, and how high its peak must be for the class to be there at all (``distill.prompts.cutting``). A slice with
the class gets the box of the largest piece, moved outward, and the innermost point of it; a case without such a slice is said not to have the class.

Only gold of the calibration part is looked at, and a case is never prompted with the gold of its own patient: thresholds that are set on
calibration cases later would otherwise be set on prompts that knew the answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b

import cv2
import numpy as np

from distill.errors import PlanError
from distill.intensity import intensity_inputs
from distill.prompts.cutting import Cut, Held, Place, learn_cut, place_of, present_run
from distill.prompts.exemplar_options import ExemplarOptions
from distill.prompts.prototypes import Cells, Example, Prototypes, learn
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.variations import Variation, vary
from distill.teachers.base import Teacher
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Labels, Prompt, fingerprint

EXEMPLAR = "2"
"""Raised whenever the source's answers change."""
OPEN = "2"
"""Raised whenever the answers change where gold leaves something open."""
GOLD = "gold"
MOST_ENCODED = 240
"""Exemplar slices and variations that are encoded together at most."""
PICTURES = 8
"""Slices of one encoder call."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shown:
    """One exemplar slice."""

    case: str
    patient: str
    example: Example
    masks: Mapping[int, np.ndarray]
    """Class id -> ``(H, W)`` bool, of the classes that its gold is about; ``IGNORE`` -> what experts left open."""


@dataclass(slots=True)
class _Known:
    """What was learnt for the patients that a set of exemplars does not contain."""

    prototypes: Prototypes
    cuts: dict[int, Cut] = field(default_factory=dict)


def exemplar_source(context: SourceContext, options: object) -> "ExemplarSource":
    """Make the source from gold cases of the calibration part.

    Raises:
        PlanError: if there are none, or those that are named cannot be used.
    """
    chosen = options if isinstance(options, ExemplarOptions) else ExemplarOptions.model_validate(options or {})
    records = choose_exemplars(context.archive, chosen)
    return ExemplarSource(context, chosen, records)


def choose_exemplars(archive: Archive, options: ExemplarOptions) -> list[CaseRecord]:
    """Return the named calibration cases, or so many with gold, as many patients as possible among them and evenly spread.

    Raises:
        PlanError: if one of them is not of the calibration part or has no gold, or if there is none at all.
    """
    usable = {record.id: record for record in archive.cases(part="calibration", with_labels=GOLD)}
    strangers = [case for case in options.cases if case not in usable]
    if strangers:
        message = (
            f"exemplar.cases names {', '.join(strangers)}, of which the archive has no gold in the calibration part. Exemplars teach, so "
            f"they cannot be cases that score. Usable: {', '.join(list(usable)[:10]) or 'none'}{', ...' if len(usable) > 10 else ''}."
        )
        raise PlanError(message)
    if options.cases:
        return [usable[case] for case in options.cases]
    if not usable:
        message = (
            "the source exemplar needs 1 to 10 cases with gold in the calibration part, but there are none. Name them by ingest.gold and "
            "ingest.split in the recipe, which 'samdistill run' brings in ('label' alone does not), or use another source of prompts."
        )
        raise PlanError(message)
    return _spread(list(usable.values()), options.count)


def _spread(records: Sequence[CaseRecord], count: int) -> list[CaseRecord]:
    """Take patients in turn, and of each patient cases from the middle of what is left outward."""
    by_patient: dict[str, list[CaseRecord]] = {}
    for record in records:
        by_patient.setdefault(record.patient, []).append(record)
    patients = list(by_patient)
    turns = [patients[round(n)] for n in np.linspace(0, len(patients) - 1, min(count, len(patients)))]
    wanted = {patient: count // len(turns) + (n < count % len(turns)) for n, patient in enumerate(turns)}
    chosen = [by_patient[patient][at] for patient in turns for at in _evenly(len(by_patient[patient]), wanted[patient])]
    return chosen[:count]


def _evenly(total: int, count: int) -> list[int]:
    """Return at most ``count`` distinct indices below ``total``, evenly spread and away from both ends."""
    return sorted({int((n + 0.5) * total / count) for n in range(count)}) if total > count else list(range(total))


class ExemplarSource:
    """Prompts from what the class looks like in a few gold cases."""

    name = "exemplar"

    def __init__(self, context: SourceContext, options: ExemplarOptions, records: Sequence[CaseRecord]) -> None:
        """Read the exemplars; they are encoded, and what is learnt from them is learnt, when it is first needed: perhaps no case is due."""
        self._teacher: Teacher = context.teacher
        self._options = options
        self._classes = [info.id for info in context.classes]
        self.fingerprint = fingerprint(
            version=EXEMPLAR,
            options=options.model_dump(),
            teacher=[self._teacher.fingerprint, self._teacher.profile],
            classes=self._classes,
            exemplars=[
                [r.id, r.fingerprint, _shown_by(context.archive[r.id].labels(GOLD)), intensity_inputs(context.plan.intensity, r)]
                for r in records
            ],
        )
        self._slices = [one for record in records for one in self._show(context, record)]
        if not any(one.seen.masks[class_id].any() for one in self._slices for class_id in self._classes if class_id in one.seen.masks):
            message = f"none of the exemplars {', '.join(r.id for r in records)} shows any of the classes {self._classes} in its gold."
            raise PlanError(message)
        self._known: dict[str, _Known | None] = {}
        self.warning = _never_absent(context.classes, self._slices) if options.presence else ""

    @cached_property
    def _shown(self) -> list[_Shown]:
        """The exemplar slices and their variations, encoded."""
        return self._vary(self._slices)

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return a box and a point per slice on which a class is believed to be, or that it is absent."""
        wanted = [info.id for info in subject.classes]
        known = self._knowledge(subject.record.patient)
        if not wanted or known is None:
            return []
        cells = encode_slices(self._teacher, [subject.picture(z) for z in range(subject.record.shape_czyx[1])])
        return [prompt for class_id in wanted if class_id in known.cuts for prompt in self._about(subject, class_id, known, cells)]

    def _about(self, subject: Subject, class_id: int, known: _Known, cells: Sequence[Cells]) -> Iterable[Prompt]:
        size = subject.record.shape_czyx[2:]
        maps = [enlarge(known.prototypes.score(each, class_id), size) for each in cells]
        cut = known.cuts[class_id]
        present = present_run([float(each.max()) for each in maps], cut)
        if not len(present):
            return [Prompt(case=subject.record.id, class_id=class_id, kind="absent", confidence=cut.confidence_of_absence)]
        return [prompt for z in present for prompt in as_prompts(subject.record, class_id, int(z), place_of(maps[z], cut))]

    def _knowledge(self, patient: str) -> _Known | None:
        """Return what is known without the gold of this patient; None if nothing is left then."""
        own = patient if any(shown.patient == patient for shown in self._shown) else ""
        if own not in self._known:
            self._known[own] = self._learn([shown for shown in self._shown if shown.patient != own])
        return self._known[own]

    def _learn(self, shown: Sequence[_Shown]) -> _Known | None:
        prototypes = self._prototypes(shown)
        if prototypes is None:
            return None
        known = _Known(prototypes)
        held = list(self._held_out(shown, prototypes))
        for class_id in sorted(prototypes.classes):
            about = [each for each in held if each.class_id == class_id]
            if not any(each.mask.any() for each in about):  # a single patient shows it, about whom nobody else can say anything
                about = [_scored(each, class_id, prototypes) for each in shown if _tells(each, class_id)]
            known.cuts[class_id] = learn_cut(about, presence=self._options.presence)
        return known

    def _prototypes(self, shown: Sequence[_Shown]) -> Prototypes | None:
        if not any(each.masks[class_id].any() for each in shown for class_id in self._classes if class_id in each.masks):
            return None
        return learn(
            [each.example for each in shown], self._classes, prototypes=self._options.prototypes, background=self._options.background
        )

    def _held_out(self, shown: Sequence[_Shown], everything: Prototypes) -> Iterable[Held]:
        """Score each slice by what the others teach: other patients, or other cases where all are of one patient; alone, by itself."""
        by_patient = len({each.patient for each in shown}) > 1
        groups = {each.patient if by_patient else each.case for each in shown}
        for group in sorted(groups):
            inside = [each for each in shown if (each.patient if by_patient else each.case) == group]
            others = self._prototypes([each for each in shown if each not in inside]) if len(groups) > 1 else everything
            for each in inside:
                for class_id in self._classes:
                    if others is not None and class_id in others.classes and _tells(each, class_id):
                        yield _scored(each, class_id, others)

    def _show(self, context: SourceContext, record: CaseRecord) -> Iterable["_Slice"]:
        """Read the slices of one exemplar that teach something: some with a class, and some without."""
        subject = context.subject(record, context.classes)
        labels = context.archive[record.id].labels(GOLD)
        gold, named = labels.read(), {info.id for info in labels.history.classes}
        judged = [class_id for class_id in self._classes if class_id in named]
        for z in sorted({z for class_id in judged for z in _teaching_slices(gold == class_id, gold == IGNORE, self._options.slices)}):
            masks = {class_id: gold[z] == class_id for class_id in (*judged, IGNORE)}
            yield _Slice(record=record, height=_height(z, len(gold)), seen=Variation(picture=subject.picture(z), masks=masks))

    def _vary(self, slices: Sequence["_Slice"]) -> list[_Shown]:
        """Encode slices, and variations of them as far as so many are worth their time."""
        rng = np.random.default_rng(0)
        each_times = min(self._options.variations, max(0, MOST_ENCODED // max(len(slices), 1) - 1))
        seen = [*slices, *(replace(one, seen=vary(one.seen.picture, one.seen.masks, rng)) for one in slices for _ in range(each_times))]
        cells = encode_slices(self._teacher, [one.seen.picture for one in seen], [one.height for one in seen])
        return [_shown(one, grid) for one, grid in zip(seen, cells, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Slice:
    """An exemplar slice before it is encoded."""

    record: CaseRecord
    height: float
    seen: Variation


def _never_absent(classes: Sequence[ClassInfo], slices: Sequence[_Slice]) -> str:
    """Say of which of the classes that exemplars show no slice is known to be without them; where there is one for each, nothing."""
    shown = [info for info in classes if any(one.seen.masks[info.id].any() for one in slices if info.id in one.seen.masks)]
    never = [info.name for info in shown if not any(_is_without(one.seen.masks, info.id) for one in slices)]
    if not never:
        return ""
    return (
        f"exemplar has seen no slice without {' nor without '.join(never)}, so it cannot tell where that is not, and proposes it in every case. Let gold of calibration "
        "cases also say 0 on whole slices that do not show it"
    )


def _is_without(masks: Mapping[int, np.ndarray], class_id: int) -> bool:
    return class_id in masks and not masks[class_id].any() and not masks[IGNORE].any()


def _shown(one: _Slice, cells: Cells) -> _Shown:
    grid = (cells.features.shape[0], cells.features.shape[1])
    fractions = {class_id: shrink(mask, grid) for class_id, mask in one.seen.masks.items()}
    return _Shown(case=one.record.id, patient=one.record.patient, example=Example(cells=cells, fractions=fractions), masks=one.seen.masks)


def _shown_by(gold: Labels) -> str:
    """Return a hash of what gold shows, which stays the same when the same files are brought in again: copied, moved or only touched."""
    ids = gold.read()
    mark = blake2b(repr((ids.shape, ids.dtype.str, sorted(info.id for info in gold.history.classes))).encode(), digest_size=16)
    mark.update(np.ascontiguousarray(ids).data)
    if (ids == IGNORE).any():
        mark.update(OPEN.encode())
    return mark.hexdigest()


def _tells(shown: _Shown, class_id: int) -> bool:
    """Say whether it is known of a slice if the class is on it: its gold is about the class, and nothing was left open where it might be."""
    mask = shown.masks.get(class_id)
    return mask is not None and bool(mask.any() or not shown.masks[IGNORE].any())


def _scored(shown: _Shown, class_id: int, by: Prototypes) -> Held:
    mask = shown.masks[class_id]
    scores = enlarge(by.score(shown.example.cells, class_id), (mask.shape[0], mask.shape[1]))
    return Held(class_id=class_id, scores=scores, mask=mask, left_open=shown.masks[IGNORE])


def _teaching_slices(mask: np.ndarray, left_open: np.ndarray, count: int) -> list[int]:
    """Return slices that a mask ``(z, y, x)`` bool shows something on, and as many of which it is known that it is not on them, evenly spread.

    Slices of which only a part was judged are among the latter where no whole one was; those that nobody drew on teach nothing.
    """
    here, some, everything = mask.any(axis=(1, 2)), left_open.any(axis=(1, 2)), left_open.all(axis=(1, 2))
    known = ~here & ~(some if (~here & ~some).any() else everything)
    with_it, without = np.flatnonzero(here), np.flatnonzero(known)
    return [int(found[n]) for found in (with_it, without) for n in _evenly(len(found), count)]


def _height(z: int, depth: int) -> float:
    return (z + 0.5) / depth


def encode_slices(teacher: Teacher, pictures: Sequence[np.ndarray], heights: Sequence[float] | None = None) -> list[Cells]:
    """Encode pictures ``(H, W, 3)`` in calls of one size, and cut the padding off.

    Args:
        teacher: whose features are wanted.
        pictures: slices of one case.
        heights: place of each in its volume, 0 to 1; by default the pictures are all slices in order.
    """
    places = [_height(z, len(pictures)) for z in range(len(pictures))] if heights is None else heights
    found: list[Cells] = []
    for start in range(0, len(pictures), PICTURES):
        some = list(pictures[start : start + PICTURES])
        encoded = teacher.encode(some + [some[-1]] * (PICTURES - len(some) if len(pictures) > 1 else 0))
        features = encoded.features[: len(some)].float().cpu().numpy()
        side = teacher.profile.image_size
        for at, grid in enumerate(features):
            rows, columns = (max(1, round(grid.shape[n + 1] * encoded.input_sizes_px[at][n] / side)) for n in (0, 1))
            found.append(Cells(features=np.ascontiguousarray(grid[:, :rows, :columns].transpose(1, 2, 0)), z=places[start + at]))
    return found


def enlarge(scores: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Bring a grid of scores to picture resolution ``(H, W)``."""
    return np.asarray(cv2.resize(scores.astype(np.float32), size_px[::-1], interpolation=cv2.INTER_CUBIC))


def shrink(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return which share of each cell of a grid a mask fills."""
    interpolation = cv2.INTER_AREA if mask.shape[0] >= grid[0] and mask.shape[1] >= grid[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=interpolation))


def as_prompts(record: CaseRecord, class_id: int, z: int, place: Place) -> list[Prompt]:
    """Write a place as a box and a point."""
    x0, y0, x1, y1 = (round(each, 2) for each in place.box_xyxy_px)
    box = Prompt(
        case=record.id, class_id=class_id, kind="box", slice=z, box_xyxy_px=(x0, y0, x1, y1), confidence=round(place.confidence, 4)
    )
    return [box, replace(box, kind="point", box_xyxy_px=None, points_xy_px=(place.centre_xy_px,))]
