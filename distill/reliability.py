"""What a probability and a score are worth: a temperature for the one, a predicted Dice with error bars for the other.

*Temperature* (Guo et al. 2017): one number that divides all logits, chosen by the likelihood of gold in the box around what was drawn.
*Quality*: isotonic regression from a case's score to its Dice. Which score is decided by the error on patients that were left out, and
the error bars come from the same left-out patients (jackknife+, Barber et al. 2021; with several masks per patient each patient
counts once, Lee et al. 2023), so that they are about patients not seen yet and not about the fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression, minimize_scalar

from distill.conformal import check_numbers, means_by_patient, needed_patients, too_few
from distill.errors import CalibrationError
from distill.levels import LevelCounts, brier_score, calibration_errors, log_loss, tempered

TEMPERATURES = (0.05, 20.0)
"""Far beyond what networks need (about 0.5 to 3); an answer at either end means that gold and probability have little in common."""
SCORES: dict[str, int] = {
    "pairwise_dice": 1,
    "plane_agreement": 1,
    "slice_consistency": 1,
    "stability": 1,
    "predicted_iou": 1,
    "mean_probability": 1,
    "entropy": -1,
    "mutual_information": -1,
    "multimask_dice": 1,
    "round_trip_dice": 1,
    "teacher_agreement": 1,
    "prior": 1,
    "oof_dice": 1,
    "rca_dice": 1,
    "firmness": 1,
    "quality": 1,
}
"""What may predict the Dice, and whether more of it is good (1) or bad (-1); volumes and counts of slices are no quality."""
PAIRS_FROM = 20
"""Patients from which means of two scores are candidates too; with fewer, the best of so many would be best by chance."""
INTERVAL_LEVEL = 0.1
"""Error bars of a nominal 90 %: what jackknife+ reaches in practice. Its proof gives 1 - 2 x level, 80 %."""
_KNOTS = 128
"""Points at which a regressor is written down; between two, the error bars are those of the more cautious one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How far probabilities are from frequencies: mean over the cases of each patient, then over patients."""

    nll: float
    """Negative log-likelihood of gold, nats per voxel."""
    ece: float
    """Gap of probability and frequency over 15 bins, weighted by voxels."""
    ace: float
    """The same, every bin alike."""
    brier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureFit:
    """What to divide logits by."""

    temperature: float
    """Above 1 the probabilities were too sure, below 1 not sure enough."""
    patients: int
    before: Reliability
    after: Reliability
    """Of patients left out, each with the temperature of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A mask's predicted Dice with gold, and its error bars."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFit:
    """From scores to a predicted Dice: straight lines between knots."""

    scores: tuple[str, ...]
    """Whose mean predicts; none where no score did better than the mean Dice."""
    knots: tuple[float, ...]
    """Rising values of that mean (of minus the score, where less of it is better) ..."""
    dice: tuple[float, ...]
    """... the predicted Dice there ..."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    patients: int
    error: float
    """Mean absolute error of the predicted Dice on patients left out; a little too good, as the score was chosen by it."""
    error_of_mean: float
    """The same for always saying the mean Dice of the others."""
    level: float = INTERVAL_LEVEL
    note: str = ""


def fit_temperature(cases: Sequence[LevelCounts], patients: Sequence[str]) -> TemperatureFit:
    """Choose the temperature under which gold is likeliest, each patient counting once.

    Args:
        cases: Counts of the box around what was drawn.
        patients: Of each case; at least two different ones.

    Raises:
        CalibrationError: if there are fewer than two patients, none of whom could be left out.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        message = f"a temperature needs gold of at least 2 patients, so that it can be tried on one left out, but there are {len(names)}."
        raise CalibrationError(message)
    mixed = {name: _mean_counts([case for case, patient in zip(cases, patients, strict=True) if patient == name]) for name in names}
    rows = []
    for name in names:
        left_out = _best_temperature(np.sum([counts for other, counts in mixed.items() if other != name], axis=0))
        rows.append([_reliability_row(case, left_out) for case, patient in zip(cases, patients, strict=True) if patient == name])
    after = np.mean([np.mean(each, axis=0) for each in rows], axis=0)
    before = means_by_patient(np.array([_reliability_row(case, 1.0) for case in cases]), patients).mean(axis=0)
    return TemperatureFit(
        temperature=_best_temperature(np.sum(list(mixed.values()), axis=0)),
        patients=len(names),
        before=_reliability(before),
        after=_reliability(after),
    )


def _mean_counts(cases: Sequence[LevelCounts]) -> Float[np.ndarray, "2 256"]:
    """Return one patient's voxels as shares, each case weighing the same; sums of these are all that a likelihood needs."""
    return np.asarray(np.mean([case.counts / max(case.voxels, 1) for case in cases], axis=0))


def _best_temperature(shares: Float[np.ndarray, "2 256"]) -> float:
    def loss(log_temperature: float) -> float:
        probability = tempered(float(np.exp(log_temperature)))
        return float(-(shares[1] @ np.log(probability) + shares[0] @ np.log1p(-probability)))

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded").x))


def _reliability_row(case: LevelCounts, temperature: float) -> list[float]:
    probability = tempered(temperature)
    return [log_loss(case, probability), *calibration_errors(case, probability), brier_score(case, probability)]


def _reliability(row: np.ndarray) -> Reliability:
    nll, ece, ace, brier = (float(value) for value in row)
    return Reliability(nll=nll, ece=ece, ace=ace, brier=brier)


def fit_quality(
    rows: Sequence[Mapping[str, float]], dices: Sequence[float], patients: Sequence[str], *, level: float = INTERVAL_LEVEL
) -> QualityFit:
    """Find the score that best predicts the Dice of patients left out, and how far off it is there.

    Args:
        rows: Scores of each mask, without the id of the class; only scores that all masks have are tried.
        dices: Of each mask with gold, 0 to 1.
        patients: Of each mask; at least two different ones.
        level: Share of new masks that may lie outside the error bars (nominal).

    Raises:
        CalibrationError: if there are fewer than two patients, or a Dice is NaN.
    """
    check_numbers(dices, "Dice")
    count = len(set(patients))
    if count < 2:
        message = f"predicting a Dice needs gold of at least 2 patients, so that it can be tried on one left out, but there are {count}."
        raise CalibrationError(message)
    known = [name for name in SCORES if all(name in row for row in rows)]
    choices: list[tuple[str, ...]] = [(), *((name,) for name in known)]
    if count >= PAIRS_FROM:
        choices += [pair for pair in combinations(known, 2) if all(SCORES[name] > 0 for name in pair)]
    truth = np.asarray(dices, dtype=float)
    tried = {names: _LeftOut.of(_mixed(rows, names), truth, patients) for names in choices}
    best = min(choices, key=lambda names: (round(tried[names].error, 9), len(names)))
    needed = needed_patients(level)
    return tried[best].written(
        best,
        level=level,
        error_of_mean=tried[()].error,
        note="" if count >= needed else f"error bars from 0 to 1: {too_few(level, needed, count)}",
    )


def predict_quality(fit: QualityFit, scores: Mapping[str, float], class_id: int) -> Quality | None:
    """Predict a mask's Dice from its label set's scores (``pairwise_dice/1``, ...); None where a score that it takes is missing."""
    values = [scores.get(f"{name}/{class_id}") for name in fit.scores]
    present = [value for value in values if value is not None and np.isfinite(value)]
    if len(present) < len(values):
        return None
    x = float(_mixed([dict(zip(fit.scores, present, strict=True))], fit.scores)[0])
    knots = np.asarray(fit.knots)
    left = max(int(np.searchsorted(knots, x, side="right")) - 1, 0)
    right = min(int(np.searchsorted(knots, x, side="left")), len(knots) - 1)
    return Quality(dice=float(np.interp(x, knots, fit.dice)), low=fit.low[left], high=fit.high[right])


def _mixed(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Return the mean of the named scores of each row, with the sign that makes more better; zeros for no score."""
    if not names:
        return np.zeros(len(rows))
    return np.array([np.mean([SCORES[name] * row[name] for name in names]) for row in rows])


@dataclass(frozen=True, slots=True)
class _Curve:
    """A rising regression."""

    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> "_Curve":
        values, which = np.unique(x, return_inverse=True)
        total = np.bincount(which, weights=weight)
        mean = np.bincount(which, weights=weight * y) / total
        return cls(values, np.asarray(isotonic_regression(mean, weights=total).x))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(np.interp(x, self.x, self.y))


@dataclass(frozen=True, slots=True)
class _LeftOut:
    """One score, tried on each patient with a curve of the others."""

    whole: _Curve
    curves: list[_Curve]
    """Without each patient, in order of name."""
    patient: np.ndarray
    """Number of each mask's patient."""
    weight: np.ndarray
    """1 / masks of the patient."""
    residual: np.ndarray
    """Absolute, of each mask, from the curve without its patient."""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, patients: Sequence[str]) -> "_LeftOut":
        _, number, size = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)
        weight = 1 / size[number]
        curves = [_Curve.of(x[number != n], y[number != n], weight[number != n]) for n in range(len(size))]
        residual = np.zeros(len(x))
        for n, curve in enumerate(curves):
            residual[number == n] = np.abs(y[number == n] - curve(x[number == n]))
        return cls(_Curve.of(x, y, weight), curves, number, weight, residual)

    @property
    def error(self) -> float:
        return float(np.average(self.residual, weights=self.weight))

    def written(self, names: tuple[str, ...], *, level: float, error_of_mean: float, note: str) -> QualityFit:
        x = self.whole.x
        knots = x if len(x) <= _KNOTS else np.unique(np.quantile(x, np.linspace(0, 1, _KNOTS), method="nearest"))
        others = np.stack([curve(knots) for curve in self.curves])[self.patient]
        low = -_quantile(self.residual[:, None] - others, self.weight, level, len(self.curves))
        high = _quantile(self.residual[:, None] + others, self.weight, level, len(self.curves))
        dice = self.whole(knots)
        return QualityFit(
            scores=names,
            knots=tuple(knots.tolist()),
            dice=tuple(dice.tolist()),
            low=tuple(np.clip(np.minimum(low, dice), 0, 1).tolist()),
            high=tuple(np.clip(np.maximum(high, dice), 0, 1).tolist()),
            patients=len(self.curves),
            error=self.error,
            error_of_mean=error_of_mean,
            level=level,
            note=note,
        )


def _quantile(values: np.ndarray, weight: np.ndarray, level: float, patients: int) -> np.ndarray:
    """Return each column's ``1 - level`` quantile, where a patient more than there are may be infinitely bad."""
    order = np.argsort(values, axis=0, kind="stable")
    share = np.cumsum(weight[order], axis=0) / (patients + 1)
    reached = share >= 1 - level - 1e-9
    ranked = np.take_along_axis(values, order, axis=0)
    first = np.take_along_axis(ranked, reached.argmax(axis=0)[None], axis=0)[0]
    return np.asarray(np.where(reached.any(axis=0), first, np.inf))
