"""One way of labelling against another."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from distill.paired_tests import compare_paired


def test_patients_are_compared_and_not_cases() -> None:
    rng = np.random.default_rng(3)
    patients = [f"p{n // 2}" for n in range(24)]
    a, b = rng.random(24), rng.random(24)
    found = compare_paired(a.tolist(), b.tolist(), patients)
    assert found.p == pytest.approx(float(wilcoxon((a - b).reshape(12, 2).mean(axis=1)).pvalue))
    assert found.difference.patients == 12
    assert found.difference.mean == pytest.approx((a - b).mean())


def test_both_directions_are_equally_likely() -> None:
    rng = np.random.default_rng(4)
    a, b, patients = rng.random(9).tolist(), rng.random(9).tolist(), [str(n) for n in range(9)]
    assert compare_paired(a, b, patients).p == compare_paired(b, a, patients).p


def test_five_patients_that_all_differ_are_too_few_and_six_are_enough() -> None:
    names = [str(n) for n in range(6)]
    better, worse = [0.8, 0.82, 0.85, 0.9, 0.91, 0.95], [0.5, 0.51, 0.53, 0.54, 0.56, 0.57]
    few = compare_paired(better[:5], worse[:5], names[:5])
    assert few.p is None
    assert "only 5 patients differ" in few.note
    enough = compare_paired(better, worse, names)
    assert enough.p == pytest.approx(2 / 2**6)


def test_what_is_the_same_for_everybody_is_no_difference() -> None:
    values, names = [0.1 * n for n in range(8)], [str(n) for n in range(8)]
    assert compare_paired(values, values, names).p == 1


def test_a_case_without_a_figure_is_left_out_and_counted() -> None:
    nan = float("nan")
    found = compare_paired([0.9, nan, 0.8], [0.8, 0.8, nan], ["a", "b", "c"])
    assert (found.difference.patients, found.difference.excluded) == (1, 2)
