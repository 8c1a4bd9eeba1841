"""Which of a case's stored prompts a run asks with.

The catalog keeps the prompts of every source side by side. A recipe names its sources in order, and each class of a case is asked with those
of the first source that has something to say about it. What a reviewer drew comes before all others, on the slices where they drew.
"""

from collections.abc import Iterable, Sequence

from storage import Prompt

WEAK = "weak"
PROPAGATE = "propagate"
"""No source of its own: carries the prompts of the others from slice to slice through the volume."""
REVIEW = "review"
"""What a person drew after looking at a label: asked whatever the recipe names."""
ABSENT = "absent"
"""Kind of a prompt that says that a class is not in a case, and name of the score that a label set keeps of it: how sure the prompt was."""
PROPOSED = "proposed/"
"""Begins the stored source of every prompt that no person made; what comes after it is the name of the source."""


def source_of(prompt: Prompt) -> str:
    """Return the name by which a recipe calls a prompt's source; whatever a person stored, under any name, is ``weak``."""
    if prompt.source.startswith(PROPOSED):
        return prompt.source.removeprefix(PROPOSED)
    return REVIEW if prompt.source == REVIEW else WEAK


def drawing_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """Return a chain without ``propagate``, which draws nothing; ``propagate`` alone carries what is stored with the cases."""
    return tuple(name for name in sources if name != PROPAGATE) or (WEAK,)


def chosen_prompts(prompts: Iterable[Prompt], sources: Sequence[str]) -> list[Prompt]:
    """Return the prompts that a chain of sources asks with, in the order given.

    Args:
        prompts: all prompts of one case.
        sources: as a recipe names them, the first one first.
    """
    given = list(prompts)
    speaker = _speakers(given, sources) | _speakers(filter(_asks, given), sources)
    drawn = {_place(prompt) for prompt in given if source_of(prompt) == REVIEW}
    redrawn = {class_id for class_id, _, _ in drawn}
    return [
        prompt
        for prompt in given
        if source_of(prompt) == REVIEW
        or (
            source_of(prompt) == speaker.get(prompt.class_id)
            and _place(prompt) not in drawn
            and not (prompt.kind == "absent" and prompt.class_id in redrawn)
        )
    ]


def open_classes(prompts: Iterable[Prompt], sources: Sequence[str], classes: Sequence[int]) -> tuple[int, ...]:
    """Return those of ``classes`` about which none of ``sources`` has said anything in this case that can be asked with."""
    speaker = _speakers(filter(_asks, prompts), sources)
    return tuple(class_id for class_id in classes if class_id not in speaker)


def _asks(prompt: Prompt) -> bool:
    """Say whether a prompt says something by itself: what is not the object says nothing."""
    return prompt.positive


def _place(prompt: Prompt) -> tuple[int, str, int | None]:
    """Return class, axis and slice; in a volume's prompt no slice, in a picture's the only one."""
    return prompt.class_id, prompt.axis, None if prompt.kind in ("box3d", ABSENT) else prompt.slice or 0


def _speakers(prompts: Iterable[Prompt], sources: Sequence[str]) -> dict[int, str]:
    """Return class id -> the first source of the chain that says something about it."""
    given = list(prompts)
    speaker: dict[int, str] = {}
    for name in drawing_sources(sources):
        for prompt in given:
            if source_of(prompt) == name:
                speaker.setdefault(prompt.class_id, name)
    return speaker
