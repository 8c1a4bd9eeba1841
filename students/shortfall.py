"""Where the student is below what it should be above: said plainly, with the paired difference, its interval, and what to try.

The promise is that pseudo-labels never make a student worse than its gold alone would. Where a score breaks it, or the student is below its teacher
or below an arm that costs less, the report begins with that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.quality import Interval, few_words, paired_interval, patient_means
from students.figures import Measured
from students.findings import GoldCurve
from students.results import Comparison
from students.spec import StudentCard

_NOTICED = 0.005
"""Dice by which a student may be below a rival that it needs not beat, unless the interval says that it is no chance."""

_RIVALS = {
    "gold-alone": "the same net trained on its gold alone",
    "few-gold": "the same net trained on gold of the calibration part",
    "ellipse-student": "the same net trained on ellipses",
}
"""Arms that a student which learnt from believed pseudo-labels should be above, as recipes name them."""

_BUDGET_FIRST = "The two had unequal steps: train both with one budget first."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Student and rival on the cases that have a Dice in both, as means over patients."""

    own: float
    theirs: float
    difference: Interval
    """Paired, student minus rival."""

    @property
    def words(self) -> str:
        """The difference with its interval, and whether it may be chance."""
        return difference_words(self.difference.mean, self.difference.low, self.difference.high, self.difference.patients)

    @property
    def is_plain(self) -> bool:
        """Whether it is more than a trifle, or no chance."""
        return self.own < self.theirs and (self.difference.high < 0 or self.theirs - self.own >= _NOTICED)


def difference_words(mean: float, low: float, high: float, patients: int) -> str:
    """Return a difference as ``-0.012 [-0.019, -0.005]``, with what weakens it; of one patient there is no interval."""
    if patients == 1:
        return f"{mean:+.3f}, one patient alone"
    doubt = (", may be chance" if high >= 0 else "") + (", few patients" if few_words(patients) else "")
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]{doubt}"


def paired_on_shared(first: Comparison | None, second: Comparison | None, class_id: int) -> Pair | None:
    """Return the Dice of both on the cases that have one in both; None where there are none."""
    if first is None or second is None:
        return None
    others = {score.case: score.dice for score in second.scores if score.class_id == class_id and score.dice is not None}
    shared = [score for score in first.scores if score.class_id == class_id and score.dice is not None and score.case in others]
    if not shared:
        return None
    patients = [score.patient for score in shared]
    own, theirs = [score.dice or 0.0 for score in shared], [others[score.case] or 0.0 for score in shared]
    means = [float(np.mean(list(patient_means(values, patients).values()))) for values in (own, theirs)]
    return Pair(own=means[0], theirs=means[1], difference=paired_interval(own, theirs, patients))


def below_arms(
    comparisons: Sequence[Comparison], arms: Mapping[str, str], card: StudentCard, longer: str, *, unequal: Collection[str] = ()
) -> tuple[str, ...]:
    """Return where the student is below its gold alone and below arms that cost less, class by class, each with what to try.

    Args:
        comparisons: Of the evaluation, the student's first.
        arms: Name of a comparison -> name of its arm in recipes.
        card: The student's.
        longer: What may mend it before anything else: longer training, where there was little; may be empty.
        unequal: Arms whose training had other time to learn: a shortfall against them says nothing of labels.
    """
    found = []
    for result in comparisons[0].classes:
        for rival in comparisons[1:]:
            arm = arms.get(rival.name, "")
            pair = paired_on_shared(comparisons[0], rival, result.class_id) if arm in _RIVALS else None
            if pair and pair.own < pair.theirs and (pair.is_plain or arm == "gold-alone"):
                below = f"the student (Dice {pair.own:.3f}) is below {_RIVALS[arm]} ({pair.theirs:.3f}): {pair.words}"
                found.append(f"{result.class_name}: {below}. {_BUDGET_FIRST if arm in unequal else _remedy(arm, card, longer)}")
    return tuple(found)


def below_teacher(comparisons: Sequence[Comparison], card: StudentCard, longer: str) -> tuple[str, ...]:
    """Return where the student is below its teacher, class by class, each with what to try; arguments as of `below_arms`."""
    teacher = next((each for each in comparisons if each.role == "teacher"), None)
    found = []
    for result in comparisons[0].classes:
        pair = paired_on_shared(comparisons[0], teacher, result.class_id)
        if pair and pair.is_plain:
            seen = "whose masks it sees" if card.spec.hints else "which was given prompts"
            below = f"the student (Dice {pair.own:.3f}) is below its teacher ({pair.theirs:.3f}), {seen}: {pair.words}"
            found.append(f"{result.class_name}: {below}. {_of_teacher(card, longer)}")
    return tuple(found)


def _remedy(arm: str, card: StudentCard, longer: str) -> str:
    """Return what to try where an arm is better; as long as the student is to train longer first, nothing is said to be the cause."""
    cause, advice = _cause_and_advice(arm, card)
    if longer:
        return f"{longer} If it stays below, {advice}."
    return f"{cause}: {advice}." if cause else f"{advice[0].upper()}{advice[1:]}."


def _cause_and_advice(arm: str, card: StudentCard) -> tuple[str, str]:
    if arm == "ellipse-student":
        return "So the teacher's labels teach it less than ellipses do", "try another checkpoint or other prompts, or a lower refine.risk"
    if arm == "few-gold" and card.gold_cases:
        return "", "let it learn from gold of more patients (student.gold)"
    if arm == "few-gold":
        return "", "let it learn from some gold too: student.gold: {patients: N, correct: true}, of the archive part"
    use = f"use the arm's student, {card.name}-gold-alone"
    if card.spec.learning.gold.correct:
        return "So corrected pseudo-labels do harm", f"try a larger student.gold.witness_budget, or {use}"
    return "So the pseudo-labels do harm", f"try student.gold.correct: true, a lower refine.risk, or {use}"


def _of_teacher(card: StudentCard, longer: str) -> str:
    """Return what to try where the teacher is better."""
    if longer:
        return longer
    return "Ask the teacher where there are prompts" + ("." if card.gold_cases else ", or teach the student some gold (student.gold).")


def curve_shortfall(curve: GoldCurve | None) -> tuple[str, ...]:
    """Return at which numbers of gold patients pseudo-labels did harm, apart from those where steps were unequal; nothing where they never did."""
    below = [row for row in (curve.rows if curve else ()) if row.minus_gold and row.minus_gold.mean is not None and row.minus_gold.mean < 0]
    fair, unfair = ([row for row in below if bool(row.minus_note) == unequal] for unequal in (False, True))
    return tuple(
        "gold beside pseudo-labels is below gold alone at these numbers of patients: "
        f"{', '.join(f'{row.patients} ({_of_measured(row.minus_gold)})' for row in rows)}. {remedy}"
        for rows, remedy in ((fair, "Try student.gold.correct: true, or a lower refine.risk."), (unfair, _BUDGET_FIRST))
        if rows
    )


def _of_measured(found: Measured | None) -> str:
    if found is None or found.mean is None or found.low is None or found.high is None:
        return "not known"
    return difference_words(found.mean, found.low, found.high, found.patients)
