"""What a person does with the masks of an archive: see which to look at, look, decide, and take it back.

A decision is stored at once. It is refused where it would be about something else than what was looked at, or would overrule another
person who decided meanwhile; ``force`` overrules, and both decisions stay in the history.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.review_queue import Candidate, Estimate, estimate, review_queue
from distill.verdicts import BY_A_PERSON, MADE_OF
from flows.box_traces import REVIEW, box_traces
from flows.desk import Desk
from flows.errors import ReviewError
from flows.results import PSEUDO_SET, TEACHER_SET
from storage import Case, ListingRecord, Prompt, ReviewRecord
from storage.records import Opinion, Sampling

_LONGEST_NOTE = 500


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
    prints, revisions = desk.archive.catalog.fingerprints(TEACHER_SET), _revisions(desk)
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
    said, reason = _filter_says(case, class_id)
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


def _filter_says(case: Case, class_id: int) -> tuple[str, str]:
    """Return what refinement decided about the masks that are there now, and why; nothing where it last saw others."""
    if not is_refined(case):
        return "", ""
    parameters = case.labels(PSEUDO_SET).history.parameters
    return str(parameters.get(f"verdict/{class_id}", "")), str(parameters.get(f"reason/{class_id}", ""))


def _revisions(desk: Desk, case_id: str | None = None) -> dict[tuple[str, int], int]:
    """Return how many decisions there are about each mask, of whatever labels."""
    return {(record.case, record.class_id): record.revision for record in desk.archive.catalog.review_history(TEACHER_SET, case_id)}


def decide(
    desk: Desk, case_id: str, verdict: Opinion, *, class_id: int | None = None, note: str = "", force: bool = False
) -> list[ReviewRecord]:
    """Store a verdict on one class of a case, or on all that the teacher drew: on every one of them or, where one is refused, on none.

    Raises:
        CaseNotFoundError: if there is no such case.
        ReviewError: if there is no such class, nothing was drawn, or the note is too long.
        ReviewConflictError: see :meth:`storage.Catalog.record_review`.
    """
    case = desk.archive[case_id]
    drafts = [_draft(desk, case, each, verdict=verdict, note=note) for each in desk.class_ids(case, class_id)]
    return _store(desk, drafts, force=force)


def rebox(
    desk: Desk, case_id: str, *, class_id: int, z: int, box_xyxy: Sequence[float], note: str = "", force: bool = False
) -> ReviewRecord | None:
    """Keep a new box for the next labelling; what the teacher drew of this class counts as rejected until then.

    It takes the place of what reviewers have drawn about the same piece of the class on that slice (``distill.prompts.grouping``); their boxes around other pieces
    stay beside it.

    Args:
        desk: where.
        case_id: which case.
        class_id: which class, drawn before or not.
        z: the slice.
        box_xyxy: x0, y0, x1, y1 in pixels of the slice; upper bounds are exclusive.
        note: for other reviewers.
        force: overrule what another person decided.

    Returns:
        The verdict that goes with it; None where the teacher had drawn nothing of this class.

    Raises:
        CaseNotFoundError: if there is no such case.
        ReviewError: if there is no such class, or it is asked about across another axis, so that the box would not be.
        IngestError: if slice or box lie outside the image.
        ReviewConflictError: as for a verdict.
    """
    from storage.ingest.weak_convert import Converter
    from storage.ingest.weak_schema import BoxRow

    case = desk.archive[case_id]
    if class_id not in desk.classes:
        desk.class_ids(case, class_id)
    try:
        row = BoxRow(case=case_id, class_id=class_id, kind="box", slice=z, slice_axis="z", box_xyxy=tuple(box_xyxy))
    except ValidationError as error:
        message = f"case {case_id}: slice {z} with box {list(box_xyxy)} cannot be used ({error.errors()[0]['msg']}). Write --slice 12 --box 16,19,36,38."
        raise ReviewError(message) from None
    [new] = Converter(archive=desk.archive, folder=Path(), source=REVIEW, classes=None).prompts(row)
    _check_axis(desk, case, new)
    if TEACHER_SET not in case.label_sets() or f"pairwise_dice/{class_id}" not in case.labels(TEACHER_SET).scores:
        desk.archive.catalog.replace_boxes([new], replaces=_is_about_the_same_piece)
        return None
    draft = replace(_draft(desk, case, class_id, verdict="reject", note=note), action="rebox")
    return _store(desk, [draft], force=force, box=new)[0]


def _check_axis(desk: Desk, case: Case, new: Prompt) -> None:
    """Refuse a box that would not be asked, since its class is prompted across another axis."""
    from distill.prompts.axes import AXES, asked_axes
    from distill.prompts.choice import chosen_prompts

    named = case.labels(TEACHER_SET).history.prompt_source.split(", ") if TEACHER_SET in case.label_sets() else []
    sources = [name for name in named if name not in ("", REVIEW)] or ["weak"]
    axis = asked_axes(chosen_prompts([*desk.archive.catalog.prompts(case.id, new.class_id), new], sources))[new.class_id]
    if axis != new.axis:
        letters = dict(zip(AXES, "kji", strict=True))
        message = (
            f"case {case.id}: class {new.class_id} is asked about on slices across axis {axis}, that of its prompts, and a box of 'review rebox' lies on slice {new.slice} "
            f"across {new.axis}, where it would not be. Judge the mask with 'review reject', or give a box with slice_axis {letters[axis]} to 'samdistill prompts import'."
        )
        raise ReviewError(message)


def _is_about_the_same_piece(old: Prompt, new: Prompt) -> bool:
    from distill.prompts.grouping import are_same

    return bool(old.box_xyxy_px and new.box_xyxy_px and are_same(old.box_xyxy_px, new.box_xyxy_px))


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """What one ``undo`` took back."""

    verdicts: tuple[ReviewRecord, ...]
    """The last one on each mask."""
    boxes: int
    is_away: bool = False
    """Whether the case has no labels at the moment: the verdicts were about masks that may come back, without them."""


def take_back(desk: Desk, case_id: str, *, class_id: int | None = None, force: bool = False) -> TakenBack:
    """Take back what was decided last about each mask of a case, and the boxes drawn for it; the history keeps both.

    Raises:
        CaseNotFoundError: if there is no such case.
        ReviewError: if there is no such class.
        ReviewConflictError: if the verdict is another person's, unless forced.
    """
    case = desk.archive[case_id]
    if class_id is not None and class_id not in desk.classes:
        desk.class_ids(case, class_id)
    wanted = list(desk.classes) if class_id is None else [class_id]
    current = [each for each in desk.archive.catalog.reviews(TEACHER_SET) if each.case == case_id and each.class_id in wanted]
    is_away = TEACHER_SET not in case.label_sets()
    undone = (*current, *(_last_decisions(desk, case, wanted) if is_away else _outlived_boxes(desk, case, wanted)))
    boxes = desk.archive.catalog.take_back_reviews(
        [replace(each, action="undo", by=desk.by, at=_now(), note="") for each in undone],
        seen=[None if force else _known_revision(desk, each) for each in undone],
        case_id=case_id,
        class_ids=wanted,
        source=REVIEW,
    )
    return TakenBack(verdicts=undone, boxes=boxes, is_away=is_away)


def _last_decisions(desk: Desk, case: Case, class_ids: Sequence[int]) -> list[ReviewRecord]:
    """Return what was decided last about each mask and not taken back, of whatever labels."""
    last = {each.class_id: each for each in desk.archive.catalog.review_history(TEACHER_SET, case.id)}
    return [last[key] for key in class_ids if key in last and last[key].action != "undo"]


def _outlived_boxes(desk: Desk, case: Case, class_ids: Sequence[int]) -> list[ReviewRecord]:
    """Return what new boxes said of masks that have been drawn anew since: without the boxes these masks come back, and it must not."""
    now = case.labels(TEACHER_SET).history.fingerprint
    outlived = [each for each in _last_decisions(desk, case, class_ids) if each.action == "rebox" and each.fingerprint != now]
    return [replace(each, fingerprint=now, filter_said=_filter_said(desk, case, each.class_id)) for each in outlived]


def accepted_share(desk: Desk) -> Estimate:
    """Return what the random part of the verdicts says about all masks."""
    return estimate(desk.archive, desk.plan)


def remember_shown(desk: Desk, case: Case, class_ids: Sequence[int]) -> None:
    """Note that this reviewer has looked at masks as they are now; why they did stays as their list said."""
    desk.archive.catalog.record_listing(as_shown(desk, case, class_ids))


def as_shown(desk: Desk, case: Case, class_ids: Sequence[int]) -> list[ListingRecord]:
    """Return what is to be noted once this reviewer has looked at masks; to be asked for before anything of them is read."""
    before = desk.archive.catalog.listed(case.id, TEACHER_SET, desk.by)
    print_, revisions = case.labels(TEACHER_SET).history.fingerprint, _revisions(desk, case.id)
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


def _draft(desk: Desk, case: Case, class_id: int, *, verdict: Opinion, note: str) -> ReviewRecord:
    """Put together a record about what this reviewer was shown, or about the masks as they are now where nothing was listed."""
    if len(note) > _LONGEST_NOTE:
        message = f"a note has at most {_LONGEST_NOTE} letters, but this one has {len(note)}. Nothing in it may name a patient."
        raise ReviewError(message)
    shown = desk.archive.catalog.listed(case.id, TEACHER_SET, desk.by).get(class_id)
    return ReviewRecord(
        case=case.id,
        label_set=TEACHER_SET,
        class_id=class_id,
        verdict=verdict,
        source="asked" if shown is None else shown.source,
        by=desk.by,
        at=_now(),
        filter_said=_filter_said(desk, case, class_id),
        fingerprint=case.labels(TEACHER_SET).history.fingerprint if shown is None else shown.fingerprint,
        note=note,
    )


def _filter_said(desk: Desk, case: Case, class_id: int) -> str:
    """Return what refinement decided by itself: from before it heard of the first verdict, where there was one."""
    print_ = case.labels(TEACHER_SET).history.fingerprint
    for each in desk.archive.catalog.review_history(TEACHER_SET, case.id):
        if (each.class_id, each.fingerprint) == (class_id, print_):
            return each.filter_said
    said, reason = _filter_says(case, class_id)
    # Of masks drawn anew and not refined since, the filter has said nothing; what stands there may be a person's word on the old ones.
    return "" if reason in BY_A_PERSON.values() else said


def _store(desk: Desk, drafts: Sequence[ReviewRecord], *, force: bool, box: Prompt | None = None) -> list[ReviewRecord]:
    catalog = desk.archive.catalog
    if force:
        now = {draft.case: desk.archive[draft.case].labels(TEACHER_SET).history.fingerprint for draft in drafts}
        drafts = [replace(draft, fingerprint=now[draft.case]) for draft in drafts]
    seen = [None if force else _known_revision(desk, draft) for draft in drafts]
    return catalog.record_reviews(drafts, seen=seen, boxes=[] if box is None else [box], replaces=_is_about_the_same_piece)


def _known_revision(desk: Desk, draft: ReviewRecord) -> int:
    """Return how many decisions about a mask this reviewer knew of; none, where they were never shown it."""
    shown = desk.archive.catalog.listed(draft.case, TEACHER_SET, desk.by).get(draft.class_id)
    return 0 if shown is None else shown.revision


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
