"""Evaluation: who is compared with whom, on which cases, and what the page shows."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import quality
from distill.lesions import score_lesions
from distill.teachers.cpu_products import PackedLinear
from distill.teachers.int8_products import PackedInt8Linear
from distill.tubes import cl_dice
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students import baselines, compact, load_student
from students.cost import measure_cost, student_cost
from students.errors import GoldLeakError
from students.evaluate import Arm, EvaluationPlan, evaluate, resolved, spacing_known, unseen_cases
from students.figures import Measured
from students.findings import LesionsOfSize, Relative
from students.gold_curve import CurveStudent
from students.predict import Student
from students.report import write_report
from students.results import Evaluation
from students.spec import RoundsNote, StudentSpec
from students.whole_volume import CompactNetwork

CLASSES = (ClassInfo(id=3, name="kernel"),)


@pytest.fixture(scope="module")
def student(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Student:
    spec = StudentSpec(
        name="judged", budget_seconds=None, steps=30, width=8, lr=5e-3, batch=2, threads=1, device="cpu", validation_fraction=0.2
    )
    done = compact.train(archive, label_set="pseudo/r1", classes=CLASSES, spec=spec, workdir=tmp_path_factory.mktemp("student"))
    return load_student(done.path, device="cpu")


@pytest.fixture(scope="module")
def evaluation(archive: Archive, student: Student) -> Evaluation:
    baselines.write_ellipse_labels(archive, ["test0", "test1"], CLASSES)
    arms = (
        Arm(name="ellipse in <box>", label_set=baselines.LABEL_SET),
        Arm(name="itself", student=student.path),
    )
    return evaluate(archive, student, EvaluationPlan(teacher="teacher/r1", arms=arms))


def test_every_pair_is_measured_on_the_test_part_only(evaluation: Evaluation) -> None:
    assert evaluation.cases == ("test0", "test1", "test2")
    assert [c.name for c in evaluation.comparisons] == [
        "student - gold",
        "teacher - gold",
        "student - teacher",
        "ellipse in <box> - gold",
        "itself - gold",
    ]
    assert evaluation.comparison("itself - gold").scores == evaluation.comparison("student - gold").scores


def test_figures_equal_the_metrics_computed_by_hand(archive: Archive, evaluation: Evaluation) -> None:
    teacher = evaluation.comparison("teacher - gold")
    case = archive["test1"]
    a, b = case.labels("teacher/r1").read() == 3, case.labels("gold").read() == 3
    score = next(s for s in teacher.scores if s.case == "test1")
    assert score.dice == pytest.approx(quality.dice(a, b), abs=1e-6)
    assert score.hd95_mm == pytest.approx(quality.hd95(a, b, case.spacing_zyx_mm), abs=1e-6)
    assert score.second_ml == pytest.approx(b.sum() * 1.5 * 0.8 * 1.0 / 1000, abs=1e-6)
    mean = teacher.classes[0].metrics["dice"]
    assert mean.low is not None
    assert mean.high is not None
    assert mean.mean is not None
    assert mean.low <= mean.mean <= mean.high
    assert mean.patients == 3


def test_a_label_set_that_some_cases_lack_is_counted_as_missing(evaluation: Evaluation) -> None:
    ellipse = evaluation.comparison("ellipse in <box> - gold")
    assert (ellipse.cases, ellipse.missing) in {(2, 1), (3, 0)}


def test_a_student_is_its_own_equal(evaluation: Evaluation) -> None:
    difference = next(d for d in evaluation.differences if d.name == "student minus itself")
    assert (difference.dice.mean, difference.dice.low, difference.dice.high) == (0, 0, 0)


def test_corrected_and_imitated_errors_share_the_teachers_errors_out(evaluation: Evaluation) -> None:
    assert evaluation.transfer is not None
    assert evaluation.transfer.correction.mean is not None
    assert evaluation.transfer.imitation.mean is not None
    assert evaluation.transfer.correction.mean + evaluation.transfer.imitation.mean == pytest.approx(1, abs=1e-5)


def test_training_labels_are_judged_afterwards_with_and_without_their_holes(evaluation: Evaluation) -> None:
    assert evaluation.hindsight is not None
    left_out = evaluation.hindsight.with_ignored_left_out.classes[0].metrics["dice"].mean
    background = evaluation.hindsight.with_ignored_as_background.classes[0].metrics["dice"].mean
    assert left_out == 1
    assert background is not None
    assert background < 1
    assert 0.5 < evaluation.hindsight.coverage < 1
    assert all(s.case.startswith("train") for s in evaluation.hindsight.with_ignored_left_out.scores)


@pytest.mark.parametrize("case", ["train0", "calib0"])
def test_cases_that_training_or_calibration_may_use_are_refused(archive: Archive, student: Student, case: str) -> None:
    with pytest.raises(GoldLeakError, match=f"case {case}: it belongs to the part"):
        unseen_cases(archive, student, EvaluationPlan(cases=(case,)))


def test_a_patient_that_was_trained_on_is_refused_under_any_case_id(archive: Archive, student: Student) -> None:
    card = student.card.model_copy(update={"training_patients": ("p-test1",)})
    other = Student(card, CompactNetwork(student.network, card.plan, student.device), student.device, student.path)
    with pytest.raises(GoldLeakError, match=r"case test1: it is of a patient \(p-test1\)"):
        unseen_cases(archive, other, EvaluationPlan())


def test_a_case_that_an_earlier_step_has_seen_is_refused(archive: Archive, student: Student) -> None:
    with pytest.raises(GoldLeakError, match="case test2: it was seen by an earlier step"):
        unseen_cases(archive, student, EvaluationPlan(seen=frozenset({"test2"})))


def test_without_gold_there_is_no_score(archive: Archive, student: Student) -> None:
    with pytest.raises(GoldLeakError, match="no test case carries the label set 'gold/other'"):
        unseen_cases(archive, student, EvaluationPlan(gold="gold/other"))


def test_several_gold_ids_can_make_up_one_class(archive: Archive, student: Student) -> None:
    merged = evaluate(archive, student, EvaluationPlan(gold_ids={3: (3, 4)}))
    apart = evaluate(archive, student, EvaluationPlan(gold_ids={3: (4,)}))
    assert (merged.mean("student - gold") or 0) > 0.5
    assert apart.mean("student - gold") == 0


def test_costs_count_every_parameter_once_and_the_arithmetic_of_one_case(archive: Archive, student: Student) -> None:
    cost = student_cost(student, archive, "test0")
    assert cost.parameters == sum(p.numel() for p in student.network.parameters()) == student.card.parameters
    assert cost.flops_per_case > 2 * cost.parameters
    assert cost.seconds_per_case > 0


def test_the_json_reads_back_as_the_same_record(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path / "e.json")
    assert Evaluation.model_validate_json((tmp_path / "e.json").read_text()) == evaluation
    assert "NaN" not in (tmp_path / "e.json").read_text()


def test_the_page_needs_nothing_but_itself(archive: Archive, evaluation: Evaluation, tmp_path: Path) -> None:
    page = write_report(evaluation, archive, tmp_path / "sub" / "report.html")
    text = page.read_text(encoding="utf-8")
    assert json.loads(page.with_suffix(".json").read_text())["student"] == "judged"
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert text.count("data:image/png;base64,") == 3, "all three cases, so none is left that is furthest from the teacher"
    assert "ellipse in <box>" not in text
    assert "ellipse in &lt;box&gt;" in text
    assert "prefers-color-scheme: dark" in text
    for word in ("Dice", "NSD", "HD95 (mm)", "volume bias (%)", "agreement, not accuracy", "seconds per case"):
        assert word in text


@pytest.fixture(scope="module")
def thorough(archive: Archive, student: Student) -> Evaluation:
    """With full supervision, which is the student itself here, a tube, and a curve of two points."""
    arms = (Arm(name="all gold", student=student.path, asked_as="all-gold", is_full_supervision=True),)
    curve = (
        CurveStudent(taught="gold", patients=1, seed=0, path=student.path),
        CurveStudent(taught="mixed", patients=1, seed=0, path=student.path),
    )
    plan = EvaluationPlan(teacher="teacher/r1", arms=arms, curve=curve, shapes={3: "tube"}, curve_missing=("judged-gold-9: too few",))
    return evaluate(archive, student, plan)


def test_tubes_and_lesions_are_measured_only_of_classes_that_are_some(
    archive: Archive, student: Student, evaluation: Evaluation, thorough: Evaluation, tmp_path: Path
) -> None:
    case = archive["test1"]
    pair = [case.labels(name).read() == 3 for name in (f"student/{student.name}", "gold")]
    score = next(s for s in thorough.comparisons[0].scores if s.case == "test1")
    assert score.cl_dice == pytest.approx(cl_dice(*pair), abs=1e-6)
    assert set(thorough.comparisons[0].classes[0].metrics) == {*quality.MaskScores.__slots__, "cl_dice"}
    assert set(evaluation.comparisons[0].classes[0].metrics) == set(quality.MaskScores.__slots__)
    assert "clDice" in thorough.conventions
    assert "clDice" not in evaluation.conventions
    rival = Arm(name="net on gold", label_set="gold", asked_as="gold-alone")  # a stand-in that nobody can be above
    judged = evaluate(archive, student, EvaluationPlan(cases=("test1",), shapes={3: "lesions"}, arms=(rival,)))
    assert any("is below the same net trained on its gold alone (1.000)" in each for each in judged.warnings)
    (row,) = judged.lesion_sizes
    assert (row.lesions, row.size) == (1, "100 to 1,000 mm3")
    page = write_report(judged, archive, tmp_path / "lesions.html").read_text(encoding="utf-8")
    assert f"{row.found} of 1" in page
    lesions = judged.comparisons[0]
    assert lesions.scores[0].lesion_f1 == pytest.approx(score_lesions(*pair).lesion_f1)
    assert lesions.classes[0].metrics["false_lesions"].mean == score_lesions(*pair).false_lesions


def test_a_student_reaches_all_of_what_it_is_itself(thorough: Evaluation) -> None:
    (whole,) = thorough.relative
    assert (whole.ratio.mean, whole.ratio.low, whole.ratio.high) == (1, 1, 1)
    assert thorough.arms == ("all-gold",)
    assert [test.other for test in thorough.tests] == ["teacher", "all gold"]
    assert thorough.gold_curve is not None
    assert [row.minus_gold.mean for row in thorough.gold_curve.rows if row.minus_gold] == [0]
    assert thorough.gold_curve.rows[0].dice.mean == thorough.comparisons[0].classes[0].metrics["dice"].mean


def test_what_the_student_says_of_itself_is_judged(thorough: Evaluation) -> None:
    (calibration,), (failures,) = thorough.calibration, thorough.failure_detection
    assert calibration.cases == 3
    assert 0 <= (calibration.ece.mean or 0) <= 1
    assert sum(each.share for each in calibration.plot.bins) == pytest.approx(1)
    risks = [1 - s.dice for s in thorough.comparisons[0].scores if s.dice is not None]
    assert failures.curve.whole == pytest.approx(np.mean(risks), abs=1e-6)
    assert thorough.breakdown is not None
    assert thorough.breakdown.alike["modality"] == "MR"


def test_the_page_leads_to_every_section_and_each_column_explains_itself(archive: Archive, thorough: Evaluation, tmp_path: Path) -> None:
    page = write_report(thorough, archive, tmp_path / "thorough.html")
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r'href="#([\w-]+)"', text)
    assert {"class-3", "tests", "curve", "transfer", "confidence", "groups", "hindsight", "cost", "conventions"} <= set(targets)
    assert all(f'id="{target}"' in text for target in targets)
    assert "judged-gold-9: too few" in text
    assert "clDice" in text
    assert "100.0 %" in text
    assert "@media print" in text
    assert not re.search(r"\bnan\b", text.lower())
    assert Evaluation.model_validate_json(page.with_suffix(".json").read_text()) == thorough


def test_the_page_gives_no_ratio_to_a_training_that_had_no_time_and_says_what_was_left_out(
    archive: Archive, thorough: Evaluation, tmp_path: Path
) -> None:
    why, unknown = (
        "all-gold had 12 steps, the student 472, as time was up",
        Measured(mean=None, low=None, high=None, patients=3, excluded=1),
    )
    curve, known = thorough.gold_curve, Measured(mean=0.5, low=0.4, high=0.6, patients=3, excluded=1)
    assert curve is not None
    rows = [row.model_copy(update={"note": why, "share_of_full": unknown, "unpaired": 1, "dice": known}) for row in curve.rows]
    sizes = LesionsOfSize(class_id=3, class_name="kernel", size="s", lesions=3, found=1, sensitivity=known, teacher=known)
    alone = sizes.model_copy(update={"teacher": known.model_copy(update={"patients": 1})})
    first = thorough.comparisons[0]
    each_alone = tuple(score.model_copy(update={"patient": score.case}) for score in first.scores)
    shown = thorough.model_copy(
        update={
            "relative": (Relative(class_name="", ratio=unknown, note=why),),
            "gold_curve": curve.model_copy(update={"rows": tuple(rows)}),
            "lesion_sizes": (sizes, alone),
            "comparisons": (first.model_copy(update={"scores": each_alone}), *thorough.comparisons[1:]),
        }
    )
    text = write_report(shown, archive, tmp_path / "unequal.html").read_text(encoding="utf-8")
    assert "<b>n/a</b><span title=" in text
    assert f"(rho)<br>n/a: {why}</span>" in text
    assert f"n/a: {why}.</p>" in text
    assert f"Of full supervision, n/a: {why}.</p>" in text
    assert "1 case left out" in text
    assert "1 Dice value left out" in text
    assert "1 cases" not in text
    assert text.count("of 1 patient alone") == 1
    assert "Each scored case here is a patient of its own; where patients have several, give" in text


def test_a_report_of_an_older_program_still_reads(evaluation: Evaluation) -> None:
    later = {"shapes", "arms", "tests", "relative", "calibration", "failure_detection", "breakdown", "gold_curve"}
    old = {name: value for name, value in evaluation.model_dump(mode="json").items() if name not in later}
    for comparison in old["comparisons"]:
        for score in comparison["scores"]:
            for name in ("cl_dice", "lesion_f1", "lesion_sensitivity", "false_lesions"):
                del score[name]
    read = Evaluation.model_validate(old)
    assert read.comparisons == evaluation.comparisons
    assert read.tests == ()


def test_a_page_about_pictures_without_a_spacing_speaks_of_pixels(archive: Archive, evaluation: Evaluation, tmp_path: Path) -> None:
    assert evaluation.spacing_known
    page = write_report(evaluation.model_copy(update={"spacing_known": False, "breakdown": None}), archive, tmp_path / "px.html")
    text = page.read_text(encoding="utf-8")
    assert "HD95 (px)" in text
    assert "mean of student and gold (px)" in text
    assert "Pixel sizes of these pictures are not known" in text
    assert not re.findall(r"\d ml|\(ml\)|\(mm\)|\d mm", text)


def test_a_page_about_cases_of_both_kinds_says_that_its_units_are_mixed(archive: Archive, evaluation: Evaluation, tmp_path: Path) -> None:
    record = archive["test0"].record
    unknown = replace(record, geometry=replace(record.geometry, spacing_known=False))
    assert spacing_known([record, unknown]) == "mixed"
    assert spacing_known([record]) is True
    assert spacing_known([unknown, unknown]) is False
    page = write_report(evaluation.model_copy(update={"spacing_known": "mixed"}), archive, tmp_path / "mixed.html")
    text = page.read_text(encoding="utf-8")
    assert "HD95 (mm or px)" in text
    assert "Mixed: pixel sizes of only some of these cases are known" in text
    again = Evaluation.model_validate_json(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert again.spacing_known == "mixed"


def test_warnings_stand_at_the_top_of_the_page_and_only_where_there_are_some(
    archive: Archive, evaluation: Evaluation, tmp_path: Path
) -> None:
    quiet = write_report(evaluation.model_copy(update={"warnings": ()}), archive, tmp_path / "quiet.html").read_text(encoding="utf-8")
    assert 'role="alert"' not in quiet
    loud = write_report(evaluation.model_copy(update={"warnings": ("kernel: <worse>",)}), archive, tmp_path / "loud.html")
    text = loud.read_text(encoding="utf-8")
    assert "kernel: &lt;worse&gt;" in text
    assert text.index('role="alert"') < text.index('class="tiles"')


def test_why_a_student_was_chosen_among_rounds_stands_in_the_report(archive: Archive, evaluation: Evaluation, tmp_path: Path) -> None:
    note = RoundsNote(number=2, made=3, relabel="student", words=("round 3 is <worse>",))
    chosen = evaluation.model_copy(update={"rounds": note, "trained_on": "pseudo/r2"})
    text = write_report(chosen, archive, tmp_path / "rounds.html").read_text(encoding="utf-8")
    assert "Of round 2 of 3" in text
    assert "Round 3 is &lt;worse&gt;." in text
    assert "answers of students that never saw the case, after refinement, round 2" in text
    assert json.loads((tmp_path / "rounds.json").read_text(encoding="utf-8"))["rounds"]["number"] == 2
    mean = chosen.model_copy(update={"rounds": note.model_copy(update={"relabel": "mean"})})
    text = write_report(mean, archive, tmp_path / "rounds.html").read_text(encoding="utf-8")
    assert "the mean of the teacher's masks and answers of students that never saw the case, after refinement, round 2" in text.replace(
        "&#39;", "'"
    )


def test_words_that_only_we_use_are_explained_where_they_stand(archive: Archive, evaluation: Evaluation, tmp_path: Path) -> None:
    text = write_report(evaluation, archive, tmp_path / "words.html").read_text(encoding="utf-8")
    for words in (
        "after refinement, round 1",
        "(an <i>arm</i>)",
        "gives the same wrong answer",
        "<i>Ignored voxels</i> are",
        "Each dot is a case",
    ):
        assert words in text


def test_the_page_says_that_three_patients_are_too_few_for_its_intervals_and_of_which_masks_the_teachers_dice_is(
    archive: Archive, evaluation: Evaluation, tmp_path: Path
) -> None:
    text = write_report(evaluation, archive, tmp_path / "few.html").read_text(encoding="utf-8")
    tiles = text[text.index('class="tiles"') : text.index("<h2")]
    on_all = (
        evaluation.comparison("ellipse in <box> - gold").cases == 3
    )  # both empty on the third, where the student finds nothing: no figure then
    assert tiles.count("only 3 patients: too narrow to trust</span>") == 3 + on_all, (
        "the student, and what it is compared with on all test cases"
    )
    assert tiles.count("only 2 patients: too narrow to trust</span>") == 1 - on_all, "ellipses are there on two"
    assert 'teacher - gold <span class="soft">(its masks as it drew them, before refinement)</span>' in text
    assert "while the filter report's Dice is of masks as refinement cut them" in text


def test_a_call_for_several_cases_is_shared_out_among_them(student: Student) -> None:
    image = np.zeros((1, 12, 22, 18), np.float32)
    image[0, 3:6] = 1

    def twice() -> None:
        for _ in range(2):
            student.predict(image, (1.5, 0.8, 1.0))

    one = measure_cost("one", [student.network], lambda: student.predict(image, (1.5, 0.8, 1.0)), device=student.device, repeats=1)
    two = measure_cost("two", [student.network], twice, device=student.device, repeats=1, cases=2)
    assert two.flops_per_case == pytest.approx(one.flops_per_case)


def test_memory_that_rises_is_seen_and_memory_that_does_not_is_left_unsaid() -> None:
    def hungry() -> float:
        block = np.ones(64 << 17)
        time.sleep(0.05)
        return float(block.sum())

    cpu = torch.device("cpu")
    seen = measure_cost("hungry", [], hungry, device=cpu, repeats=1).peak_memory_bytes
    assert seen is not None
    assert seen > 48 << 20
    assert measure_cost("modest", [], lambda: 1, device=cpu, repeats=1).peak_memory_bytes is None


def test_doubtful_voxels_go_to_the_side_of_the_threshold_they_are_on(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "doubt.zarr"))
    identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=identity)
    record = CaseRecord(id="c", patient="p", shape_czyx=(1, 1, 1, 4), dtype="uint8", geometry=geometry)
    case = archive.add_case(record, np.zeros((1, 1, 1, 4), np.uint8))
    history = LabelHistory(label_set="pseudo/r1", classes=(ClassInfo(id=3, name="c"),), made_by="test", parameters={"threshold/3": 0.4})
    ids, probability = np.array([[[3, IGNORE, IGNORE, 0]]], np.uint8), np.array([[[[250, 110, 90, 5]]]], np.uint8)
    case.write_labels(history, ids, probability_kzyx=probability)
    assert resolved(case.labels("pseudo/r1")).tolist() == [[[3, 3, 0, 0]]]
    case.write_labels(history, ids)
    assert resolved(case.labels("pseudo/r1")).tolist() == ids.tolist()


@pytest.mark.parametrize("packed", [PackedLinear, PackedInt8Linear])
def test_products_with_packed_weights_are_counted(packed: type[PackedLinear | PackedInt8Linear]) -> None:
    layer = packed(torch.ones(32, 64), None, 16)
    cost = measure_cost("teacher", [], lambda: layer(torch.ones(16, 64)), device=torch.device("cpu"), repeats=1)
    assert cost.flops_per_case == 2 * 16 * 64 * 32
