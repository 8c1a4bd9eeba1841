"""A mask in the wrong place stands out among those of other patients, without any expert's label."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.intensity import IntensitySpec
from distill.semantic import LEAST_PATIENTS, Traits, grey_volume, prior_scores, traits_of
from storage import CaseRecord, Geometry

SHAPE = (10, 24, 30)
MM = (2.0, 1.0, 1.0)


def scene(centre: tuple[float, float, float], radius: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in a grey body with air around it."""
    z, y, x = np.indices(SHAPE)
    mask = ((z - centre[0]) * 2) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2
    body = (y > 1) & (y < 22) & (x > 2) & (x < 27)
    return mask, np.where(mask, 0.9, 0.4) * body


def many(count: int, seed: int = 0) -> dict[str, Traits]:
    draw = np.random.default_rng(seed)
    found = {}
    for n in range(count):
        mask, grey = scene(tuple(np.array([5.0, 10.0, 9.0]) + draw.normal(0, 0.7, 3)), 4 + draw.normal(0, 0.3))
        measured = traits_of(mask, grey + draw.normal(0, 0.02, SHAPE), MM)
        assert measured is not None
        found[f"case{n}"] = measured
    return found


def own_patients(traits: dict[str, Traits]) -> dict[str, str]:
    return {case: case for case in traits}


def test_traits_are_measured_in_the_patient_and_in_the_window() -> None:
    mask, grey = scene((5.0, 11.5, 14.5))
    found = traits_of(mask, grey, MM)
    assert found is not None
    assert found.centre_zyx == pytest.approx((0.5, 0.5, 0.5), abs=0.06)
    assert np.exp(found.log_size) == pytest.approx(2 * mask.sum())
    assert found.contrast == pytest.approx(0.5)
    assert found.elongation == pytest.approx(0.0, abs=0.3)


def test_an_empty_mask_has_no_traits() -> None:
    assert traits_of(np.zeros(SHAPE, bool), np.zeros(SHAPE), MM) is None


@pytest.mark.parametrize(("centre", "radius"), [((5.0, 10.0, 20.0), 4.0), ((5.0, 10.0, 9.0), 1.5)], ids=["another place", "another size"])
def test_a_wrong_object_is_unusual_and_the_others_are_not(centre: tuple[float, float, float], radius: float) -> None:
    traits = many(30)
    stranger = traits_of(*scene(centre, radius), MM)
    assert stranger is not None
    scores = prior_scores(traits | {"stranger": stranger}, own_patients(traits) | {"stranger": "stranger"})
    assert scores["stranger"] < 0.001
    assert np.mean([scores[case] < 0.01 for case in traits]) <= 0.1
    assert np.median(list(scores.values())) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "change",
    [{"centre_zyx": (0.5, 0.42, 0.75)}, {"log_size": 1.5}, {"contrast": -0.3}, {"elongation": 2.0}],
    ids=["place", "size", "contrast", "shape"],
)
def test_a_mask_that_differs_in_one_trait_alone_is_unusual(change: dict[str, object]) -> None:
    traits = many(30)
    odd = replace(traits["case7"], **change)  # type: ignore[arg-type]
    assert prior_scores(traits, own_patients(traits))["case7"] > 0.01
    assert prior_scores(traits | {"case7": odd}, own_patients(traits))["case7"] < 0.001


def test_one_patients_many_wrong_masks_do_not_vouch_for_each_other() -> None:
    traits = many(30)
    wrong = traits_of(*scene((5.0, 10.0, 20.0)), MM)
    assert wrong is not None
    repeated = {f"wrong{n}": wrong for n in range(12)}
    scores = prior_scores(traits | repeated, own_patients(traits) | dict.fromkeys(repeated, "same patient"))
    assert max(scores[case] for case in repeated) < 0.001


def test_wrong_objects_in_every_sixth_case_do_not_set_the_scale() -> None:
    traits = many(30)
    draw = np.random.default_rng(1)
    wrong = {f"wrong{n}": traits_of(*scene((draw.uniform(2, 8), draw.uniform(5, 18), draw.uniform(18, 24))), MM) for n in range(6)}
    together = traits | {case: each for case, each in wrong.items() if each is not None}
    scores = prior_scores(together, own_patients(together))
    assert max(scores[case] for case in wrong) < min(0.01, np.median([scores[case] for case in traits]))


def test_with_few_patients_nothing_is_said() -> None:
    traits = many(LEAST_PATIENTS - 1)
    assert prior_scores(traits, own_patients(traits)) == {}
    assert (
        prior_scores(
            {f"{case}-{n}": each for case, each in traits.items() for n in range(9)}, {f"{c}-{n}": c for c in traits for n in range(9)}
        )
        == {}
    )


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.1, 10.0), seed=st.integers(0, 50))
def test_the_score_does_not_depend_on_the_order_of_cases_or_the_unit_of_a_trait(factor: float, seed: int) -> None:
    traits = many(12)
    other = {
        case: Traits(**{**{name: getattr(each, name) for name in Traits.__slots__}, "inside": factor * each.inside})
        for case, each in traits.items()
    }
    order = np.random.default_rng(seed).permutation(sorted(traits))
    again = prior_scores({str(case): other[str(case)] for case in order}, own_patients(traits))
    assert again == pytest.approx(prior_scores(traits, own_patients(traits)))


def test_grey_values_are_those_of_the_teachers_window() -> None:
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    record = CaseRecord(
        id="ct", patient="p", shape_czyx=(1, 2, 3, 4), dtype="int16", geometry=Geometry(spacing_zyx_mm=MM, affine=eye), modality="CT"
    )
    volume = np.full((1, 2, 3, 4), -1000, np.int16)
    volume[0, 1] = 3000
    grey = grey_volume(record, volume, IntensitySpec())
    assert grey.shape == (2, 3, 4)
    assert (grey[0].max(), grey[1].min()) == (0.0, 1.0)
