"""What a person should know of a training or a score at one glance: why it ended, and what speaks against using the student."""

import math
from collections.abc import Collection, Mapping

from students.findings import GoldCurve
from students.promptable.words import agreement_doubt, lost_doubt
from students.results import Comparison, Evaluation
from students.shortfall import below_arms, below_teacher, curve_shortfall, paired_on_shared
from students.spec import StudentCard

_FEW_PASSES = 5.0
"""A student that saw its cases less often than this has hardly begun."""

_ENOUGH_PASSES = 20.0
"""What a budget is recommended for."""

_WEAK_AGREEMENT = 0.3
"""Below this, the student has not found the organ in cases it did not learn from."""

_WIDE_MARGIN = 0.10
"""Dice by which a student may stay behind the labels it learnt from: on new patients a little is lost always."""

_TEACHER_BELOW = (
    "So is the teacher ({:.3f}): try another checkpoint, or other prompts, as longer training cannot mend it. "
    "Ellipses need a box on every case, the student none."
)

_MOSTLY_IGNORED = 0.5
_UNASKED = (
    "{:.0%} of the voxels of its training cases are ignored: prompt objects from end to end, or have masks carried on "
    "(prompts: {{source: [weak, propagate]}})."
)

_REASONS = {"budget": "the time budget was spent", "steps": "all steps were made", "early": "agreement no longer rose"}


def stop_words(card: StudentCard) -> str:
    """Return why the training ended, and with which agreement."""
    if card.agreement is not None:
        whose = "its teacher's masks of held-out patients" if card.promptable else "held-out pseudo-labels"
        agreement = f"agreement with {whose} {card.agreement:.3f}"
    elif card.validation_cases:
        agreement = f"agreement with {'its teacher on' if card.promptable else 'the pseudo-labels of'} {_cases(len(card.validation_cases))} held out is not known"
    else:
        agreement = "nobody held out" + (f", gold of {_cases(len(card.gold_cases))} learnt from" if card.gold_cases else "")
    return f"stopped because {_REASONS[card.stopped]}; {agreement}"


def _cases(count: int) -> str:
    return f"{count} {'case' if count == 1 else 'cases'}"


def passes(card: StudentCard) -> float:
    """Return how often each training case was seen, on average."""
    return card.steps * card.plan.batch / max(len(card.training_cases) + len(card.gold_cases) + len(card.unlabeled_cases), 1)


def no_yardstick(name: str, card: StudentCard) -> str:
    """Return why nothing is given as a part of what this student reaches: it hardly learnt itself. Empty where it did."""
    return f"{name} saw each case {passes(card):.1f} times, too little to be a yardstick" if passes(card) < _FEW_PASSES else ""


def _is_short(card: StudentCard) -> bool:
    """Whether the training itself is told to be too short, so that nothing may be said against a longer one."""
    if card.promptable is not None:
        return passes(card) < _FEW_PASSES or bool(agreement_doubt(card, ""))
    return passes(card) < _FEW_PASSES or (card.agreement is not None and card.agreement < _WEAK_AGREEMENT)


def training_doubts(card: StudentCard) -> tuple[str, ...]:
    """Return what speaks against this training, each with its remedy; nothing if it went well."""
    doubts = []
    if passes(card) < _FEW_PASSES:
        seen = f"each training case was seen {passes(card):.1f} times on average ({card.steps} steps), which is too little"
        doubts.append(f"{seen}. {_longer(card)}")
    if card.promptable is not None:
        return (*doubts, *agreement_doubt(card, _longer(card)))
    if card.agreement is not None and card.agreement < _WEAK_AGREEMENT:
        doubts.append(
            f"agreement with the pseudo-labels of held-out patients reached only {card.agreement:.2f}: it has not found the organ. "
            f"{_longer(card)}"
        )
    if card.nnunet is not None and (dropped := len(card.nnunet.dropped_cases)):
        known = len(card.training_cases) + len(card.validation_cases) + dropped
        doubts.append(f"{dropped} of {known} cases taught nothing, as every voxel of theirs is to be ignored. Look at their labels.")
    return tuple(doubts)


def evaluation_doubts(
    comparisons: tuple[Comparison, ...],
    labels: Comparison | None,
    card: StudentCard,
    ellipses: str,
    ignored: float = 0.0,
    *,
    arms: Mapping[str, str] | None = None,
    unequal: Collection[str] = (),
    curve: GoldCurve | None = None,
) -> tuple[str, ...]:
    """Return what the scores say against the student, class by class, before what its training says.

    Student, teacher and arms are compared on the cases that both have a Dice for; the labels are those of other cases by nature.

    Args:
        comparisons: Of the evaluation, the student's first.
        labels: The training labels against gold, where that is known.
        card: The student's.
        ellipses: Label set of the ellipses in the boxes, the baseline that needs no model.
        ignored: Mean share of the voxels of the training cases that nobody learns from.
        arms: Name of a comparison -> name of its arm in recipes.
        unequal: Arms, as recipes name them, whose training had other time to learn (`students.unequal`).
        curve: Of gold alone, and of gold beside pseudo-labels.
    """
    found: list[str] = []
    unmended = "" if _is_short(card) else " Longer training cannot mend that."
    longer = _longer(card) if ignored < _MOSTLY_IGNORED else _UNASKED.format(ignored) + unmended
    drawn = next((c for c in comparisons if c.first == ellipses and c.role == "arm"), None)
    teacher = next((c for c in comparisons if c.role == "teacher"), None)
    for result in comparisons[0].classes:
        name, own = result.class_name, result.metrics["dice"].mean
        taught = None if labels is None else _dice_by_class(labels)[name]
        pair = paired_on_shared(comparisons[0], drawn, result.class_id)
        if pair and pair.own < pair.theirs:
            above = paired_on_shared(teacher, drawn, result.class_id)
            as_good = above is not None and pair.own >= above.own - _WIDE_MARGIN
            trained = ignored < _MOSTLY_IGNORED and not _is_short(card)
            below_too = above is not None and as_good and above.own < above.theirs and trained
            remedy = _TEACHER_BELOW.format(above.own) if above and below_too else longer
            worse = f"the student (Dice {pair.own:.3f}) is worse than ellipses in the boxes ({pair.theirs:.3f}): {pair.words}"
            found.append(f"{name}: {worse}. {remedy}")
        if own is not None and taught is not None and own < taught - _WIDE_MARGIN:
            found.append(f"{name}: the student (Dice {own:.3f}) is far below the labels it learnt from ({taught:.3f}). {longer}")
    little = passes(card) < _ENOUGH_PASSES or ignored >= _MOSTLY_IGNORED
    first = (*below_arms(comparisons, arms or {}, card, longer if little else "", unequal=unequal), *curve_shortfall(curve))
    behind = (
        lost_doubt(comparisons, _longer(card))
        if card.promptable
        else below_teacher(comparisons, card, longer if little and not found else "")
    )
    return (*first, *found, *behind, *training_doubts(card))


def evaluation_note(evaluation: Evaluation) -> str:
    """Return the warnings of an evaluation as a remark that follows its scores; empty if there are none."""
    return "".join(f" WARNING: {warning}" for warning in evaluation.warnings)


def _dice_by_class(comparison: Comparison) -> dict[str, float | None]:
    return {result.class_name: result.metrics["dice"].mean for result in comparison.classes}


def _longer(card: StudentCard) -> str:
    """Return the remedy: a budget for enough passes, or at least twice the one there was."""
    factor = max(2.0, _ENOUGH_PASSES / max(passes(card), 0.1))
    if card.nnunet is not None and card.stopped == "steps":
        return f"Train longer: student.nnunet.epochs {math.ceil(card.nnunet.epochs_asked * factor)} or more in the recipe."
    if card.spec.steps is not None:
        return f"Train longer: {math.ceil(card.spec.steps * factor / 10) * 10} steps or more."
    minutes = math.ceil(max(card.seconds, card.spec.budget_seconds or 0.0) * factor / 60)
    return f"Train longer: student.budget {minutes}min or more in the recipe."
