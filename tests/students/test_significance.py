"""Differences between lines of the table, and the student's Dice as a part of full supervision's."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from storage import ClassInfo
from students.significance import dices_of, paired_differences, ratio_interval, relative_dice

CASES = [f"p{n}" for n in range(12)]

scored = runpy.run_path(str(Path(__file__).with_name("scored.py")))  # tests are no package
ORGAN, comparison = scored["ORGAN"], scored["comparison"]


def around(mean: float, seed: int) -> dict[str, float | None]:
    return dict(zip(CASES, (mean + 0.03 * np.random.default_rng(seed).standard_normal(12)).tolist(), strict=True))


def test_all_p_values_of_a_table_are_adjusted_together() -> None:
    student = comparison(around(0.8, 0))
    others = [comparison(around(mean, n + 1), name=f"arm{n} - gold", role="arm") for n, mean in enumerate((0.8, 0.7, 0.6))]
    agreement = comparison(around(0.5, 9), name="student - teacher", role="agreement")
    found = paired_differences([student, agreement, *others], [ORGAN])
    assert [each.other for each in found] == ["arm0", "arm1", "arm2"], "agreement is no rival"
    ps = [each.p for each in found]
    assert all(each.p_adjusted is not None and each.p is not None and each.p_adjusted >= each.p for each in found)
    assert min(each.p_adjusted or 1 for each in found) == pytest.approx(3 * min(p or 1 for p in ps), abs=1e-6)
    assert found[2].difference.mean == pytest.approx(
        np.mean([student.scores[n].dice - others[2].scores[n].dice for n in range(12)]), abs=1e-6
    )  # type: ignore[operator]


def test_the_ratio_is_that_of_means_and_a_student_is_all_of_itself() -> None:
    student, full = comparison(around(0.8, 0)), comparison(around(0.9, 1), name="all - gold", role="arm")
    (found,) = relative_dice(student, full, [ORGAN])
    means = [np.mean([s.dice for s in each.scores if s.dice is not None]) for each in (student, full)]
    assert found.ratio.mean == pytest.approx(means[0] / means[1], abs=1e-6)
    assert found.ratio.low is not None
    assert found.ratio.high is not None
    assert found.ratio.low < found.ratio.mean < found.ratio.high
    (itself,) = relative_dice(student, student, [ORGAN])
    assert (itself.ratio.mean, itself.ratio.low, itself.ratio.high) == (1, 1, 1)


def test_a_case_that_is_empty_for_one_counts_for_neither() -> None:
    dices = around(0.8, 0)
    student = comparison(dices | {"p0": None})
    full = comparison(around(0.9, 1))
    (found,) = relative_dice(student, full, [ORGAN])
    assert found.ratio.patients == 11
    assert np.isnan(dices_of(student)["p0", ORGAN.id])


def test_nothing_divided_by_nothing_is_not_known() -> None:
    assert np.isnan(ratio_interval({}, {}, {}).mean)
    assert np.isnan(ratio_interval({"a": 0.5}, {"a": 0.0}, {"a": "a"}).mean)


def test_of_several_classes_the_mean_comes_first_and_each_class_after_it() -> None:
    shell = ClassInfo(id=5, name="shell")
    pair = []
    for kernel, other in ((0.8, 0.4), (0.8, 0.8)):
        both = comparison(dict.fromkeys(CASES, kernel))
        twin = [score.model_copy(update={"class_id": 5, "dice": other}) for score in both.scores]
        pair.append(both.model_copy(update={"scores": (*both.scores, *twin)}))
    found = relative_dice(pair[0], pair[1], [ORGAN, shell])
    assert [(each.class_name, each.ratio.mean) for each in found] == [
        ("", pytest.approx(0.6 / 0.8)),
        ("kernel", pytest.approx(1)),
        ("shell", pytest.approx(0.5)),
    ]
    tests = paired_differences([pair[0], pair[1].model_copy(update={"role": "arm", "name": "full - gold"})], [ORGAN, shell])
    assert (tests[0].class_name, tests[0].p) == ("kernel", 1)
    assert tests[1].p_adjusted == pytest.approx(2 * (tests[1].p or 0))


def test_cases_that_a_comparison_leaves_out_are_counted() -> None:
    student = comparison({**around(0.8, 0), "p0": None})
    teacher = comparison(
        {case: value for case, value in around(0.7, 1).items() if case not in ("p1", "p2")}, name="teacher - gold", role="teacher"
    )
    (found,) = paired_differences([student, teacher], [ORGAN])
    assert (found.difference.patients, found.difference.excluded) == (9, 3)
    (ratio,) = relative_dice(student, teacher, [ORGAN])
    assert (ratio.ratio.patients, ratio.ratio.excluded) == (9, 3)


def test_where_a_draw_would_be_divided_by_nothing_there_is_no_ratio_and_the_reason_is_given() -> None:
    student, full = comparison(around(0.8, 0)), comparison({case: 0.3 if case == "p0" else 0.0 for case in CASES})
    (found,) = relative_dice(student, full, [ORGAN])
    assert found.ratio.mean is None
    assert found.note == "full supervision has a Dice of 0 on too many patients to divide by it"


def test_trainings_that_may_not_be_compared_give_no_ratio_and_what_was_left_out_is_still_counted() -> None:
    student, full = comparison({**around(0.8, 0), "p0": None}), comparison(around(0.9, 1))
    (found,) = relative_dice(student, full, [ORGAN], "all-gold had 12 steps, the student 472, as time was up")
    assert found.note.startswith("all-gold had 12 steps")
    assert (found.ratio.mean, found.ratio.low, found.ratio.high) == (None, None, None)
    assert (found.ratio.patients, found.ratio.excluded) == (11, 1)
    assert ratio_interval({}, {}, {"a": "a"}).excluded == 1
