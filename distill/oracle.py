"""The teacher with gold boxes: what it draws where somebody has found every object on every slice for it.

On each slice each connected piece of gold (8 neighbours) is asked about with its tight box, once: no jitter, no mirror images, no other planes, no slices
beyond the object. That is how promptable models are mostly reported, and an upper bound that no run reaches: the boxes are cut from the
answer. So such labels only score; they are a label set of their own, and their prompts are never stored.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from distill.appoint import appoint
from distill.casework import CaseWork, prepare_case
from distill.devices import made_current, resolve_devices
from distill.label_inputs import label_fingerprint
from distill.label_plan import LabelPlan
from distill.label_store import store_labels
from distill.prompts.choice import PROPOSED
from distill.prompts.pieces import parts_of
from distill.questions import AskSettings
from distill.teachers.checkpoints import inspect_checkpoint
from distill.wavefront import run_wavefront
from storage import Archive, CaseRecord, Prompt, fingerprint

LABEL_SET = "oracle/gold-boxes"
SOURCE = f"{PROPOSED}gold"
ASK = AskSettings(boxes=1, jitter=0.0, flips=False, planes="axial")
"""One plain question about each piece."""

GoldIds = Mapping[int, Sequence[int]]
"""Class id -> ids in gold that make it up; by default the same id."""


def gold_boxes(record: CaseRecord, gold_zyx: np.ndarray, classes: Sequence[int], gold_ids: GoldIds | None = None) -> list[Prompt]:
    """Return a tight box around each piece of each class on each slice.

    Args:
        record: The case.
        gold_zyx: Class ids of the expert, ``(z, y, x)``; where they are ``ignore`` nothing is asked.
        classes: Which to ask about.
        gold_ids: Of classes that are made up of other ids in gold.
    """
    found = []
    for class_id in classes:
        mask = np.isin(gold_zyx, list((gold_ids or {}).get(class_id, (class_id,))))
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            for piece in parts_of(mask[z], z=int(z)):
                box = tuple(float(side) for side in piece.box_xyxy_px)
                found.append(Prompt(case=record.id, class_id=class_id, kind="box", slice=int(z), box_xyxy_px=box, source=SOURCE))  # type: ignore[arg-type]
    return found


def draw_in_gold_boxes(
    archive: Archive,
    plan: LabelPlan,
    cases: Sequence[str],
    *,
    gold: str = "gold",
    gold_ids: GoldIds | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the teacher's answers to gold boxes as the label set ``oracle/gold-boxes``; return how many cases were drawn now.

    Args:
        archive: Read from and written to.
        plan: Which teacher draws which classes, with which intensities; how it is asked and with whose prompts is not taken from it.
        cases: That have gold; those drawn before from the same boxes by the same teacher stay as they are.
        gold: The expert's label set.
        gold_ids: Of classes that are made up of other ids in gold.
        progress: Called with how many of how many cases are there.
    """
    own = replace(plan, label_set=LABEL_SET, ask=ASK, sources=(SOURCE,), embedding_cache=None)
    classes = [info.id for info in plan.classes]
    teacher_mark = inspect_checkpoint(plan.teacher, base=plan.base).fingerprint
    due: list[tuple[CaseRecord, list[Prompt], str]] = []
    for case in cases:
        stored = archive[case]
        prompts = gold_boxes(stored.record, stored.labels(gold).read(), classes, gold_ids)
        mark = fingerprint(oracle="1", labels=label_fingerprint(own, stored.record, prompts, teacher_mark))
        if not (LABEL_SET in stored.label_sets() and stored.labels(LABEL_SET).history.fingerprint == mark):
            due.append((stored.record, prompts, mark))
    if not due:
        return 0
    device = resolve_devices(plan.device)[0]
    with made_current(device):
        teacher = appoint(own, device)
        for done, window in _windows(due, plan.window):
            works = [
                _only_boxes(prepare_case(archive, record, prompts, classes=classes, intensity=plan.intensity))
                for record, prompts, _ in window
            ]
            run_wavefront(teacher, works, ASK)
            for work, (_, _, mark) in zip(works, window, strict=True):
                store_labels(archive, own, work, teacher=teacher_mark, inputs=mark)
            if progress is not None:
                progress(done, len(due))
    return len(due)


def _windows(
    due: Sequence[tuple[CaseRecord, list[Prompt], str]], size: int
) -> Iterator[tuple[int, Sequence[tuple[CaseRecord, list[Prompt], str]]]]:
    """Yield cases that are asked together, with how many there are up to and with them."""
    for start in range(0, len(due), size):
        window = due[start : start + size]
        yield start + len(window), window


def _only_boxes(work: CaseWork) -> CaseWork:
    """Leave out slices on which gold has nothing: the schedule asks on beyond the outermost boxes, as people leave the ends out."""
    for target in work.classes.values():
        target.plans[:] = [plan for plan in target.plans if plan.hint is not None]
    return work
