"""Is one way of labelling better than another, on the same patients? Wilcoxon's signed ranks (1945), beside the bootstrap's interval.

The unit is the patient: cases of one patient are averaged first. Differences of exactly 0 are left out of the test, as Wilcoxon did. The p values of
all tests that one report shows are adjusted together (Holm 1979, ``distill.subgroups.holm``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from distill.quality import Interval, paired_interval, patient_means
from distill.subgroups import LEAST_PAIRS

_SAME = 1e-9
"""A difference below that is one of rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """One way against another."""

    difference: Interval
    p: float | None
    """Two-sided, not adjusted; None where too few patients differ for any outcome to be significant."""
    note: str = ""


def compare_paired(a: Sequence[float], b: Sequence[float], patients: Sequence[str]) -> PairedTest:
    """Compare two lists of one figure of the same cases, ``a`` minus ``b``.

    Args:
        a: One value per case; a case where either is NaN is left out.
        b: As ``a``.
        patients: Of each case.
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    means = np.asarray(list(patient_means(differences.tolist(), patients).values()))
    apart = means[np.abs(means) > _SAME]
    interval = paired_interval(a, b, patients)
    if len(means) >= LEAST_PAIRS and not len(apart):
        return PairedTest(difference=interval, p=1.0, note="the same for every patient")
    if len(apart) < LEAST_PAIRS:
        return PairedTest(difference=interval, p=None, note=f"only {len(apart)} patients differ: {LEAST_PAIRS} are needed for a test")
    return PairedTest(difference=interval, p=float(wilcoxon(apart).pvalue))
