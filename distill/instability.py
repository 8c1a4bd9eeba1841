"""How much a case's labels changed from round to round: those that change most are the ones that nobody is sure of.

The measure, and leaving out the worst, is that of the FLARE22 winners (Huang et al. 2022, doi 10.1007/978-3-031-23911-3_16): for rounds 1, 2 and 3
``u = (|y1 != y2| / |y2 > 0| + |y2 != y3| / |y3 > 0|) / 2``; they left out 76 of 2,000 cases.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Shaped

from storage import IGNORE, Archive, fingerprint
from storage.working import Worked, work_through

INSTABILITY = "instability"
"""Score of a label set: how much it differs from those of the rounds before."""
_VERSION = "1"
"""Raised whenever the same labels get another score."""
_ROUNDS = 3
"""Label sets that are looked at, the last ones: what a case was three rounds ago says nothing of now."""


def changed_share(before: Shaped[np.ndarray, "z y x"], after: Shaped[np.ndarray, "z y x"]) -> float:
    """Return the voxels whose class has changed, by the size of the objects afterwards; at most one voxel's worth is divided by.

    Voxels that either leaves open (``ignore``) say nothing; NaN where all are.
    """
    known = (before != IGNORE) & (after != IGNORE)
    if not known.any():
        return math.nan
    changed, size = int(np.count_nonzero((before != after) & known)), int(np.count_nonzero((after > 0) & known))
    return changed / max(size, 1)


def instability(labels: Sequence[Shaped[np.ndarray, "z y x"]]) -> float:
    """Return the mean change between successive labels of a case, the first one first; NaN where nothing can be compared."""
    shares = [changed_share(before, after) for before, after in pairwise(labels)]
    known = [share for share in shares if not math.isnan(share)]
    return float(np.mean(known)) if known else math.nan


def add_instability(
    archive: Archive, sets: Sequence[str], cases: Sequence[str], *, into: str, progress: Callable[[int, int], None] | None = None
) -> Worked[float]:
    """Score how much the last of several label sets differs from those before; once per state of the labels, and again where the score was lost.

    Args:
        archive: read from; its catalog is written to.
        sets: one per round, the first round first. A case that a round has not labelled is compared without that round.
        cases: those to look at, as far as they carry the last label set and that which gets the score.
        into: the label set that gets it, such as the last one; those written anew from the same inputs have lost their scores.
        progress: called with (cases done, cases to do).
    """
    looked_at, last = sets[-_ROUNDS:], sets[-1]
    marks = {name: archive.catalog.fingerprints(name) for name in {*looked_at, into}}
    prints = {
        case: fingerprint(version=_VERSION, labels=[marks[name].get(case, "") for name in looked_at])
        for case in cases
        if case in marks[last] and case in marks[into]
    }
    stage = f"{INSTABILITY}:{into}"
    _forget_lost(archive, stage, into, list(prints))

    def score(case: str) -> float:
        stored = archive[case]
        there = stored.label_sets()
        value = instability([stored.labels(name).read() for name in looked_at if name in there])
        archive.catalog.add_scores(case, into, {INSTABILITY: value})
        return value

    return work_through(archive.ledger, stage, prints, score, progress=progress)


def _forget_lost(archive: Archive, stage: str, label_set: str, cases: list[str]) -> None:
    """Have the ledger forget that cases were scored whose labels carry no score any more."""
    known = archive.catalog.scores(label_set, cases)
    without = {case for case in cases if INSTABILITY not in known.get(case, {})}
    archive.ledger.plan(stage, dict.fromkeys(without.difference(archive.ledger.unfinished(stage, without)), ""))


def most_changed(scores: Mapping[str, float], share: float) -> tuple[str, ...]:
    """Return the cases whose labels changed most, sorted: of so large a share of those that could be compared, rounded down.

    Cases that did not change at all are never among them.
    """
    known = {case: value for case, value in scores.items() if not math.isnan(value)}
    count = int(share * len(known) + 1e-9)
    worst = sorted(known, key=lambda case: (-known[case], case))[:count]
    return tuple(sorted(case for case in worst if known[case] > 0))
