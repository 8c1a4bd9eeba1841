"""Which masks a person should look at first, and what the random ones among their verdicts say about all.

Of every five masks in the queue two are those that other evidence contradicts most, two those whose score is nearest to the threshold
of acceptance, where a verdict changes most, and one is drawn at random. Only the random ones tell how good the masks are on
the whole: the others are looked at because something was odd about them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from math import isnan, nan

from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest, rankdata

from storage import Archive, ReviewRecord
from storage.records import Sampling

SEED = "samdistill-review-1"
"""Of the random order. It never changes, so that the random part is the same in every listing and for every reviewer."""
PATTERN = ("disagreeing", "uncertain", "disagreeing", "uncertain", "random")
"""Which kind stands where in the queue, again and again: 40 %, 40 % and 20 % of any length."""
EVIDENCE = ("oof_dice", "prior", "teacher_agreement", "rca_dice", "round_trip_dice", "plane_agreement")
"""Scores that can contradict a mask on which the teacher agrees with itself; low is suspicious."""
OWN = "pairwise_dice"
"""What refinement holds against its threshold of acceptance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlan:
    """Whose masks are queued."""

    classes: tuple[int, ...]
    source: str = "teacher/r1"
    accept_from: Mapping[int, float] = field(default_factory=dict)
    """By class id: the score from which refinement accepts."""
    default_accept_from: float = 0.85


class Candidate(BaseModel):
    """One mask that a person may judge: one class of one case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    class_id: int
    source: Sampling
    """``random`` or ``ranked``."""
    why: str
    """For a person: which score put it here."""


class Estimate(BaseModel):
    """What the verdicts on the random part say about all masks; a person's verdicts, and no Dice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: int
    """Masks there are to judge: each class of each archive case that the teacher drew."""
    drawn: int
    """Of these, the random ones up to the last that somebody has judged."""
    judged: int
    accepted: int
    share: float | None
    """Accepted of judged."""
    low: float | None
    """Wilson's 95 % interval."""
    high: float | None
    filter_judged: int
    """Of those judged: masks that refinement had accepted by itself."""
    filter_accepted: int
    """... and that the person accepted too."""
    filter_share: float | None
    filter_low: float | None
    filter_high: float | None

    @property
    def missing(self) -> int:
        """Random masks that were passed over; while there are any, the estimate may be biased."""
        return self.drawn - self.judged


Key = tuple[str, int]
"""Case and class id."""


def lot(case: str, class_id: int) -> str:
    """Return a mask's place in the random order: a hash, so that new cases do not move the others."""
    return hashlib.blake2b(f"{SEED}/{case}/{class_id}".encode(), digest_size=12).hexdigest()


def review_queue(archive: Archive, plan: QueuePlan, limit: int) -> list[Candidate]:
    """Return the masks of the archive part that nobody has judged, those worth most to look at first.

    Reads the catalog alone. Where nothing contradicts the masks yet, the uncertain ones take those places.

    Args:
        archive: the archive.
        plan: whose masks.
        limit: at most so many.
    """
    scores = _drawn(archive, plan)
    judged = {(review.case, review.class_id) for review in archive.catalog.reviews(plan.source)}
    waiting = {key: found for key, found in scores.items() if key not in judged}
    kinds = {
        "random": iter(_by_lot(waiting)),
        "disagreeing": iter(_by_evidence(scores, waiting)),
        "uncertain": iter(_by_nearness(waiting, plan)),
    }
    return _interleaved(kinds, limit)


def estimate(archive: Archive, plan: QueuePlan) -> Estimate:
    """Return the share of masks that people accept, from the random part alone.

    The random part are the first masks of the random order, up to the last one that somebody judged because it was random. One of
    them that was judged for another reason counts as well: to leave it out would leave out the odd ones. Where every mask has a verdict,
    all of them count.
    """
    masks = _drawn(archive, plan)
    reviews = {(review.case, review.class_id): review for review in archive.catalog.reviews(plan.source)}
    complete = masks.keys() <= reviews.keys()
    ends = [lot(*key) for key, review in reviews.items() if key in masks and (complete or review.source == "random")]
    drawn = [key for key in masks if ends and lot(*key) <= max(ends)]
    found = [reviews[key] for key in drawn if key in reviews]
    by_filter = [review for review in found if review.filter_said == "accept"]
    share, low, high = _wilson(found)
    filter_share, filter_low, filter_high = _wilson(by_filter)
    return Estimate(
        masks=len(masks),
        drawn=len(drawn),
        judged=len(found),
        accepted=_accepted(found),
        share=share,
        low=low,
        high=high,
        filter_judged=len(by_filter),
        filter_accepted=_accepted(by_filter),
        filter_share=filter_share,
        filter_low=filter_low,
        filter_high=filter_high,
    )


def _drawn(archive: Archive, plan: QueuePlan) -> dict[Key, dict[str, float]]:
    """Return the scores of every mask of the archive part, by score and without class ids in the names."""
    mine = {record.id for record in archive.cases(part="archive", with_labels=plan.source)}
    found: dict[Key, dict[str, float]] = {}
    for case, scores in archive.catalog.scores(plan.source).items():
        for class_id in plan.classes if case in mine else ():
            own = {name.rpartition("/")[0]: value for name, value in scores.items() if name.endswith(f"/{class_id}")}
            if OWN in own:
                found[case, class_id] = own
    return found


def _by_lot(waiting: Mapping[Key, object]) -> list[Candidate]:
    order = sorted(waiting, key=lambda key: lot(*key))
    return [Candidate(case=case, class_id=class_id, source="random", why="drawn at random") for case, class_id in order]


def _by_evidence(scores: Mapping[Key, Mapping[str, float]], waiting: Mapping[Key, object]) -> list[Candidate]:
    """Rank by the worst place that a mask has in any kind of evidence, among all masks of its class: scores have no common scale."""
    worst: dict[Key, tuple[float, str, float]] = {}
    for name in EVIDENCE:
        for class_id in sorted({key[1] for key in scores}):
            known = {key: found[name] for key, found in scores.items() if key[1] == class_id and not isnan(found.get(name, nan))}
            places = rankdata(list(known.values()), method="average") / max(len(known), 1)
            for (key, value), place in zip(known.items(), places, strict=True):
                worst[key] = min(worst.get(key, (2.0, "", 0.0)), (float(place), name, value))
    order = sorted((key for key in worst if key in waiting), key=lambda key: (worst[key][0], lot(*key)))
    reasons = {key: f"contradicted: {worst[key][1]} {worst[key][2]:.3f}" for key in order}
    return [Candidate(case=key[0], class_id=key[1], source="ranked", why=why) for key, why in reasons.items()]


def _by_nearness(waiting: Mapping[Key, Mapping[str, float]], plan: QueuePlan) -> list[Candidate]:
    """Rank by distance to the threshold of acceptance; of two that are as near, the lower first."""
    found = []
    for (case, class_id), scores in waiting.items():
        threshold = plan.accept_from.get(class_id, plan.default_accept_from)
        known = "accepted from" if class_id in plan.accept_from else "threshold not known here, by default"
        why = f"uncertain: {OWN} {scores[OWN]:.3f}, {known} {threshold:.3f}"
        distance = abs(scores[OWN] - threshold)
        found.append((distance, scores[OWN], lot(case, class_id), Candidate(case=case, class_id=class_id, source="ranked", why=why)))
    return [candidate for *_, candidate in sorted(found, key=lambda each: each[:3])]


def _interleaved(kinds: Mapping[str, Iterator[Candidate]], limit: int) -> list[Candidate]:
    """Fill the places of the pattern, each mask once; a kind that is used up leaves its places to the others, the random kind last."""
    chosen: dict[Key, Candidate] = {}
    for kind in cycle(PATTERN):
        others = [each for each in ("disagreeing", "uncertain", "random") if each != kind]
        waiting = (each for name in (kind, *others) for each in kinds[name] if (each.case, each.class_id) not in chosen)
        candidate = next(waiting, None)
        if candidate is None or len(chosen) >= limit:
            break
        chosen[candidate.case, candidate.class_id] = candidate
    return list(chosen.values())


def _accepted(reviews: Sequence[ReviewRecord]) -> int:
    return sum(review.verdict == "accept" for review in reviews)


def _wilson(reviews: Sequence[ReviewRecord]) -> tuple[float | None, float | None, float | None]:
    """Return the accepted share with its interval (Wilson, 1927); nothing of nothing."""
    if not reviews:
        return None, None, None
    accepted = _accepted(reviews)
    interval = binomtest(accepted, len(reviews)).proportion_ci(method="wilson")
    return accepted / len(reviews), float(interval.low), float(interval.high)
