"""The picture by which a reviewer judges a case, and the words above it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.audit_masks import judged_mask
from distill.cleaning import ClassRule
from distill.refine import RefinePlan, drawn_mask
from flows.console import OUT
from flows.desk import Desk
from flows.errors import ReviewError
from flows.places import check_writable
from flows.results import PSEUDO_SET, TEACHER_SET
from flows.review_list import as_shown, filter_words, is_refined
from storage import IGNORE, Case, ClassInfo, Labels
from students.filter_page import IGNORE_RGB, TEACHER_RGB
from students.pictures import Shade, shown_image
from students.review_sheet import JUDGED_RGB, Line, review_sheet


def write_sheet(desk: Desk, case_id: str, class_id: int | None, out: Path) -> None:
    """Write a picture of a case, and remember that this reviewer has seen it as it was when the picture was begun.

    Raises:
        CaseNotFoundError: if there is no such case.
        ReviewError: if there is nothing to see, or the file is no PNG.
        StageError: if the file cannot be written.
    """
    if out.suffix.lower() != ".png":
        message = f"the picture is a PNG, but {out} ends otherwise. Write -o {out.with_suffix('.png').name}."
        raise ReviewError(message)
    case = desk.archive[case_id]
    wanted = desk.class_ids(case, class_id)
    check_writable(out.parent, "the picture")
    shown = as_shown(desk, case, wanted)
    lines, shade = _lines(desk, case, wanted)
    title = [_title(desk, case, key) for key in wanted]
    review_sheet(shown_image(case, TEACHER_SET), lines, case.spacing_zyx_mm, title=title, shade=shade).save(out)
    desk.archive.catalog.record_listing(shown)
    words = f"{out}: the bold line is the mask to be judged, as refinement cuts it. Coordinates count pixels from 0."
    OUT.print(words, soft_wrap=True, highlight=False, markup=False)


def _lines(desk: Desk, case: Case, class_ids: Sequence[int]) -> tuple[list[Line], Shade | None]:
    """Return what is drawn over the slices: of each class what the teacher drew and what is to be judged; and what is ignored."""
    drawn = case.labels(TEACHER_SET).read()
    pseudo = case.labels(PSEUDO_SET) if is_refined(case) else None
    thin = Line(words="thin: as the teacher drew it, before refinement", rgb=TEACHER_RGB, mask=np.isin(drawn, class_ids), bold=False)
    bold = [
        Line(
            words=f"bold: TO BE JUDGED, class {key} {desk.classes[key]}, as refinement {'cuts' if pseudo is not None else 'will cut'} it",
            rgb=JUDGED_RGB[n % len(JUDGED_RGB)],
            mask=_judged(desk, case, pseudo, key),
            bold=True,
        )
        for n, key in enumerate(class_ids)
    ]
    return [*bold, thin], None if pseudo is None else Shade(rgb=IGNORE_RGB, mask=pseudo.read() == IGNORE)


def _judged(desk: Desk, case: Case, pseudo: Labels | None, class_id: int) -> np.ndarray:
    """Return the mask that a verdict is about: what refinement has cut, or would cut now of what the teacher has drawn since."""
    rule = desk.rules.get(class_id, ClassRule())
    if pseudo is not None:
        return judged_mask(case, pseudo, class_id, rule)
    plan = RefinePlan(classes=tuple(ClassInfo(id=key, name=name) for key, name in desk.classes.items()), rules={class_id: rule})
    found = drawn_mask(case, plan, class_id)
    return np.asarray(case.labels(TEACHER_SET).read() == class_id) if found is None else found[1]


def _title(desk: Desk, case: Case, class_id: int) -> str:
    """Say which mask it is, how good it is thought to be, what the filter says of it, and what people have said."""
    known = desk.archive.catalog.scores(TEACHER_SET, [case.id]).get(case.id, {})
    accepted = f" (accepted from {desk.plan.accept_from[class_id]:.3f})" if class_id in desk.plan.accept_from else ""
    scores = [f"agreement {known[f'pairwise_dice/{class_id}']:.3f}{accepted}"]
    for name, words in (("predicted_dice", "predicted Dice"), ("quality", "quality"), ("prior", "prior"), ("oof_dice", "students' Dice")):
        value = known.get(f"{name}/{class_id}", math.nan)
        low, high = (known.get(f"{name}_{end}/{class_id}", math.nan) for end in ("low", "high"))
        bars = "" if math.isnan(low) or math.isnan(high) else f" ({low:.2f} to {high:.2f})"
        scores += [] if math.isnan(value) else [f"{words} {value:.3f}{bars}"]
    said = [each for each in desk.archive.catalog.reviews(TEACHER_SET) if (each.case, each.class_id) == (case.id, class_id)]
    people = "".join(f"; {each.by}: {'new box' if each.action == 'rebox' else each.verdict}, {each.at}" for each in said)
    return (
        f"{case.id}, class {class_id} {desk.classes[class_id]}: {', '.join(scores)}; the filter says {filter_words(case, class_id)}{people}"
    )
