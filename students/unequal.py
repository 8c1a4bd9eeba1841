"""Trainings that had unequal time to learn: what sets their students apart may be the steps alone, so no ratio and no cause is read from it."""

from collections.abc import Mapping, Sequence

from students.spec import StudentCard

_UNEQUAL = 2.0
"""From this factor between the steps of two trainings on, what sets them apart may be the steps alone."""

_NAMED = 4
"""As many names fit into a warning that is read."""


def are_unequal(first: StudentCard, second: StudentCard) -> bool:
    """Whether one of two trainings was stopped by the clock with less than half the steps of the other."""
    fewer, more = sorted((first, second), key=lambda each: each.steps)
    return fewer.stopped == "budget" and fewer.steps * _UNEQUAL < more.steps and fewer.spec.kind == more.spec.kind


def unequal_note(name: str, card: StudentCard, others: Mapping[str, StudentCard]) -> str:
    """Return why no student of others is given as a part of this one: ``all-gold had 12 steps, the student 472, as time was up``; empty if each may be.

    Args:
        name: What the report calls the one that others are held against.
        card: Of that one.
        others: By what the note calls them.
    """
    apart = [f"{other} {each.steps:,}" for other, each in others.items() if are_unequal(card, each)]
    return f"{name} had {card.steps:,} steps, {_some(apart)}, as time was up" if apart else ""


def unequal_trainings(card: StudentCard, others: Mapping[str, StudentCard]) -> tuple[str, ...]:
    """Return what speaks against comparing the student with others: a budget of time buys few steps where the machine is busy, or was another one.

    Args:
        card: The student's.
        others: By the name that the report gives them.
    """
    apart = {name: other for name, other in others.items() if are_unequal(card, other)}
    few, many = (
        [f"{name} ({other.steps:,})" for name, other in apart.items() if (other.steps < card.steps) == less] for less in (True, False)
    )
    return tuple(
        f"{_some(named)} had {words} the student's {card.steps:,} steps, as time was up: not comparable with it. "
        "Train with one budget, on a machine that is not busy."
        for named, words in ((few, "less than half of"), (many, "more than twice"))
        if named
    )


def _some(named: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more
