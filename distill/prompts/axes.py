"""Across which axis of a volume a class is asked about: that of its prompts.

Most people scroll through axial slices, and are asked about these. Whoever drew on coronal or sagittal ones is asked about those: the case is turned, so that the prompts'
axis comes first, and everything goes on as with axial slices (``distill.casework``). A class is asked along one axis: the axial one if it is prompted
there, or else the one with the most prompted slices. A reviewer's boxes decide only where nobody else has prompted the class: they are always axial, and one would
set all coronal prompts aside. What was drawn across another axis is set aside, and said to be.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from distill.prompts.choice import ABSENT, REVIEW, source_of
from distill.prompts.hints import PIECES, usable_prompts
from storage import CaseRecord, Prompt

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, Axis, Axis] = ("z", "y", "x")
"""In the order in which a case's arrays have them."""


def asked_axes(prompts: Iterable[Prompt]) -> dict[int, Axis]:
    """Return class id -> the axis along which it is asked about; a class of which nobody says where it is has none."""
    given = list(prompts)
    if all(prompt.axis == "z" for prompt in given):  # masks need not be decoded
        return {prompt.class_id: "z" for prompt in given if prompt.positive and prompt.kind != ABSENT}
    usable = [prompt for prompt in usable_prompts(given) if prompt.positive and prompt.kind != ABSENT]
    decided = {prompt.class_id for prompt in usable if source_of(prompt) != REVIEW}
    slices: dict[int, dict[Axis, set[int]]] = {}
    for prompt in usable:
        if source_of(prompt) != REVIEW or prompt.class_id not in decided:
            slices.setdefault(prompt.class_id, {}).setdefault(prompt.axis, set()).add(prompt.slice or 0)
    return {
        class_id: "z" if "z" in found else max(AXES[1:], key=lambda axis: len(found.get(axis, ()))) for class_id, found in slices.items()
    }


def set_aside(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts that are not asked, since their class is asked along another axis."""
    given = list(prompts)
    if all(prompt.axis == "z" for prompt in given):
        return []
    axes = asked_axes(given)
    return [prompt for prompt in given if prompt.kind != ABSENT and prompt.axis != axes.get(prompt.class_id, prompt.axis)]


def turned_record(record: CaseRecord, axis: Axis) -> CaseRecord:
    """Return the record of a case as it is once ``axis`` comes first; its geometry stays as it is stored."""
    channels, *sides = record.shape_czyx
    first = sides.pop(AXES.index(axis))
    return replace(record, shape_czyx=(channels, first, sides[0], sides[1]))


def axis_inputs(prompts: Iterable[Prompt], classes: Iterable[int]) -> dict[str, Any]:
    """Return what a label's fingerprint takes in where a class is not asked about axial slices, and nothing elsewhere."""
    wanted = set(classes)
    others = sorted((key, axis) for key, axis in asked_axes(prompts).items() if axis != "z" and key in wanted)
    return {"axes": [PIECES, others]} if others else {}
