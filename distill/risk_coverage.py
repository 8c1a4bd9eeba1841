"""Risk against coverage: what trusting only the most confident masks would bring (Geifman and El-Yaniv, 2017)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from distill.audit_records import Average, CurvePoint, Group, RiskCoverage
from distill.quality import aurc, normalised_aurc

CURVE_POINTS = 101
COVERAGE = 0.8
"""At which the gain over a random choice is stated."""
_DRAWS = 1000


class Ranked(Protocol):
    """A mask that something is known of: whose it is, and how sure its maker was."""

    @property
    def patient(self) -> str:
        """Whose."""
        ...

    @property
    def confidence(self) -> float:
        """The higher, the earlier it is trusted."""
        ...


def risk_coverage(masks: Sequence[Ranked], risk: Sequence[float], *, about: str, words: str, group: Group | None) -> RiskCoverage:
    """Return the curve of some masks, and what it amounts to.

    Args:
        masks: at least one.
        risk: of each, in the same order; 0 is perfect.
        about: which masks these are, in words.
        words: what the risk is.
        group: of gold; None where the risk is an agreement.
    """
    confidence = [mask.confidence for mask in masks]
    order = np.argsort(-np.asarray(confidence), kind="stable")
    running = np.cumsum(np.asarray(risk)[order]) / np.arange(1, len(risk) + 1)
    places = np.unique(np.linspace(0, len(risk) - 1, min(CURVE_POINTS, len(risk))).round().astype(int))
    gain = normalised_aurc(confidence, risk)
    return RiskCoverage(
        group=group,
        about=about,
        kind="agreement" if group is None else "Dice with gold",
        risk=words,
        masks=len(masks),
        patients=len({mask.patient for mask in masks}),
        aurc=aurc(confidence, risk),
        normalised_aurc=gain if np.isfinite(gain) else None,
        whole=float(np.mean(risk)),
        at_80=float(running[most_confident(len(risk)) - 1]),
        gain_at_80=_gain(masks, np.asarray(risk)),
        points=tuple(CurvePoint(coverage=(n + 1) / len(risk), risk=float(running[n])) for n in places),
    )


def most_confident(count: int, coverage: float = COVERAGE) -> int:
    """Return how many masks a coverage is, at least one."""
    return max(1, round(coverage * count))


def _gain(masks: Sequence[Ranked], risk: np.ndarray, draws: int = _DRAWS) -> Average | None:
    """Return how much lower the mean risk of the most confident 80 % is than that of all, by bootstrap over patients."""
    patients = sorted({mask.patient for mask in masks})
    if len(patients) < 2:
        return None
    confidence = np.array([mask.confidence for mask in masks])
    rows = {patient: np.array([n for n, mask in enumerate(masks) if mask.patient == patient]) for patient in patients}
    rng = np.random.default_rng(0)

    def gain(which: np.ndarray) -> float:
        order = which[np.argsort(-confidence[which], kind="stable")]
        return float(risk[which].mean() - risk[order[: most_confident(len(which))]].mean())

    found = [gain(np.concatenate([rows[patients[n]] for n in rng.integers(0, len(patients), len(patients))])) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return Average(mean=gain(np.arange(len(masks))), low=float(low), high=float(high), masks=len(masks), patients=len(patients))
