"""A figure with its interval, as reports keep it."""

import numpy as np

from distill import quality
from students.frozen import Frozen


class Measured(Frozen):
    """A mean over patients with its 95 % bootstrap interval; NaN becomes null in JSON."""

    mean: float | None
    low: float | None
    high: float | None
    patients: int
    excluded: int
    """Cases left out because both masks were empty."""


def measured(interval: quality.Interval) -> Measured:
    """Return an interval as it is kept: rounded, and without NaN."""
    return Measured(
        mean=known(interval.mean),
        low=known(interval.low),
        high=known(interval.high),
        patients=interval.patients,
        excluded=interval.excluded,
    )


def known(value: float) -> float | None:
    """Return a figure to six digits; None for one that is not known."""
    return None if np.isnan(value) else round(float(value), 6)


def nan_for_none(value: float | None) -> float:
    """Return a figure to compute with."""
    return float("nan") if value is None else float(value)
