"""Source ``everything``: all masks that the teacher finds on a grid of points, sorted into classes by what they look like.

The rules about intensity, area, place and shape stand in the recipe, or are fitted to experts' labels of a few calibration cases; a case of an
exemplar's patient is judged without that patient's. Nobody has shown that rules alone find organs well: a mask that fits is a candidate, and
its confidence says by how much it fits better than anything else would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from distill.automatic import Candidate
from distill.errors import PlanError
from distill.intensity import DEFAULT, IntensitySpec, seen_channel
from distill.prompts.everything_options import TRAITS, EverythingOptions, Look
from distill.prompts.nameless import masks_by_slice, piece_of
from distill.prompts.ontology import Choice, Expectation, assign, expect, shared
from distill.prompts.pieces import Piece, pieces_of, prompts_of
from distill.prompts.sources import SourceContext, Subject
from distill.prompts.traits import Surroundings
from distill.teachers.base import Teacher
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Prompt, fingerprint

VERSION = "1"
"""Raised whenever the same options choose other masks."""
GOLD = "gold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """What gold of one case says about the classes."""

    patient: str
    traits: Mapping[int, np.ndarray]
    """Class id -> ``(N, T)``, a row for each piece on each slice."""


class EverythingSource:
    """Sorts nameless masks into classes."""

    name = "everything"
    channel_version = "2"
    """1 looked at the mean of all channels; 2 looks at the channel that is shown."""

    def __init__(self, teacher: Teacher, options: EverythingOptions, looks: Mapping[int, Look], exemplars: Sequence[Exemplar]) -> None:
        """Take what the classes look like, by class id and by exemplar."""
        self.teacher, self.options, self.looks, self.exemplars = teacher, options, dict(looks), tuple(exemplars)
        seen = [[each.patient, {str(key): rows.round(9).tolist() for key, rows in each.traits.items()}] for each in self.exemplars]
        self.fingerprint = fingerprint(
            version=VERSION,
            options=options.model_dump_json(exclude={"classes"}),
            looks={str(key): look.model_dump_json() for key, look in sorted(self.looks.items())},
            seen=seen,
            teacher=[teacher.fingerprint, teacher.profile],
        )

    def expectations(self, subject: Subject) -> dict[int, Expectation]:
        """Return what the classes that are asked for look like; of the case's own patient nothing is used."""
        others = [each for each in self.exemplars if each.patient != subject.record.patient]
        found = {}
        for info in subject.classes:
            seen = [each.traits[info.id] for each in others if info.id in each.traits]
            expected = expect(self.looks.get(info.id), np.concatenate(seen) if seen else np.zeros((0, len(TRAITS))))
            if expected is not None:
                found[info.id] = expected
        return found

    def propose(self, subject: Subject) -> list[Prompt]:
        """Return the prompts of every mask that fits a class."""
        expected = self.expectations(subject)
        if not expected:
            return []
        around = Surroundings(subject.record, subject.volume_czyx, subject.shown)
        prompts: list[Prompt] = []
        for z, candidates in masks_by_slice(self.teacher, subject, self.options.grid):
            pieces = [piece_of(each, z) for each in candidates]
            if pieces:
                for choice in self._choose(candidates, pieces, around, expected):
                    prompts += self._prompts(subject.record, pieces[choice.mask], choice)
        told = {prompt.class_id for prompt in prompts}
        missing = [key for key in expected if key not in told and key in self.looks and self.looks[key].absent]
        return prompts + [Prompt(case=subject.record.id, class_id=key, kind="absent") for key in missing]

    def _choose(
        self, candidates: Sequence[Candidate], pieces: Sequence[Piece], around: Surroundings, expected: Mapping[int, Expectation]
    ) -> list[Choice]:
        """Give the masks of a slice their classes."""
        traits = np.stack([around.traits(piece) for piece in pieces])
        overlap = shared(np.stack([each.mask for each in candidates]))
        unsure = self.options.unsure * (1 - np.array([each.predicted_iou for each in candidates]))
        return assign(traits, overlap, expected, reject=self.options.reject, unsure=unsure)

    def _prompts(self, record: CaseRecord, piece: Piece, choice: Choice) -> list[Prompt]:
        options = self.options
        return prompts_of(record, choice.class_id, piece, give=options.give, margin=options.margin, confidence=choice.confidence)


def make_everything(context: SourceContext, options: EverythingOptions | None) -> EverythingSource:
    """Make the source from the recipe's rules and the exemplars.

    Raises:
        PlanError: if a rule is about no class of the run, if nothing says what any class looks like, or if there are too few exemplars.
    """
    options = options or EverythingOptions()
    looks = looks_of(options.classes, context.classes)
    exemplars = read_exemplars(context.archive, context.classes, options.exemplars, context.plan.intensity) if options.exemplars else []
    if not looks and not exemplars:
        message = (
            "the source everything knows of no class what it looks like. Say it under prompts.everything.classes, such as "
            "{liver: {intensity: [30, 90], area: [2000, 30000], side: right}}, or name a number of exemplars (calibration cases with gold)."
        )
        raise PlanError(message)
    return EverythingSource(context.teacher, options, looks, exemplars)


def looks_of(given: Mapping[str, Look], classes: Sequence[ClassInfo]) -> dict[int, Look]:
    """Return the rules by class id.

    Raises:
        PlanError: if one is about no class of the run.
    """
    known = {name: info.id for info in classes for name in (str(info.id), info.name)}
    if strangers := sorted(set(given) - set(known)):
        message = (
            f"prompts.everything.classes has a rule for {strangers[0]!r}, but there is no such class. Known: {', '.join(sorted(known))}."
        )
        raise PlanError(message)
    return {known[name]: look for name, look in given.items()}


def read_exemplars(archive: Archive, classes: Sequence[ClassInfo], count: int, intensity: IntensitySpec = DEFAULT) -> list[Exemplar]:
    """Return what the gold of so many calibration cases says, evenly over all of them in order of name.

    Raises:
        PlanError: if there are fewer.
    """
    records = archive.cases(part="calibration", with_labels=GOLD)
    if len(records) < count:
        message = (
            f"prompts.everything.exemplars is {count}, but {len(records)} calibration cases have gold. Name fewer, or bring gold labels."
        )
        raise PlanError(message)
    chosen = sorted({int(n) for n in np.linspace(0, len(records) - 1, count).round()})
    return [_exemplar(archive, records[n], classes, intensity) for n in chosen]


def _exemplar(archive: Archive, record: CaseRecord, classes: Sequence[ClassInfo], intensity: IntensitySpec) -> Exemplar:
    case = archive[record.id]
    around, gold = Surroundings(record, case.read(), seen_channel(record, intensity)), case.labels(GOLD).read()
    rows = {info.id: [around.traits(piece) for piece in _pieces(gold, info.id)] for info in classes}
    return Exemplar(patient=record.patient, traits={key: np.stack(found) for key, found in rows.items() if found})


def _pieces(gold: np.ndarray, class_id: int) -> list[Piece]:
    """Return the pieces of a class whose size is known; those that go on, perhaps, where gold leaves open what is there only if all do."""
    found = list(pieces_of((gold == class_id).astype(np.int32)))
    left_open = [gold[piece.z] == IGNORE for piece in found]
    whole = [
        piece for piece, near in zip(found, left_open, strict=True) if not (ndimage.binary_dilation(near) & piece.on(near.shape)).any()
    ]
    return whole or found
