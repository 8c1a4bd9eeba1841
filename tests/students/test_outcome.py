"""What is said of a training and of its scores: why it ended, what is wrong, and what to do."""

import pytest

from students.outcome import evaluation_doubts, no_yardstick, passes, stop_words, training_doubts
from students.results import ClassResult, Comparison, Measured
from students.shortfall import difference_words
from students.spec import StudentCard, StudentSpec
from students.unequal import unequal_note, unequal_trainings


def card(
    *,
    steps: int = 1000,
    agreement: float | None = 0.9,
    budget: float | None = 200.0,
    stopped: str = "budget",
    held_out: tuple[str, ...] = (),
) -> StudentCard:
    plan = {
        "dimensions": "2d",
        "in_channels": 1,
        "outputs": 2,
        "filters": (4,),
        "strides": ((1, 1),),
        "kernels": ((3, 3),),
        "patch_zyx": (1, 8, 8),
        "spacing_zyx_mm": (1.0, 1.0, 1.0),
        "batch": 4,
    }
    spec = StudentSpec(budget_seconds=budget, steps=None if budget else steps)
    return StudentCard.model_validate(
        {
            "name": "s",
            "spec": spec.model_dump(),
            "plan": plan,
            "classes": (),
            "label_set": "pseudo/r1",
            "training_cases": tuple(f"c{n}" for n in range(130)),
            "validation_cases": held_out,
            "training_patients": (),
            "fingerprint": "f",
            "parameters": 1,
            "steps": steps,
            "seconds": 200.0,
            "agreement": agreement,
            "stopped": stopped,
            "history": (),
        }
    )


def line(dice: float | list[float], role: str, first: str) -> Comparison:
    """Return a comparison of four cases with one Dice, or of as many cases as there are Dices."""
    each = dice if isinstance(dice, list) else [dice] * 4
    mean = sum(each) / len(each)
    measured = Measured(mean=mean, low=mean, high=mean, patients=len(each), excluded=0)
    result = ClassResult(class_id=1, class_name="organ", metrics={"dice": measured})
    none = {"jaccard": None, "nsd": None, "hd95_mm": None, "volume_bias": None, "first_ml": 1.0, "second_ml": 1.0}
    scores = [{"case": f"t{n}", "patient": f"p{n}", "class_id": 1, "dice": value, **none} for n, value in enumerate(each)]
    return Comparison.model_validate(
        {
            "name": role,
            "role": role,
            "first": first,
            "second": "gold",
            "cases": len(each),
            "missing": 4 - len(each),
            "classes": (result,),
            "scores": scores,
        }
    )


def test_a_good_training_gives_no_warning() -> None:
    assert training_doubts(card()) == ()


def test_a_training_of_few_passes_is_a_warning_that_names_a_longer_budget() -> None:
    short = card(steps=65)
    assert passes(short) == 2.0
    (doubt,) = training_doubts(short)
    assert doubt.startswith("each training case was seen 2.0 times on average (65 steps), which is too little. ")
    assert doubt.endswith("Train longer: student.budget 34min or more in the recipe.")


def test_a_training_of_few_steps_is_told_to_take_more_of_them() -> None:
    (doubt,) = training_doubts(card(steps=65, budget=None))
    assert doubt.endswith("Train longer: 650 steps or more.")


def test_an_agreement_near_nothing_is_a_warning() -> None:
    (doubt,) = training_doubts(card(agreement=0.08))
    assert "reached only 0.08: it has not found the organ" in doubt


@pytest.mark.parametrize(
    ("stopped", "words"), [("early", "agreement no longer rose"), ("budget", "time budget was spent"), ("steps", "all steps were made")]
)
def test_the_end_of_a_training_is_given_with_its_reason_and_agreement(stopped: str, words: str) -> None:
    said = stop_words(card(stopped=stopped))
    assert words in said
    assert "0.900" in said


def test_people_who_were_held_out_are_not_said_to_be_nobody() -> None:
    assert stop_words(card(agreement=None)).endswith("nobody held out")
    said = stop_words(card(agreement=None, held_out=("v0", "v1")))
    assert said.endswith("agreement with the pseudo-labels of 2 cases held out is not known")


def test_student_and_ellipses_are_compared_on_the_cases_that_both_have() -> None:
    """Boxes only on the two easy cases: there the student is better, though its mean over all cases is lower."""
    lines = (line([0.9, 0.9, 0.5, 0.5], "student", "student/s"), line([0.8, 0.8], "arm", "baseline/ellipse"))
    assert evaluation_doubts(lines, None, card(), "baseline/ellipse") == ()


def test_a_student_below_the_ellipses_where_both_are_is_a_warning_though_its_mean_is_above() -> None:
    lines = (line([0.7, 0.7, 0.99, 0.99], "student", "student/s"), line([0.8, 0.8], "arm", "baseline/ellipse"))
    (doubt,) = evaluation_doubts(lines, None, card(), "baseline/ellipse")
    assert "the student (Dice 0.700) is worse than ellipses in the boxes (0.800)" in doubt


def test_a_student_below_the_ellipses_and_its_own_labels_is_two_warnings() -> None:
    lines = (line(0.376, "student", "student/s"), line(0.93, "teacher", "teacher/r1"), line(0.912, "arm", "baseline/ellipse"))
    below, behind, _teacher = evaluation_doubts(lines, line(0.9, "hindsight", "pseudo/r1"), card(), "baseline/ellipse")
    assert (
        "(Dice 0.376) is worse than ellipses in the boxes (0.912): -0.536 [-0.536, -0.536], few patients. Train longer: student.budget"
        in below
    )
    assert "(Dice 0.376) is far below the labels it learnt from (0.900)" in behind


def test_where_the_teacher_is_below_the_ellipses_too_no_longer_training_is_advised() -> None:
    lines = (line(0.87, "student", "student/s"), line(0.892, "teacher", "teacher/r1"), line(0.912, "arm", "baseline/ellipse"))
    doubt, of_teacher = evaluation_doubts(lines, line(0.9, "hindsight", "pseudo/r1"), card(), "baseline/ellipse")
    assert "So is the teacher (0.892)" in doubt
    assert "Train longer" not in doubt + of_teacher


def test_a_student_far_below_a_teacher_that_is_below_the_ellipses_is_to_be_trained_longer() -> None:
    lines = (line(0.41, "student", "student/s"), line(0.892, "teacher", "teacher/r1"), line(0.912, "arm", "baseline/ellipse"))
    doubt, _teacher = evaluation_doubts(lines, None, card(), "baseline/ellipse")
    assert "worse than ellipses in the boxes (0.912): -0.502" in doubt
    assert "Train longer: student.budget" in doubt


@pytest.mark.parametrize("teacher", [0.2, 0.95], ids=["a teacher below the ellipses", "a teacher above them"])
def test_where_most_of_the_training_cases_is_ignored_that_is_said_instead(teacher: float) -> None:
    lines = (line(0.17, "student", "student/s"), line(teacher, "teacher", "teacher/r1"), line(0.215, "arm", "baseline/ellipse"))
    doubt, of_teacher = evaluation_doubts(lines, None, card(), "baseline/ellipse", ignored=0.91)
    assert "91% of the voxels of its training cases are ignored" in doubt
    assert "source: [weak, propagate]" in doubt
    assert "Train longer" not in doubt + of_teacher


@pytest.mark.parametrize(
    ("short", "ignored"),
    [
        pytest.param(card(steps=20), 0.0, id="it has hardly begun"),
        pytest.param(card(steps=20), 0.91, id="it has hardly begun, and most is ignored"),
        pytest.param(card(agreement=0.1), 0.0, id="it has not found the organ"),
    ],
)
def test_a_student_that_is_to_be_trained_longer_is_not_told_that_this_cannot_mend_it(short: StudentCard, ignored: float) -> None:
    lines = (line(0.87, "student", "student/s"), line(0.892, "teacher", "teacher/r1"), line(0.912, "arm", "baseline/ellipse"))
    said = " ".join(evaluation_doubts(lines, None, short, "baseline/ellipse", ignored))
    assert "Train longer" in said
    assert "cannot mend" not in said


def test_an_arm_that_had_other_time_to_learn_shows_no_harm() -> None:
    lines = (line(0.8, "student", "student/s"), line(0.9, "arm", "student/s-gold-alone"))
    told = [
        evaluation_doubts(lines, None, card(), "baseline/ellipse", arms={"arm": "gold-alone"}, unequal=apart)
        for apart in ((), ("gold-alone",))
    ]
    assert "So the pseudo-labels do harm" in told[0][0]
    assert told[1][0].endswith("The two had unequal steps: train both with one budget first.")
    assert "harm" not in told[1][0]


def test_a_student_above_the_ellipses_and_near_its_labels_has_no_warning() -> None:
    lines = (line(0.83, "student", "student/s"), line(0.74, "arm", "baseline/ellipse"))
    assert evaluation_doubts(lines, line(0.86, "hindsight", "pseudo/r1"), card(), "baseline/ellipse") == ()


@pytest.mark.parametrize(
    ("steps", "stopped", "doubted"),
    [
        pytest.param(100, "budget", True, id="time was up on a busy machine"),
        pytest.param(100, "early", False, id="it had learnt what there was to learn"),
        pytest.param(700, "budget", False, id="nearly as many steps"),
        pytest.param(5000, "budget", True, id="the student itself had no time"),
    ],
)
def test_students_that_had_other_time_to_learn_are_not_to_be_compared(steps: int, stopped: str, doubted: bool) -> None:
    own = card(steps=1000, stopped="budget")
    found = unequal_trainings(own, {"all-gold": card(steps=steps, stopped=stopped)})
    assert bool(found) == doubted
    assert not doubted or found[0].startswith(
        f"all-gold ({steps:,}) had {'less than half of' if steps < 1000 else 'more than twice'} the student's 1,000 steps"
    )


def test_many_such_trainings_are_one_warning_of_bounded_length() -> None:
    (said,) = unequal_trainings(card(), {f"compact-mixed-{n}-seed-2": card(steps=10) for n in range(12)})
    assert "compact-mixed-3-seed-2 (10) and 8 more had less than half" in said
    assert len(said) < 280


def test_a_part_of_a_training_that_had_no_time_is_not_given_and_the_steps_of_both_are_named() -> None:
    assert unequal_note("all-gold", card(steps=12), {"the student": card(steps=1472)}) == (
        "all-gold had 12 steps, the student 1,472, as time was up"
    )
    assert unequal_note("all-gold", card(steps=900), {"the student": card(steps=1000)}) == ""


def test_a_full_supervision_that_saw_its_cases_a_few_times_is_no_yardstick() -> None:
    assert no_yardstick("all-gold", card(steps=130)) == "all-gold saw each case 4.0 times, too little to be a yardstick"
    assert no_yardstick("all-gold", card(steps=1000)) == ""


def test_of_one_patient_no_interval_is_told() -> None:
    assert difference_words(-0.085, -0.085, -0.085, 1) == "-0.085, one patient alone"
