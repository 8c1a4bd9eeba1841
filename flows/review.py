"""What a person decides about the masks of an archive, and takes back.

A decision is stored at once. It is refused where it would be about something else than what was looked at, or would overrule another
person who decided meanwhile; ``force`` overrules, and both decisions stay in the history.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from distill.verdicts import BY_A_PERSON
from flows.box_traces import REVIEW
from flows.desk import Desk
from flows.errors import ReviewError
from flows.results import TEACHER_SET
from flows.review_list import filter_says
from storage import Case, Prompt, ReviewRecord
from storage.records import Opinion

_LONGEST_NOTE = 500


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
    said, reason = filter_says(case, class_id)
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
