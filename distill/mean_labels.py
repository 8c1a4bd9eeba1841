"""The mean of what students that never saw a case say of it and what the teacher drew: labels whose errors are half of each kind.

A teacher errs case by case, as its prompts have it, and students that learnt from many cases average over that; but they have errors of their own, and
say less about what is odd in this case. Two opinions whose errors differ have a better mean (bagging: Breiman 1996).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, UInt8

from distill.prompts.choice import ABSENT
from distill.unknown import unknown_map
from storage import IGNORE, Archive, Labels, fingerprint
from storage.working import Worked, work_through

_VERSION = "1"
"""Raised whenever the same labels give another mean."""
_TOP = 255


def mean_labels(
    archive: Archive,
    cases: Sequence[str],
    *,
    of: str,
    with_: str,
    into: str,
    progress: Callable[[int, int], None] | None = None,
) -> Worked[None]:
    """Write a label set with the mean of two probabilities, once per state of both; it looks like a teacher's, and can be refined as one.

    Where the teacher was not asked, or is not believed, students speak alone. Where it was told that a class is absent, the class
    stays absent, whatever students say: its probability is 0, and no Dice is promised.

    Args:
        archive: read from and written to.
        cases: those to look at, as far as students have answered.
        of: the students' answers, which have probabilities.
        with_: the teacher's masks; without probabilities the masks themselves are taken for these.
        into: the new one.
        progress: called with (cases done, cases to do).
    """
    answers, drawn = archive.catalog.fingerprints(of), archive.catalog.fingerprints(with_)
    absent = {case: _absent(scores) for case, scores in archive.catalog.scores(with_, [case for case in cases if case in answers]).items()}
    prints = {
        case: fingerprint(
            version=_VERSION,
            answer=answers[case],
            drawn=drawn.get(case, ""),
            **({"absent": sorted(told)} if (told := absent.get(case, {})) else {}),
        )
        for case in cases
        if case in answers
    }

    def write(case: str) -> None:
        stored = archive[case]
        answer, teacher = stored.labels(of), stored.labels(with_) if case in drawn else None
        order, told = [info.id for info in answer.history.classes], absent.get(case, {})
        mean = np.stack([_mean(answer, teacher, class_id) * np.float32(f"{ABSENT}/{class_id}" not in told) for class_id in order])
        ids = np.asarray([0, *order], np.uint8)[np.concatenate([1 - mean.sum(axis=0, keepdims=True), mean]).argmax(axis=0)]
        history = replace(
            answer.history,
            label_set=into,
            made_by="distill.mean_labels",
            parents=(of,) if teacher is None else (of, with_),
            fingerprint=prints[case],
        )
        drawn_too = {key: each for key, each in zip(order, mean, strict=True) if f"{ABSENT}/{key}" not in told}
        scores = {f"pairwise_dice/{key}": promised_dice(each, ids == key) for key, each in drawn_too.items()}
        stored.write_labels(history, ids, probability_kzyx=np.rint(mean * _TOP).astype(np.uint8), scores=scores | told)

    return work_through(archive.ledger, f"mean:{into}", prints, write, progress=progress)


def _absent(scores: Mapping[str, float]) -> dict[str, float]:
    """Return what a teacher was told about classes that are absent: ``absent/ID`` with how sure that is."""
    return {name: value for name, value in scores.items() if name.partition("/")[0] == ABSENT}


def _mean(answer: Labels, teacher: Labels | None, class_id: int) -> Float32[np.ndarray, "z y x"]:
    """Return the mean probability of a class, and what students say alone where the teacher says nothing."""
    said = _stored(answer, class_id)
    if teacher is None or f"pairwise_dice/{class_id}" not in teacher.scores:
        return said
    known = (unknown_map(teacher, class_id) == 0) & (teacher.read() != IGNORE)
    return np.asarray(np.where(known, (said + _stored(teacher, class_id)) / 2, said), np.float32)


def _stored(labels: Labels, class_id: int) -> Float32[np.ndarray, "z y x"]:
    """Return the probability of a class as it was stored, or the mask where no probability was; 0 of a class that it is not about."""
    order, stored = [info.id for info in labels.history.classes], labels.probability
    if stored is None or class_id not in order:
        return np.asarray(labels.read() == class_id, np.float32)
    place = order.index(class_id)
    return np.asarray(np.asarray(stored[place : place + 1], np.float32)[0] / np.float32(_TOP))


def promised_dice(probability: Float32[np.ndarray, "z y x"], mask: UInt8[np.ndarray, "z y x"]) -> float:
    """Return about the Dice that a mask would have if each voxel were of the object with its probability; 0 for an empty mask.

    ``2 sum(p in mask) / (|mask| + sum p)``. A net that is too sure promises too much, as an ensemble that agrees with itself does: it ranks masks, and
    gold says where to cut.
    """
    size = float(np.count_nonzero(mask))
    return (
        float(2 * probability[np.asarray(mask, bool)].sum(dtype=np.float64) / (size + probability.sum(dtype=np.float64))) if size else 0.0
    )
