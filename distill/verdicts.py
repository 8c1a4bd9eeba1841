"""What refinement decides about one class of one case, and why: scores, semantic tests, and people, who overrule both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.cleaning import ClassRule

Keep = Literal["accept", "review", "reject"]
KEEPS: tuple[Keep, ...] = ("accept", "review", "reject")
IDENTITY = {"prior": "location-outside-prior", "oof_dice": "student-disagrees", "rca_dice": "reverse-disagrees"}
"""Scores that say whether it is the right object at all, and the reason for which a mask that fails one is rejected."""
BY_A_PERSON = {"accept": "accepted-by-a-person", "ignore": "doubted-by-a-person", "reject": "rejected-by-a-person"}
LOST = frozenset({"not-prompted", *IDENTITY.values(), BY_A_PERSON["ignore"], BY_A_PERSON["reject"]})
"""Reasons after which the object may be anywhere in the case."""
DROPPED = "dropped_share"
"""Score of a mask beside which large pieces were taken away (``distill.cleaning.Parted``): their size, as a share of its own."""
MOST_DROPPED = 0.2
"""Above this share it is for a person to judge which piece is the object, or whether both are."""
MADE_OF = "made_of"
"""Parameter of a refined label set: the fingerprint of the labels that were judged. Where these have been drawn anew, its verdicts are about others."""
SURE_OF_ABSENCE = 0.8
"""Balanced accuracy of a source's presence test, or the confidence of a person's word, from which "nothing here" is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What refinement decided about one class of one case, and why."""

    keep: Keep
    reason: str
    """A slug that reports count by: ``good-agreement``, ``pairwise-dice-below-review``, ``volume-outside-prior``, ..."""


def judge(
    mask: np.ndarray,
    agreement: float,
    rule: ClassRule,
    spacing_zyx_mm: tuple[float, float, float],
    *,
    evidence: Mapping[str, float] | None = None,
    person: str | None = None,
) -> Verdict:
    """Decide about one class of one case.

    Args:
        mask: ``(z, y, x)`` bool after cleaning.
        agreement: mean pairwise Dice of the ensemble, 0 to 1.
        rule: the thresholds.
        spacing_zyx_mm: to turn voxels into mm3.
        evidence: of whether it is the right object: ``prior``, ``oof_dice``, ``rca_dice``, as far as measured; and ``dropped_share``, of whether it is
            the whole of it.
        person: what somebody said who looked at it: ``accept``, ``ignore`` or ``reject``.
    """
    if person is not None:
        return Verdict(keep="accept" if person == "accept" else "reject", reason=BY_A_PERSON[person])
    if not mask.any():
        return Verdict(keep="reject", reason="empty-mask")
    if stranger := _strangeness(evidence or {}, rule):
        return Verdict(keep="reject", reason=stranger)
    verdict = _by_agreement(agreement, float(mask.sum() * np.prod(spacing_zyx_mm)), rule)
    is_broken = (evidence or {}).get(DROPPED, 0.0) > MOST_DROPPED
    return Verdict(keep="review", reason="large-piece-dropped") if is_broken and verdict.keep != "reject" else verdict


def _by_agreement(agreement: float, volume_mm3: float, rule: ClassRule) -> Verdict:
    if agreement < rule.review_from:
        return Verdict(keep="reject", reason="pairwise-dice-below-review")
    if rule.volume_mm3 is not None and not rule.volume_mm3[0] <= volume_mm3 <= rule.volume_mm3[1]:
        return Verdict(keep="review", reason="volume-outside-prior")
    if agreement < rule.accept_from:
        return Verdict(keep="review", reason="pairwise-dice-below-accept")
    return Verdict(keep="accept", reason="good-agreement")


def judge_absence(confidence: float) -> Verdict:
    """Decide about a class of which a prompt said that it is not in the case; nothing is drawn then, and nothing ignored."""
    sure = confidence >= SURE_OF_ABSENCE
    return Verdict(keep="accept" if sure else "review", reason="said-absent" if sure else "absence-unsure")


def _strangeness(evidence: Mapping[str, float], rule: ClassRule) -> str:
    """Return the first reason to think that a mask is of another object; empty if there is none. A test that was not made has nothing to say."""
    least = {"prior": rule.prior_from, "oof_dice": rule.student_from, "rca_dice": rule.reverse_from}
    return next((reason for name, reason in IDENTITY.items() if evidence.get(name, 1.0) < least[name]), "")


def overall_verdict(verdicts: dict[int, Verdict]) -> Keep:
    """Return the worst verdict about a class that was drawn; a class nobody prompted is ignored, and does not bar the case."""
    drawn = [verdict.keep for verdict in verdicts.values() if verdict.reason != "not-prompted"]
    return worst(drawn) if drawn else "reject"


def worst(keeps: Sequence[Keep]) -> Keep:
    """Return the most cautious of several verdicts: a case is accepted only if every class that was drawn is."""
    return max(keeps, key=KEEPS.index, default="accept")
