"""Which masks of an archive a person is shown, what is said about each, and that they were shown it."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from distill.review_queue import Candidate, Estimate, estimate, review_queue
from distill.verdicts import MADE_OF
from flows.box_traces import box_traces
from flows.desk import Desk
from flows.results import PSEUDO_SET, TEACHER_SET
from storage import Case, ListingRecord
from storage.records import Sampling

State = Literal["to judge", "drawn again", "waits for the teacher"]
"""Of a mask: nobody has judged it; the teacher has drawn it with a person's new box, and nobody has judged that; or it is still to draw it."""


class Waiting(BaseModel):
    """One line of the queue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    class_id: int
    class_name: str
    state: State = "to judge"
    source: Sampling
    why: str
    filter_says: str
    """What refinement decided, and its reason; or that it has not looked at these masks yet."""
    predicted_dice: float | None = None
    """With gold, as calibration predicts it of the mask that refinement cuts; None where it predicts nothing ..."""
    predicted_low: float | None = None
    """... and its error bars."""
    predicted_high: float | None = None

    @property
    def predicted_words(self) -> str:
        """The predicted Dice and its error bars; empty where nothing is predicted."""
        if self.predicted_dice is None or self.predicted_low is None or self.predicted_high is None:
            return ""
        return f"{self.predicted_dice:.2f} ({self.predicted_low:.2f} to {self.predicted_high:.2f})"


def waiting(desk: Desk, limit: int) -> list[Waiting]:
    """Return the masks to look at first, and remember that this reviewer was shown them as they are now.

    Masks that the teacher has drawn again with somebody's box come before all others. Behind the last one stand those whose box still waits for
    the teacher, which are no work for a person.
    """
    # Looked up before all else: what is decided or drawn while the list is made has not been seen by who reads it.
    prints, revisions = desk.archive.catalog.fingerprints(TEACHER_SET), revisions_of(desk)
    traces = box_traces(desk.archive, desk.classes)
    again = {key: trace for key, trace in traces.items() if trace.is_drawn}
    candidates = review_queue(desk.archive, desk.plan, limit + len(again))
    sampled = {(each.case, each.class_id): each.source for each in candidates}
    first = [
        Candidate(case=case, class_id=class_id, source=sampled.get((case, class_id), "ranked"), why=trace.words)
        for (case, class_id), trace in again.items()
    ]
    others = [each for each in candidates if (each.case, each.class_id) not in again]
    # A case that is not there any more is being drawn anew at this moment.
    there = prints.keys() & desk.archive.catalog.fingerprints(TEACHER_SET).keys()
    queue = [each for each in (*first, *others) if each.case in there][:limit]
    desk.archive.catalog.record_listing(
        ListingRecord(
            case=each.case,
            label_set=TEACHER_SET,
            class_id=each.class_id,
            by=desk.by,
            source=each.source,
            fingerprint=prints[each.case],
            revision=revisions.get((each.case, each.class_id), 0),
        )
        for each in queue
    )
    scores = desk.archive.catalog.scores(TEACHER_SET, [each.case for each in queue])
    shown = [
        _waiting(desk, each, "drawn again" if (each.case, each.class_id) in again else "to judge", scores.get(each.case, {}))
        for each in queue
    ]
    boxed = [(key, trace) for key, trace in traces.items() if not trace.is_drawn]
    return shown + [
        _waiting(desk, Candidate(case=case, class_id=class_id, source="asked", why=trace.words), "waits for the teacher", {})
        for (case, class_id), trace in boxed
    ]


def filter_words(case: Case, class_id: int) -> str:
    """Say what refinement decided about a mask, and why."""
    said, reason = filter_says(case, class_id)
    return f"{said} ({reason})" if said else "not refined yet"


def _waiting(desk: Desk, each: Candidate, state: State, scores: Mapping[str, float]) -> Waiting:
    told = {
        name: scores.get(f"{name}/{each.class_id}", math.nan) for name in ("predicted_dice", "predicted_dice_low", "predicted_dice_high")
    }
    dice, low, high = (None if math.isnan(value) else value for value in told.values())
    return Waiting(
        case=each.case,
        class_id=each.class_id,
        class_name=desk.classes[each.class_id],
        state=state,
        source=each.source,
        why=each.why,
        filter_says=filter_words(desk.archive[each.case], each.class_id),
        predicted_dice=dice,
        predicted_low=low,
        predicted_high=high,
    )


def is_refined(case: Case) -> bool:
    """Tell whether the pseudo-labels are of the masks that the teacher has drawn now, and not of earlier ones."""
    there = case.label_sets()
    if not {PSEUDO_SET, TEACHER_SET} <= set(there):
        return False
    now = case.labels(TEACHER_SET).history.fingerprint
    return bool(case.labels(PSEUDO_SET).history.parameters.get(MADE_OF, now) == now)


def filter_says(case: Case, class_id: int) -> tuple[str, str]:
    """Return what refinement decided about the masks that are there now, and why; nothing where it last saw others."""
    if not is_refined(case):
        return "", ""
    parameters = case.labels(PSEUDO_SET).history.parameters
    return str(parameters.get(f"verdict/{class_id}", "")), str(parameters.get(f"reason/{class_id}", ""))


def revisions_of(desk: Desk, case_id: str | None = None) -> dict[tuple[str, int], int]:
    """Return how many decisions there are about each mask, of whatever labels."""
    return {(record.case, record.class_id): record.revision for record in desk.archive.catalog.review_history(TEACHER_SET, case_id)}


def accepted_share(desk: Desk) -> Estimate:
    """Return what the random part of the verdicts says about all masks."""
    return estimate(desk.archive, desk.plan)


def as_shown(desk: Desk, case: Case, class_ids: Sequence[int]) -> list[ListingRecord]:
    """Return what is to be noted once this reviewer has looked at masks; to be asked for before anything of them is read."""
    before = desk.archive.catalog.listed(case.id, TEACHER_SET, desk.by)
    print_, revisions = case.labels(TEACHER_SET).history.fingerprint, revisions_of(desk, case.id)
    return [
        ListingRecord(
            case=case.id,
            label_set=TEACHER_SET,
            class_id=class_id,
            by=desk.by,
            source=before[class_id].source if class_id in before else "asked",
            fingerprint=print_,
            revision=revisions.get((case.id, class_id), 0),
        )
        for class_id in class_ids
    ]
