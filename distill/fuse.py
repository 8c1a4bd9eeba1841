"""Several teachers: each has drawn a label set of its own, and these become one.

Method. Between teachers, the masks of each class are fused by STAPLE (``distill.staple``), with the teachers' mean probability as what is likely before
they vote: with two teachers votes alone cannot decide, and a prior that is the same everywhere decides by the size of the box. Its posterior, or
else the mean itself, is the fused probability; how well each teacher did is kept in the history. Scores that every teacher has are averaged, and ``teacher_agreement`` says how much the teachers
agree: the mean Dice over all pairs of them, the one score here that sees what a single teacher is sure of and wrong about.

A case is one unit of the ledger, in the stage of the fused label set. Cases that a teacher has not finished wait.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import PlanError
from distill.staple import staple
from distill.uncertainty import LN2, binary_entropy, pairwise_dice
from distill.withdrawal import made_anew, withdraw_labels
from storage import Archive, Case, ClassInfo, LabelHistory, Labels, fingerprint
from storage.working import work_through

FUSE = "1"
"""Raised whenever the same masks are fused otherwise."""
FuseRule = Literal["staple", "mean"]
"""What the fused probability is: STAPLE's posterior, or the mean of the teachers' probabilities."""
_TOP = 255
_OWN = frozenset({"volume_mm3", "teacher_agreement"})
"""Scores of the fused mask itself, which teachers' are not averaged for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePlan:
    """Which label sets become which."""

    members: tuple[str, ...]
    """The label sets of the teachers, two or more, in the order of the recipe."""
    classes: tuple[ClassInfo, ...]
    label_set: str = "teacher/r1"
    rule: FuseRule = "staple"

    def __post_init__(self) -> None:
        """Refuse what is no fusion."""
        if len(set(self.members)) < max(2, len(self.members)) or self.label_set in self.members:
            message = f"fusing takes two or more different label sets into another one, but got {', '.join(self.members) or 'none'} into {self.label_set}."
            raise PlanError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseSummary:
    """What a run of fusing did."""

    label_set: str
    done: int
    skipped: int
    waiting: tuple[str, ...]
    """Cases that some of the teachers, and not all, have labelled."""
    quarantined: tuple[str, ...]
    unfinished: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fused:
    """One case after fusing."""

    ids: np.ndarray
    """``(z, y, x)`` uint8."""
    probability: np.ndarray
    """``(k, z, y, x)`` uint8, in the order of the plan's classes."""
    uncertainty: np.ndarray
    """``(z, y, x)`` uint8, 255 = an entropy of ln 2."""
    maps: dict[str, np.ndarray]
    """``vote`` and ``mutual_information`` of all members of all teachers, where every teacher has them; ``unknown`` where any teacher has it."""
    scores: dict[str, float]
    believed: dict[str, float]
    """``sensitivity/CLASS/TEACHER`` and ``specificity/CLASS/TEACHER``; teachers count from 1."""


def fuse_archive(
    archive: Archive, plan: FusePlan, *, cases: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> FuseSummary:
    """Fuse every case that all teachers have labelled and that does not yet carry this fusion; take back what others carry from before.

    Args:
        archive: where the label sets live.
        plan: which to fuse.
        cases: restrict to these ids; default all.
        progress: called with (cases finished, cases to do).
    """
    began = time.monotonic()
    complete, waiting = _complete(archive, plan, cases)
    outdated = archive.catalog.fingerprints(plan.label_set).keys() - set(complete)
    withdrawn = withdraw_labels(archive, plan.label_set, sorted(outdated if cases is None else outdated & set(cases)))
    prints = _fingerprints(archive, plan, complete)

    stage = f"label:{plan.label_set}"

    def fuse(case: str) -> None:
        with made_anew(archive, stage, case, plan.label_set):
            _fuse(archive[case], plan, prints[case])

    worked = work_through(archive.ledger, stage, prints, fuse, progress=progress)
    return FuseSummary(
        label_set=plan.label_set,
        done=len(worked.done),
        skipped=worked.skipped,
        waiting=waiting,
        quarantined=worked.quarantined,
        unfinished=worked.unfinished + len(withdrawn.held),
        seconds=time.monotonic() - began,
    )


def _complete(archive: Archive, plan: FusePlan, cases: Sequence[str] | None) -> tuple[list[str], tuple[str, ...]]:
    """Return the cases that every teacher has finished, and those that only some have; labels of an earlier, unfinished state do not count."""
    wanted = None if cases is None else set(cases)
    finished = []
    for member in plan.members:
        stage = f"label:{member}"
        marked = [case for case in archive.catalog.fingerprints(member) if wanted is None or case in wanted]
        without = {*archive.ledger.unfinished(stage, marked), *(unit.unit for unit in archive.ledger.quarantined(stage))}
        finished.append(set(marked) - without)
    every = set.intersection(*finished)
    return sorted(every), tuple(sorted(set.union(*finished) - every))


def _fingerprints(archive: Archive, plan: FusePlan, cases: Sequence[str]) -> dict[str, str]:
    marks = [archive.catalog.fingerprints(member) for member in plan.members]
    return {case: fingerprint(fuse=FUSE, members=[mark[case] for mark in marks], classes=plan.classes, rule=plan.rule) for case in cases}


def _fuse(case: Case, plan: FusePlan, mark: str) -> None:
    """Fuse the label sets of one case, and write what comes of it."""
    labels = [case.labels(member) for member in plan.members]
    fused = fuse_case(case, labels, plan)
    case.write_labels(
        _history(plan, [each.history for each in labels], fused, mark),
        fused.ids,
        probability_kzyx=fused.probability,
        uncertainty_zyx=fused.uncertainty,
        maps=fused.maps,
        scores=fused.scores,
    )


def fuse_case(case: Case, labels: Sequence[Labels], plan: FusePlan) -> Fused:
    """Fuse the label sets of one case; writes nothing.

    Raises:
        PlanError: if a label set carries no probabilities.
    """
    shape = case.record.shape_czyx[1:]
    stack = np.zeros((len(plan.classes), *shape), np.float32)
    scores = _averaged([each.scores for each in labels])
    between = np.zeros_like(stack)
    believed: dict[str, float] = {}
    voxel_mm3 = float(np.prod(case.spacing_zyx_mm))
    for n, info in enumerate(plan.classes):
        if f"pairwise_dice/{info.id}" not in scores:
            continue  # nobody was asked about it
        drawn = np.stack([_probability(case, each, info.id) for each in labels])
        votes = drawn > _TOP // 2
        mean = drawn.mean(axis=0, dtype=np.float32)
        consensus = staple(votes, np.rint(mean).astype(np.uint8))
        between[n] = disagreement(drawn.astype(np.float32) / _TOP)
        stack[n] = consensus.posterior if plan.rule == "staple" else mean / _TOP
        scores[f"teacher_agreement/{info.id}"] = pairwise_dice(votes)
        scores[f"volume_mm3/{info.id}"] = float((stack[n] > 0.5).sum()) * voxel_mm3
        for teacher, (found, spared) in enumerate(zip(consensus.sensitivity, consensus.specificity, strict=True), start=1):
            believed |= {f"sensitivity/{info.id}/{teacher}": found, f"specificity/{info.id}/{teacher}": spared}
    ids = np.array([info.id for info in plan.classes], np.uint8)[stack.argmax(axis=0)]
    return Fused(
        np.where(stack.max(axis=0) > 0.5, ids, 0).astype(np.uint8),
        np.rint(_TOP * stack).astype(np.uint8),
        np.rint(_TOP * binary_entropy(stack).max(axis=0) / LN2).astype(np.uint8),
        _maps(labels, [info.id for info in plan.classes], between),
        scores,
        believed,
    )


def _probability(case: Case, labels: Labels, class_id: int) -> np.ndarray:
    """Return what one teacher thinks of one class, ``(z, y, x)`` uint8."""
    order = [info.id for info in labels.history.classes]
    stored = labels.probability
    if stored is None or class_id not in order:
        message = (
            f"case {case.id}: label set {labels.history.label_set!r} has no probability of class {class_id}, which fusing needs. "
            "It was probably imported rather than made by a teacher."
        )
        raise PlanError(message)
    return np.asarray(stored[order.index(class_id)])


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """Return the mutual information in nats between a voxel and who is asked about it: 0 where all teachers ``(J, ...)`` think the same."""
    between: np.ndarray = binary_entropy(probabilities.mean(axis=0)) - binary_entropy(probabilities).mean(axis=0)
    return between


def _maps(labels: Sequence[Labels], classes: Sequence[int], between: np.ndarray) -> dict[str, np.ndarray]:
    """Return the maps of all members together: what members of one teacher contradict each other in, and what teachers do (they add up).

    What any of them has lost track of is unknown.

    Args:
        labels: of each teacher.
        classes: ids.
        between: ``(k, z, y, x)`` in nats, how much teachers contradict each other about each class.
    """
    found: dict[str, np.ndarray] = {}
    if all("mutual_information" in each.maps for each in labels):
        within = _stacked(labels, "mutual_information", classes).mean(axis=0, dtype=np.float32)
        found["mutual_information"] = np.rint(np.clip(within + _TOP * between / LN2, 0, _TOP)).astype(np.uint8)
    if any("unknown" in each.maps for each in labels):
        found["unknown"] = _stacked(labels, "unknown", classes).max(axis=0)
    if all("vote" in each.maps for each in labels):
        found["vote"] = np.rint(_stacked(labels, "vote", classes).mean(axis=0, dtype=np.float32)).astype(np.uint8)
    return {name: each[0] if len(classes) == 1 else each for name, each in found.items()}


def _stacked(labels: Sequence[Labels], name: str, classes: Sequence[int]) -> np.ndarray:
    """Return a map of every teacher and class, ``(J, k, z, y, x)`` uint8; 0 where one has none."""
    stacked = np.zeros((len(labels), len(classes), *labels[0].ids.shape), np.uint8)
    for each, row in zip(labels, stacked, strict=True):
        for n, class_id in enumerate(classes):
            said = each.class_map(name, class_id)
            if said is not None:
                row[n] = said
    return stacked


def _averaged(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every score that all teachers have."""
    shared = set.intersection(*(set(each) for each in scores))
    return {name: float(np.mean([each[name] for each in scores])) for name in sorted(shared) if name.split("/")[0] not in _OWN}


def _history(plan: FusePlan, members: Sequence[LabelHistory], fused: Fused, mark: str) -> LabelHistory:
    believed: dict[str, str | float | int | bool | list[float]] = {name: round(value, 4) for name, value in fused.believed.items()}
    return LabelHistory(
        label_set=plan.label_set,
        classes=plan.classes,
        made_by=f"distill.fuse/{FUSE}",
        teacher="+".join(each.teacher for each in members),
        prompt_source=members[0].prompt_source,
        parameters={"rule": plan.rule, **believed},
        parents=plan.members,
        fingerprint=mark,
    )
