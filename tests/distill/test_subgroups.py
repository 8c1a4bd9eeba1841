"""Whom the filter removes: rates with intervals, tests that fit the data, and few false alarms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from distill.subgroups import Banding, Removal, compare, holm, share_removed, third


def masks(removed: int, kept: int, patient: str = "", *, each: int = 1) -> list[Removal]:
    """Masks of as many patients, or with ``each`` masks for a patient."""
    flags = [True] * removed + [False] * kept
    return [Removal(patient=f"{patient}{n // each}", removed=flag) for n, flag in enumerate(flags)]


def test_one_mask_per_patient_is_tested_by_fisher_and_has_wilsons_interval() -> None:
    found = compare(masks(12, 18, "a"), masks(3, 27, "b"))
    assert found.test == "Fisher exact"
    assert found.p == pytest.approx(fisher_exact([[12, 18], [3, 27]]).pvalue)
    share = share_removed(masks(0, 60))
    assert (share.share, share.low) == (0.0, 0.0)
    assert share.high == pytest.approx(0.0602, abs=1e-4)


def test_masks_of_one_patient_are_no_independent_witnesses() -> None:
    group, rest = masks(40, 0, "a", each=10), masks(0, 40, "b", each=10)
    found = compare(group, rest)
    assert found.test == "Mann-Whitney over patients"
    assert found.p is not None
    assert found.p > 1e-3 > fisher_exact([[40, 0], [0, 40]]).pvalue
    share = share_removed(masks(0, 40, each=10))
    assert share.high == pytest.approx(0.49, abs=0.01), "four patients say no more than four masks"


def test_a_group_of_too_few_patients_is_not_tested_and_few_masks_are_said() -> None:
    found = compare(masks(4, 0, "a", each=2), masks(0, 40, "b", each=10))
    assert (found.p, found.note) == (None, "fewer than 3 patients on one side: not tested")
    assert compare(masks(1, 4, "a"), masks(2, 30, "b")).note == "only 5 masks: a difference can hardly be seen"


@pytest.mark.parametrize("removed", [pytest.param(True, id="everything removed"), pytest.param(False, id="nothing removed")])
def test_where_all_groups_are_treated_alike_there_is_nothing_to_test(*, removed: bool) -> None:
    group = [Removal(patient=str(n), removed=removed) for n in range(30)]
    assert compare(group, group).p is None
    assert share_removed([]).share is None


def test_holm_is_what_its_paper_says() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_keep_their_order_and_lie_between_the_raw_ones_and_bonferronis(raw: list[float]) -> None:
    found = holm(raw)
    adjusted = np.array([value for value in found if value is not None])
    order = np.argsort(raw, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0)
    assert np.all(adjusted >= np.array(raw))
    assert np.all(adjusted <= np.minimum(1, len(raw) * np.array(raw)) + 1e-12)


def test_ages_become_bands_numbers_thirds_and_free_text_is_left_out() -> None:
    cases = [{"age_years": 20 + n, "dose": float(n), "site": f"place {n}", "sex": "F" if n % 2 else "M"} for n in range(30)]
    banding = Banding(cases)
    assert banding.names == ("age_years", "dose", "sex")
    assert banding.value("age_years", {"age_years": 17}) == "under 18"
    assert banding.value("age_years", {"age_years": 75.0}) == "75 and over"
    assert banding.value("dose", {"dose": 0.0}) == "lower third (to 9.67)"
    assert banding.value("sex", {}) == "not known"
    assert third(5.0, (1.0, 4.0)) == "upper third (above 4)"


def test_an_age_in_other_units_is_old_and_no_error() -> None:
    assert Banding([{"age": 30.0}]).value("age", {"age": 14600.0}) == "75 and over"
