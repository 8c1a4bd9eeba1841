"""The cut that brings masks nearest to gold, and the agreement from which gold bears accepting them out."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from distill.cleaning import ClassRule
from distill.evidence import GoldCase, cut_mask
from distill.quality import dice, paired_interval, volume_bias

EDGE_WEIGHTS = (0.5, 1.0, 1.5)
"""Of what intensity says against the teacher's belief."""
THRESHOLDS = tuple(round(0.25 + 0.025 * n, 3) for n in range(23))


def tuned(
    cases: Sequence[GoldCase],
    start: ClassRule,
    *,
    judged: Sequence[GoldCase],
    risk: float,
    smoothing_mm: Sequence[float],
    weigh_edges: bool = False,
) -> tuple[ClassRule, str, str]:
    """Return the cut nearest to gold with the agreement that these cases themselves bear out, a note and a warning.

    Args:
        cases: calibration cases with an object.
        start: what is not searched for stays as it is.
        judged: these and the cases in which the expert found nothing: what is drawn there is lost whole.
        risk: largest mean Dice loss among accepted cases.
        smoothing_mm: lengths to choose from.
        weigh_edges: whether to try what intensity says of edges, and hear it if gold does.
    """
    chosen = _best([replace(start, threshold=t, smooth_mm=s) for s, t in product(smoothing_mm, THRESHOLDS)], cases)
    chosen, heard = _with_weighed_edges(cases, chosen) if weigh_edges else (chosen, "")
    accept, note, warning = _accept_threshold(judged, chosen, risk)
    return replace(chosen, accept_from=accept, review_from=min(start.review_from, accept)), "; ".join(filter(None, (note, heard))), warning


def _best(candidates: Sequence[ClassRule], cases: Sequence[GoldCase]) -> ClassRule:
    return max(candidates, key=lambda rule: float(np.mean(dices(cases, rule))))


def _with_weighed_edges(cases: Sequence[GoldCase], plain: ClassRule) -> tuple[ClassRule, str]:
    """Return the rule with intensity heard about edges, where that brings masks nearer to gold beyond chance, and what became of it.

    The interval is over patients, of a choice that was made on these very patients: it keeps out what is noise, and promises nothing.
    """
    weighed = _best([replace(plain, rectify_edges=w, threshold=t) for w, t in product(EDGE_WEIGHTS, THRESHOLDS)], cases)
    before, after = dices(cases, plain).tolist(), dices(cases, weighed).tolist()
    gain = paired_interval(after, before, [case.patient for case in cases])
    said = f"(calibration masks {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] of Dice)"
    if gain.low > 0:
        return weighed, f"edges by intensity, with a weight of {weighed.rectify_edges:g} {said}"
    return plain, f"edges are as the teacher draws them, since intensity does not bring them nearer to gold {said}"


def dices(cases: Sequence[GoldCase], rule: ClassRule) -> np.ndarray:
    """Return the Dice of each case, cut by a rule, with gold where that was judged."""
    return np.array([dice(cut_mask(case, rule), case.gold, ~case.judged) for case in cases])


def mean_bias(cases: Sequence[GoldCase], rule: ClassRule) -> float:
    """Return the mean of (mask volume - gold volume) / gold volume, both where gold was judged."""
    return float(np.mean([volume_bias(cut_mask(case, rule) & case.judged, case.gold) for case in cases]))


def _accept_threshold(judged: Sequence[GoldCase], rule: ClassRule, risk: float) -> tuple[float, str, str]:
    """Return the lowest agreement at which accepted calibration cases lose at most ``risk`` Dice on average, a note and a warning."""
    # Where nothing is to be found and nothing drawn, there is nothing to accept.
    cases = [case for case, reached in zip(judged, dices(judged, rule), strict=True) if not np.isnan(reached)]
    agreement = [case.scores["pairwise_dice"] for case in cases]
    order = np.argsort([-each for each in agreement], kind="stable")
    losses = 1 - dices([cases[n] for n in order], rule)
    running = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    # Cases of one and the same agreement are accepted together or not at all.
    ends = np.append(np.diff(np.asarray(agreement)[order]) != 0, True)
    within = np.flatnonzero((running <= risk) & ends)
    if not len(within):
        taken = losses[np.asarray(agreement)[order] >= rule.accept_from]
        note = f"the default agreement {rule.accept_from:g} stands; better prompts or more members may help, else raise refine.risk"
        return rule.accept_from, note, _out_of_reach(risk, float(running[ends].min()), taken, rule)
    last = int(within[-1])
    if last == len(cases) - 1:
        # Every calibration case passes: accept down to a little below the worst score seen, and no further.
        note = f"masks of all {len(cases)} calibration cases lose {_lost(running[last], risk)}: accepted down to just below the lowest agreement of theirs"
        return max(0.0, agreement[order[last]] - 0.05), note, ""
    note = f"the {last + 1} of {len(cases)} calibration masks with the best agreement lose {_lost(running[last], risk)}: accepted down to the lowest of theirs"
    return agreement[order[last]], note, ""


def _lost(mean: float, risk: float) -> str:
    return f"{mean:.2f} of Dice on average, within refine.risk of {risk:.2f}"


def _out_of_reach(risk: float, best: float, accepted: np.ndarray, rule: ClassRule) -> str:
    """Say that masks are accepted although gold shows that they lose more than the recipe allows."""
    lose = (
        f"masks accepted from the default {rule.accept_from:g} on lose {accepted.mean():.2f}"
        if len(accepted)
        else "none reaches the default"
    )
    return f"the risk of {risk:.2f} is out of reach: no agreement keeps accepted calibration masks within it (best {best:.2f}), and {lose}"
