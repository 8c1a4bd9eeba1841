"""Whom the filter removes: rates with intervals, tests that fit the data, and few false alarms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact, wilcoxon

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


def test_patients_with_masks_on_both_sides_are_compared_with_themselves_and_count_once() -> None:
    """Ten patients, each with small and large masks; without pairing they would be twenty witnesses."""
    group = [Removal(patient=str(n), removed=m < 2) for n in range(10) for m in range(4)]
    rest = [Removal(patient=str(n), removed=m < (n % 2)) for n in range(10) for m in range(4)]
    found = compare(group, rest)
    assert found.test == "Wilcoxon over patients with both"
    differences = [0.5 - (n % 2) / 4 for n in range(10)]
    assert found.p == pytest.approx(wilcoxon(differences).pvalue)
    assert compare(group, [Removal(patient=mask.patient, removed=mask.removed) for mask in group]).p == 1.0


def test_where_most_patients_are_on_one_side_those_on_both_are_left_out() -> None:
    group, rest = masks(9, 3, "a", each=3), masks(1, 14, "b", each=3)
    alone = compare(group, rest)
    shared = [Removal(patient="both", removed=True)]
    assert alone.test == "Mann-Whitney over patients"
    assert compare([*group, *shared], [*rest, *shared]).p == alone.p


@pytest.mark.parametrize(("removed", "kept", "exact"), [(0, 3, 2 / 20), (2, 6, 10 / 165), (9, 91, 220 / 176851)])
def test_few_patients_do_not_become_sure_of_a_difference_by_an_approximation(removed: int, kept: int, exact: float) -> None:
    """Three patients lost all masks; exact is the share of the choices of three patients of 6, 11 and 103 that are as far off."""
    rest = [Removal(patient=f"b{n}", removed=n < removed) for n in range(removed + kept) for _ in range(8)]
    found = compare(masks(24, 0, "a", each=8), rest)
    assert found.test == "Mann-Whitney over patients"
    assert found.p == pytest.approx(exact, rel=0.1, abs=5e-4)


def test_patients_who_differ_in_nothing_make_no_difference_surer() -> None:
    """Six of sixteen patients lost one of two masks in the group, all others none: the signs of six differences agree by chance in 1 of 32."""
    group = [Removal(patient=str(n), removed=n < 6 and m == 0) for n in range(16) for m in range(2)]
    rest = [Removal(patient=str(n), removed=False) for n in range(16) for m in range(2)]
    assert compare(group, rest).p == pytest.approx(2 / 64)


def test_too_few_patients_on_both_sides_are_not_tested() -> None:
    group = [Removal(patient=str(n), removed=True) for n in range(5)]
    rest = [Removal(patient=str(n), removed=False) for n in range(5)]
    assert compare(group, rest).note == "fewer than 6 patients with masks on both sides: not tested"


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_asking_each_patient_more_often_does_not_make_a_difference_surer(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    sides = [[Removal(patient=str(n), removed=bool(drawn.integers(2))) for n in range(12)] for _ in range(2)]
    once, often = compare(*sides), compare(*(side * 5 for side in sides))
    assert often.p == once.p


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
