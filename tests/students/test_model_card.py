"""A model card says what is known, and that the rest is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage import ClassInfo
from students.checkpoint import read_card
from students.errors import StudentFileError
from students.export.model_card import model_card, read_report
from students.findings import Breakdown, CurveRow, Gap, GoldCurve, PairedDifference, Relative
from students.results import ClassResult, Comparison, Evaluation, Measured
from students.spec import Cost, RoundsNote

MakeStudent = Callable[..., Path]


def report(student: str = "untaught", **changes: object) -> Evaluation:
    known = Measured(mean=0.8125, low=0.75, high=0.875, patients=3, excluded=0)
    unknown = Measured(mean=None, low=None, high=None, patients=0, excluded=3)
    metrics = {"dice": known, "nsd": known, "hd95_mm": known, "volume_bias": unknown}
    found = ClassResult(class_id=3, class_name="kernel", metrics=metrics)
    comparison = Comparison(
        name="student - gold", role="student", first="a", second="gold", cases=3, missing=0, classes=(found,), scores=()
    )
    cost = Cost(
        name="student untaught",
        parameters=1,
        flops_per_case=1.0,
        seconds_per_case=0.25,
        peak_memory_bytes=None,
        device="CPU",
        threads=2,
    )
    values: dict[str, object] = {
        "student": student,
        "trained_on": "pseudo/r1",
        "agreement": 0.75,
        "tolerance_mm": 1.0,
        "cases": ("t0", "t1", "t2"),
        "comparisons": (comparison,),
        "transfer": None,
        "differences": (),
        "hindsight": None,
        "costs": (cost,),
        "classes": (ClassInfo(id=3, name="kernel"),),
    }
    return Evaluation.model_validate(values | changes)


def test_scores_stand_in_it_with_their_intervals_and_what_is_not_known_as_such(make_student: MakeStudent) -> None:
    page = model_card(read_card(make_student()), report())
    assert "On 3 test cases that no step had seen" in page
    assert "| student - gold | kernel | 3 | 0.812 (0.750 to 0.875) |" in page
    assert "| not known |" in page
    assert "| student untaught | 0.25 s | CPU, 2 threads |" in page


def test_what_was_found_beyond_the_table_is_in_it_in_sentences(make_student: MakeStudent) -> None:
    known = Measured(mean=0.95, low=0.93, high=0.97, patients=9, excluded=0)
    test = PairedDifference(other="teacher", class_id=3, class_name="kernel", difference=known, p=0.0004, p_adjusted=0.0008)
    gap = Gap(
        attribute="age_years",
        class_id=3,
        class_name="kernel",
        best="lower third (to 40)",
        worst="upper third (above 60)",
        gap=known,
        p=0.2,
        p_adjusted=0.4,
        equity_scaled=0.8,
    )
    row = CurveRow(taught="mixed", patients=1, gold_cases=1, students=("m",), dice=known, between_seeds=None, minus_gold=known)
    page = model_card(
        read_card(make_student()),
        report(
            relative=(Relative(class_name="", ratio=known),),
            tests=(test,),
            breakdown=Breakdown(gaps=(gap,)),
            gold_curve=GoldCurve(rows=(row,), seeds=(0,)),
        ),
    )
    assert "under full supervision it reaches 0.950 (0.930 to 0.970)." in page
    assert "kernel: Dice minus that of teacher +0.950 (+0.930 to +0.970), p < 0.001" in page
    assert "kernel by age years: worst in upper third (above 60), best in lower third (to 40)" in page
    assert "p 0.400 (permutations, Holm)" in page
    assert "gold beside pseudo-labels of 1 patient: Dice 0.950" in page


def test_a_ratio_that_may_not_be_is_not_given_and_the_reason_is(make_student: MakeStudent) -> None:
    known = Measured(mean=27.6, low=20.0, high=30.0, patients=9, excluded=0)
    why = "all-gold had 12 steps, the student 472, as time was up"
    row = CurveRow(
        taught="mixed",
        patients=1,
        gold_cases=1,
        students=("m",),
        dice=known,
        between_seeds=None,
        minus_gold=known,
        minus_note="gold had 1 step",
    )
    found = report(relative=(Relative(class_name="", ratio=known, note=why),), gold_curve=GoldCurve(rows=(row,), seeds=(0,)))
    page = model_card(read_card(make_student()), found)
    assert f"under full supervision is n/a: {why}." in page
    assert "(unequal steps: gold had 1 step)" in page


def test_a_student_that_nobody_scored_is_said_to_be_one(make_student: MakeStudent) -> None:
    page = model_card(read_card(make_student()))
    assert "Nobody has scored it against experts" in page
    assert "WARNING: each training case was seen" in page


def test_the_report_of_another_student_is_refused(make_student: MakeStudent) -> None:
    with pytest.raises(StudentFileError, match="about the student 'other', not about 'untaught'"):
        model_card(read_card(make_student()), report("other"))


def test_warnings_of_the_report_are_among_the_limits(make_student: MakeStudent) -> None:
    assert "- WARNING: it is bad." in model_card(read_card(make_student()), report(warnings=("it is bad.",)))


def test_a_student_that_was_chosen_among_rounds_says_why(make_student: MakeStudent) -> None:
    card = read_card(make_student())
    assert "| round |" not in model_card(card)
    note = RoundsNote(number=1, made=2, words=("round 2 is worse",))
    assert "| round | 1 of 2; round 2 is worse |" in model_card(card.model_copy(update={"rounds": note}))


def test_a_report_is_read_from_its_folder_and_refused_where_it_is_none(tmp_path: Path) -> None:
    report().save(tmp_path / "report.json")
    assert read_report(tmp_path) == report()
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(StudentFileError, match=r"report\.json: this is no report"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("known", "head", "looks"),
    [
        pytest.param(True, "HD95 (mm)", " mm; what", id="millimetres"),
        pytest.param(False, "HD95 (px)", " px; what", id="pixels"),
        pytest.param("mixed", "HD95 (mm or px)", " mm or px; what", id="some of both"),
    ],
)
def test_lengths_are_in_pixels_where_nobody_knows_the_spacing(known: object, head: str, looks: str, make_student: MakeStudent) -> None:
    card = read_card(make_student())
    page = model_card(card, report(spacing_known=known))
    assert f"| {head} |" in page
    assert looks in page
    assert ("mm" in page.replace("mm or px", "")) == (known is True)
    assert ("px" in page) == (known is not True)


def test_a_card_that_knows_of_pixels_says_so_without_a_report(make_student: MakeStudent) -> None:
    card = read_card(make_student())
    assert '"spacing_known"' not in card.model_dump_json(), "cards of students with a spacing read as before"
    page = model_card(card.model_copy(update={"spacing_known": False}))
    assert " px (z y x)" in page
    assert " mm" not in page
