"""Rounds after the first: who labels, what is kept, when they end, and that a killed run goes on."""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from distill.cleaning import ClassRule
from flows import freshness, launch, plans, round_guard, rounds, stages, teaching
from flows.errors import RecipeError
from flows.inspection import inspect_path
from flows.outdated import find_outdated
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import FIRST, GUARD, PSEUDO_SET, TEACHER_SET, StageResult
from flows.round_record import RoundEntry, RoundsRecord, rounds_file
from flows.round_units import round_units
from flows.rules import starting_rules
from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, Geometry, LabelHistory, Part, Prompt
from storage.database import Database
from storage.tables import UnitRow
from storage.working import Worked
from students import compact, fold_answers, out_of_fold
from students.checkpoint import read_card, weights_digest
from students.drift import Drift, drift_of
from students.folds import FoldPlan
from students.predict import Prediction, Student
from students.relabel import Relabel
from students.spec import StudentSpec

WriteRecipe = Callable[[str], Path]
CLASSES = (ClassInfo(id=1, name="organ"),)
SHAPE = (6, 14, 18)
TINY = {"steps": 1, "budget_seconds": None, "width": 4, "threads": 1, "mixed_precision": False}
BY_HAND = (3.0, 2.0, 13.0, 11.0)
RESTLESS = "learnt3"
"""The case whose label changes most."""


def scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright block in the dark, and where it is."""
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 3:10, 4 + number % 3 : 12] = True
    return (mask * 100 + np.random.default_rng(number).integers(0, 20, SHAPE)).astype(np.int16)[None], mask


def add(archive: Archive, number: int, part: Part) -> None:
    name, (image, mask) = f"{'learnt' if part == 'archive' else 'known'}{number}", scan(number)
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    record = CaseRecord(id=name, patient=name, shape_czyx=image.shape, dtype="int16", geometry=geometry, part=part, fingerprint=name)
    case = archive.add_case(record, image)
    drawn = np.roll(mask, 6 if name == RESTLESS else 1, axis=2).astype(np.uint8)
    made = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint=f"t-{name}")
    case.write_labels(made, drawn, probability_kzyx=drawn[None] * 255, scores={"pairwise_dice/1": 0.9})
    refined = replace(made, label_set=PSEUDO_SET, parents=(TEACHER_SET,), parameters={"made_of": f"t-{name}"}, fingerprint=f"p-{name}")
    case.write_labels(refined, drawn, scores={"accepted": 1.0})
    if part != "archive":
        case.write_labels(replace(made, label_set="gold", fingerprint=name), mask.astype(np.uint8))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive.create(str(tmp_path / "a.zarr"))
    for number in range(6):
        add(made, number, "archive")
    for number in range(6, 9):
        add(made, number, "calibration")
    return made


@pytest.fixture
def recipe_of(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """A recipe whose students are trained in a step, and see what is bright whatever they have learnt."""
    spec_of, plan_of = plans.student_spec, plans.round_fold_plan

    def spec(recipe: Recipe) -> StudentSpec:
        return spec_of(recipe).model_copy(update=TINY)

    def plan(recipe: Recipe, cases: tuple[str, ...], gold: tuple[str, ...]) -> FoldPlan:
        found = plan_of(recipe, cases, gold)
        return replace(found, spec=found.spec.model_copy(update=TINY))

    def bright(_: Sequence[Student], stored: Case) -> np.ndarray:
        return np.where(stored.read() > 60, np.float32(0.97), np.float32(0.01))

    monkeypatch.setattr(plans, "student_spec", spec)
    monkeypatch.setattr(plans, "round_fold_plan", plan)
    monkeypatch.setattr(fold_answers, "mean_probability", bright)
    monkeypatch.setattr(stages, "report_filter", lambda recipe: StageResult(stage="filter"))
    smallest = "archive: ./a.zarr\nclasses: {1: {name: organ}}\nrefine: {semantic: prior, risk: 0.4}\nstudent: {name: net}\n"
    return lambda block: load_recipe(write_recipe(smallest + block))


def judged(monkeypatch: pytest.MonkeyPatch, *changes: float) -> None:
    """Have the guard find these changes of Dice, round by round."""
    left = list(changes)

    def compare(*_: object, may_fall: float, **__: object) -> Drift:
        change = left.pop(0)
        scores = {f"c{n}": (0.8, 0.8 + change) for n in range(6)}
        return drift_of(scores, {case: case for case in scores}, measure="gold", may_fall=may_fall, own=(0.8, 0.9))

    monkeypatch.setattr(round_guard, "compare_students", compare)


def run(recipe: Recipe) -> StageResult:
    trained = teaching.train(recipe)
    assert not trained.failed
    return rounds.further_rounds(recipe)


def forgotten_units(archive: Archive, recipe: Recipe) -> set[tuple[str, str]]:
    """Return what the ledger holds of later rounds, and a run with --retry would not try again."""
    database = Database(archive.catalog.url)
    with database.reading() as connection:
        held = connection.execute(sa.select(UnitRow.stage, UnitRow.unit)).tuples().all()
    known = {unit for unit in round_units(recipe) if unit[1] is not None}
    whole = {stage for stage, unit in round_units(recipe) if unit is None}
    of_rounds = {(stage, unit) for stage, unit in held if "r2" in stage or "round-2" in stage or "-r2" in unit}
    return {each for each in of_rounds if each not in known and each[0] not in whole}


STUDENT_RELABELS = "rounds: {most: 2, relabel: student, drop: 0.2}\n"


def test_labels_of_a_round_carry_its_number_and_their_parents(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe = recipe_of(STUDENT_RELABELS)
    result = run(recipe)
    assert (result.failed, result.quarantined) == (0, 0)
    case = archive["learnt0"]
    assert {"folds/r2", "pseudo/r2"} <= set(case.label_sets())
    assert (case.labels("folds/r2").history.parents, case.labels("folds/r2").history.round) == ((PSEUDO_SET,), 2)
    assert (case.labels("pseudo/r2").history.parents, case.labels("pseudo/r2").history.round) == (("folds/r2",), 2)
    listed = {each.name: (each.round, each.label_set) for each in archive.catalog.students()}
    assert listed == {"net": (2, "pseudo/r2"), "net-r1": (1, PSEUDO_SET), "net-r2": (2, "pseudo/r2")}
    assert "round 2" in str(inspect_path(recipe.archive).facts["students"])
    assert not forgotten_units(archive, recipe)


def test_the_case_whose_label_changed_most_is_not_learnt_from(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe = recipe_of(STUDENT_RELABELS)
    run(recipe)
    card = read_card(recipe.student_folder)
    assert archive[RESTLESS].labels("pseudo/r2").scores["accepted"] == 1
    assert RESTLESS not in {*card.training_cases, *card.validation_cases}
    record = RoundsRecord.model_validate_json(rounds_file(recipe).read_text(encoding="utf-8"))
    assert record.rounds[0].dropped == (RESTLESS,)


def test_a_better_student_takes_the_place_and_a_run_with_nothing_to_do_does_nothing(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02, 0.01)
    recipe = recipe_of("rounds: {most: 3, relabel: student}\n")
    run(recipe)
    students = recipe.student_folder.parent
    assert weights_digest(recipe.student_folder) == weights_digest(students / "net-r3")
    card = read_card(recipe.student_folder)
    assert card.name == "net"
    assert card.rounds is not None
    assert (card.rounds.number, card.rounds.made, len(card.rounds.words)) == (3, 3, 2)
    held = [{archive[case].record.patient for case in read_card(students / f"net-r{n}").validation_cases} for n in (1, 2, 3)]
    assert held[0] == held[1] == held[2]
    versions = archive.catalog.student_versions("net")
    again = run(recipe)
    assert (again.done, again.failed) == (0, 0)
    assert archive.catalog.student_versions("net") == versions
    assert not find_outdated(archive).students
    freshness.remember_run(recipe, [], None)
    assert freshness.is_up_to_date(recipe, [])
    archive.ledger.plan(GUARD, {"net-r3": "judged otherwise"})
    assert not freshness.is_up_to_date(recipe, [])


def test_the_guard_ends_the_rounds_where_a_student_falls_and_the_earlier_one_stays(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, -0.03)
    recipe = recipe_of("rounds: {most: 3, relabel: student}\n")
    result = run(recipe)
    students = recipe.student_folder.parent
    assert weights_digest(recipe.student_folder) == weights_digest(students / "net-r1")
    assert "pseudo/r3" not in archive.catalog.count_label_sets()
    card = read_card(recipe.student_folder)
    assert card.rounds is not None
    for words in (result.note, " ".join(card.rounds.words), rounds_file(recipe).read_text(encoding="utf-8")):
        assert "round 2 is worse by more than 0.01, so the student of round 1 stays" in words
    assert "ALARM: agreement with its own labels rose" in result.note


def test_a_fall_within_chance_leaves_the_earlier_student_and_the_rounds_go_on(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.0, 0.02)
    recipe = recipe_of("rounds: {most: 3, relabel: student}\n")
    run(recipe)
    found = read_card(recipe.student_folder).rounds
    assert found is not None
    assert found.number == 3
    assert archive.catalog.count_label_sets()["pseudo/r3"] == 9


def test_the_real_guard_asks_gold_of_calibration_patients(archive: Archive, recipe_of: Callable[[str], Recipe]) -> None:
    recipe = recipe_of(STUDENT_RELABELS)
    run(recipe)
    found = round_guard.read_drift(recipe.report_folder / "round-2.json")
    assert (found.measure, found.patients) == ("gold", 3)
    assert round_guard.judged_by(archive, recipe)[1] == ["known6", "known7", "known8"]


def test_without_calibration_gold_students_are_judged_on_patients_held_out(archive: Archive, recipe_of: Callable[[str], Recipe]) -> None:
    recipe = recipe_of("rounds: {most: 2, relabel: student, guard: agreement}\n")
    result = run(recipe)
    measure, cases = round_guard.judged_by(archive, recipe)
    held = set(read_card(recipe.student_folder.parent / "net-r1").validation_cases)
    assert measure == "agreement"
    assert held
    assert set(cases) == held | {"known6", "known7", "known8"}
    assert "agreement with the first round's labels" in result.note


def test_rounds_that_nobody_can_judge_end_with_the_first_student(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_guard, "judged_by", lambda *_: ("gold", ["known8"]))
    recipe = recipe_of("rounds: {most: 3, relabel: student}\n")
    result = run(recipe)
    assert "round 2 cannot be judged without 3 patients" in result.note
    assert weights_digest(recipe.student_folder) == weights_digest(recipe.student_folder.parent / "net-r1")
    assert len(archive.catalog.students()) == 3


def test_too_few_patients_for_strangers_end_the_rounds_with_the_first_student(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("students.out_of_fold.LEAST_PATIENTS", 99)
    note = run(recipe_of("rounds: {most: 2, relabel: student}\n")).note
    assert "round 2 needs believed labels of at least 99 patients of the archive part" in note
    assert "the student of round 1 stays" in note
    assert not archive.cases(with_labels="folds/r2")


def test_a_run_that_was_killed_in_a_round_goes_on_where_it_was(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe, train = recipe_of(STUDENT_RELABELS), teaching.train

    def killed(asked: Recipe) -> StageResult:
        if asked.round.number > 1:
            raise KeyboardInterrupt
        return train(asked)

    monkeypatch.setattr(teaching, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert read_card(recipe.student_folder).rounds is None
    labels = archive.catalog.fingerprints("pseudo/r2")
    monkeypatch.setattr(teaching, "train", train)
    monkeypatch.setattr(fold_answers, "mean_probability", lambda *_: pytest.fail("students were asked again"))
    assert not run(recipe).failed
    assert archive.catalog.fingerprints("pseudo/r2") == labels
    assert read_card(recipe.student_folder).rounds is not None


def test_a_run_that_was_killed_before_it_concluded_leaves_nothing_outdated_and_the_next_one_concludes(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe, conclude = recipe_of(STUDENT_RELABELS), rounds.conclude

    def killed(*_: object) -> StageResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "conclude", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    assert {each.name for each in archive.catalog.students()} == {"net", "net-r1", "net-r2"}
    assert not find_outdated(archive).students
    monkeypatch.setattr(rounds, "conclude", conclude)
    again = run(recipe)
    assert (again.done, again.failed) == (0, 0)
    assert "student of round 2 chosen" in again.note
    assert weights_digest(recipe.student_folder) == weights_digest(recipe.student_folder.parent / "net-r2")


def test_two_runs_do_not_teach_the_same_students_of_a_round(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe, train_folds, second = recipe_of(STUDENT_RELABELS), out_of_fold.train_folds, list[StageResult]()

    def while_another_run_begins(*asked: Any) -> list[Student]:
        if not second:
            second.append(StageResult(stage="train"))
            second.append(rounds.further_rounds(recipe))
        return train_folds(*asked)

    monkeypatch.setattr(out_of_fold, "train_folds", while_another_run_begins)
    assert not run(recipe).failed
    assert (second[1].failed, second[1].done) == (1, 0)
    assert second[1].note.startswith("students of round 2: another run is (process ")
    assert archive.ledger.state("folds:r2", "net-r2") == "done"


def test_students_of_a_round_that_were_given_up_are_shown_and_tried_again_with_retry(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(STUDENT_RELABELS)

    def broken(*_: object) -> list[Student]:
        message = "the disk is full"
        raise OSError(message)

    monkeypatch.setattr(out_of_fold, "train_folds", broken)
    for _ in range(3):
        with pytest.raises(OSError, match="disk"):
            run(recipe)
    result = run(recipe)
    assert (result.quarantined, result.failed) == (1, 0)
    assert "students of round 2: given up after 3 attempts" in result.note
    assert [refused.what for refused in inspect_path(recipe.archive).refused] == ["round 2, net-r2"]
    assert ("folds:r2", "net-r2") in round_units(recipe)
    assert not archive.cases(with_labels="folds/r2")


def test_a_student_of_settings_that_come_back_is_taken_from_where_the_first_round_kept_it(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(monkeypatch, 0.02)
    recipe, once = recipe_of(STUDENT_RELABELS), recipe_of("")
    run(recipe)
    first = read_card(recipe.student_folder.parent / "net-r1")
    other = once.model_copy(update={"student": once.student.model_copy(update={"seed": 1})})
    assert teaching.train(other).done == 1
    assert read_card(recipe.student_folder).fingerprint != first.fingerprint
    monkeypatch.setattr(compact, "_train", lambda *_: pytest.fail("the first round's student was trained again"))
    assert not run(recipe).failed
    card = read_card(recipe.student_folder.parent / "net-r1")
    assert (card.fingerprint, card.seconds) == (first.fingerprint, first.seconds)
    assert read_card(recipe.student_folder).rounds is not None
    assert "WARNING" not in capsys.readouterr().err


def test_who_changes_a_recipe_of_several_rounds_is_told_that_its_students_go(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(monkeypatch, 0.02)
    recipe = recipe_of(STUDENT_RELABELS)
    run(recipe)
    assert archive.cases(with_labels="pseudo/r2")
    teaching.train(recipe.model_copy(update={"student": recipe.student.model_copy(update={"seed": 1})}))
    assert "WARNING: net is taught anew, as its labels or settings have changed, and so are net-r2" in capsys.readouterr().err


def test_a_fall_that_is_planted_in_the_answers_of_a_student_ends_the_rounds(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the guard is replaced: the new student agrees ever better with its own labels, and misses gold by two voxels."""
    missed = {"net-r1": 0, "net-r2": 2}

    def answer(student: Student, case: Case) -> Prediction:
        ids = np.roll(case.labels("gold").read(), missed[student.name], axis=2)
        return Prediction(probability=ids[None].astype(np.float32), labels=ids)

    monkeypatch.setattr(Student, "predict_case", answer)
    recipe = recipe_of("rounds: {most: 4, relabel: student}\n")
    result = run(recipe)
    found = round_guard.read_drift(recipe.report_folder / "round-2.json")
    assert (found.measure, found.before, found.patients) == ("gold", 1.0, 3)
    assert found.difference is not None
    assert found.difference < -0.2
    assert "round 2 is worse by more than 0.01, so the student of round 1 stays, and no more rounds are made" in result.note
    assert weights_digest(recipe.student_folder) == weights_digest(recipe.student_folder.parent / "net-r1")
    assert not {"folds/r3", "pseudo/r3"} & archive.catalog.count_label_sets().keys()
    assert {each.name: each.round for each in archive.catalog.students()}["net"] == 1


def test_a_student_that_was_set_aside_by_a_killed_run_is_brought_back(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe = recipe_of(STUDENT_RELABELS)
    run(recipe)
    versions = len(archive.catalog.student_versions("net"))
    recipe.student_folder.rename(recipe.student_folder.with_name(".net.before"))
    assert run(recipe).done == 0
    assert read_card(recipe.student_folder).rounds is not None
    assert len(archive.catalog.student_versions("net")) == versions


def test_a_recipe_that_asks_for_one_round_again_gets_the_first_student_back(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    run(recipe_of(STUDENT_RELABELS))
    recipe = recipe_of("")
    assert teaching.train(recipe).done == 0
    assert weights_digest(recipe.student_folder) == weights_digest(recipe.student_folder.parent / "net-r1")
    assert {each.name: each.round for each in archive.catalog.students()}["net"] == 1


def test_labels_of_the_first_round_that_change_make_every_round_outdated(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    run(recipe_of(STUDENT_RELABELS))
    labels = archive["learnt0"].labels(PSEUDO_SET)
    archive["learnt0"].write_labels(replace(labels.history, fingerprint="new"), labels.read(), scores=labels.scores)
    assert set(find_outdated(archive).students) == {"net", "net-r1", "net-r2"}


def test_one_round_is_what_a_run_without_the_block_is(recipe_of: Callable[[str], Recipe]) -> None:
    recipe, other = recipe_of("rounds: {most: 1, relabel: both, drop: 0.5}\n"), recipe_of("")
    assert recipe.round == other.round == FIRST
    assert recipe.in_round(1) is recipe
    assert plans.label_plan(recipe) == plans.label_plan(other)
    assert starting_rules(recipe)[1].student_from == ClassRule().student_from
    assert starting_rules(recipe.in_round(2))[1].student_from == 0.6
    assert (FIRST.teacher_set, FIRST.pseudo_set, FIRST.refined_set, FIRST.doubt) == (
        "teacher/r1",
        "pseudo/r1",
        "pseudo/r1",
        "doubt:teacher/r1",
    )
    assert rounds.further_rounds(recipe) == StageResult(stage="train")
    assert "held_out" not in StudentSpec().model_dump()


def test_a_later_round_keeps_what_the_recipe_says_and_takes_names_of_its_own(recipe_of: Callable[[str], Recipe]) -> None:
    recipe = recipe_of("rounds: {most: 3}\n")
    now = recipe.in_round(3)
    assert (now.student.name, now.prompts.source, now.refine.semantic) == ("net-r3", ("round-3",), ("prior", "student"))
    assert now.in_round(2).round.number == 2
    assert now.in_round(1) == recipe
    assert now.model_dump(exclude={"student", "refine", "prompts"}) == recipe.model_dump(exclude={"student", "refine", "prompts"})


@pytest.mark.parametrize(
    ("who", "refined", "learnt", "checked"),
    [
        ("teacher", "teacher/r2", "pseudo/r2", True),
        ("student", "folds/r2", "pseudo/r2", False),
        ("both", "teacher/r2", "both/r2", True),
        ("mean", "mean/r2", "pseudo/r2", False),
    ],
)
def test_who_labels_decides_what_is_refined_and_learnt_from_and_whether_the_teacher_must_be_there(
    recipe_of: Callable[[str], Recipe],
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    who: Relabel,
    refined: str,
    learnt: str,
    *,
    checked: bool,
) -> None:
    recipe, looked = recipe_of(f"rounds: {{most: 2, relabel: {who}}}\n"), list[Recipe]()
    monkeypatch.setattr(launch, "check_teacher", looked.append)
    launch.check_before(recipe, ("train",))
    of = recipe.in_round(2).round
    assert (of.teacher_set, of.pseudo_set, bool(looked)) == (refined, learnt, checked)
    assert ("student" in recipe.in_round(2).refine.semantic) == checked
    assert RoundsRecord(asked=2, rounds=(RoundEntry(number=2, student="net-r2", label_set=learnt, relabel=who),)).rounds[0].relabel == who


@pytest.mark.parametrize(
    ("block", "words"),
    [
        pytest.param("rounds: {most: 0}", "rounds.most", id="no round"),
        pytest.param("rounds: {most: 9}", "rounds.most", id="too many"),
        pytest.param("rounds: {relabel: nobody}", "rounds.relabel", id="nobody labels"),
        pytest.param("rounds: {drop: 0.9}", "rounds.drop", id="nearly all are dropped"),
        pytest.param("rounds: {budget: soon}", "must be a duration", id="a budget that is none"),
        pytest.param("rounds: {laps: 3}", "laps", id="a key that there is not"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(recipe_of: Callable[[str], Recipe], block: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_of(f"{block}\n")


def test_a_name_that_leaves_no_room_for_the_round_is_refused(write_recipe: WriteRecipe) -> None:
    text = f"archive: ./a.zarr\nclasses: {{1: {{name: organ}}}}\nstudent: {{name: {'n' * 63}}}\nrounds: {{most: 2}}\n"
    with pytest.raises(RecipeError, match="61 at most"):
        load_recipe(write_recipe(text))


def with_teacher(archive: Archive, recipe_of: Callable[[str], Recipe], tmp_path: Path, who: str) -> Recipe:
    """Return a recipe with a small random teacher, and prompt one slice of each case by hand."""
    checkpoint = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_archive.py"))["write_checkpoint"](tmp_path)
    boxes = [Prompt(case=each.id, class_id=1, kind="box", slice=2, box_xyxy_px=BY_HAND) for each in archive.cases()]
    archive.catalog.add_prompts(boxes)
    ask = f"teacher: {{checkpoint: {checkpoint}, device: cpu}}\nuncertainty: {{boxes: 2, flips: false, planes: axial}}\n"
    return recipe_of(f"{ask}rounds: {{most: 2, relabel: {who}, agreement: 0.99}}\n")


def test_the_teacher_is_asked_by_hand_drawn_boxes_where_there_are_some_and_by_students_elsewhere(
    archive: Archive, recipe_of: Callable[[str], Recipe], tmp_path: Path
) -> None:
    recipe = with_teacher(archive, recipe_of, tmp_path, "teacher")
    result = run(recipe)
    assert (result.failed, result.quarantined) == (0, 0)
    said = archive.catalog.prompts("learnt0")
    boxes = {(each.source, each.slice): each.box_xyxy_px for each in said if each.kind == "box"}
    assert boxes[("proposed/round-2", 2)] == BY_HAND
    assert {z for source, z in boxes if source == "proposed/round-2"} == {1, 2, 3, 4}
    assert boxes[("proposed/round-2", 3)] == (4.0, 3.0, 12.0, 10.0)
    assert archive.catalog.count_label_sets()["teacher/r2"] == 9
    drawn = archive["learnt0"].labels("teacher/r2").scores | archive.catalog.scores("teacher/r2")["learnt0"]
    assert drawn["oof_dice/1"] < 0.99
    assert archive["learnt0"].labels("pseudo/r2").history.parameters["reason/1"] in {"student-disagrees", "empty-mask"}
    assert "round 2: none of its labels was accepted" in result.note
    assert rounds.further_rounds(recipe).done == 0


def test_a_round_may_learn_from_the_mean_of_what_students_say_and_the_teacher_drew(
    archive: Archive, recipe_of: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, 0.02)
    recipe = recipe_of("rounds: {most: 2, relabel: mean}\n")
    result = run(recipe)
    assert (result.failed, result.quarantined) == (0, 0)
    assert not forgotten_units(archive, recipe)
    case = archive["learnt0"]
    stored = [case.labels(name).probability for name in ("folds/r2", TEACHER_SET, "mean/r2")]
    answered, drawn, mean = (np.asarray(each[...], float) for each in stored if each is not None)
    assert not np.allclose(mean, answered)
    assert not np.allclose(mean, drawn)
    np.testing.assert_allclose(mean, (answered + drawn) / 2, atol=0.5)
    assert case.labels("mean/r2").history.parents == ("folds/r2", TEACHER_SET)
    assert case.labels("pseudo/r2").history.parents == ("mean/r2",)
    assert read_card(recipe.student_folder).label_set == "pseudo/r2"
    assert not find_outdated(archive).students
    assert run(recipe).done == 0


def test_where_teacher_and_students_differ_nobody_learns_and_what_changed_is_told_from_labels_before_that(
    archive: Archive, recipe_of: Callable[[str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = list[tuple[list[str], str]]()

    def compare(_: Archive, sets: list[str], __: list[str], *, into: str, **___: object) -> Worked[float]:
        compared.append((sets, into))
        return Worked(done={}, skipped=0, quarantined=(), unfinished=0)

    monkeypatch.setattr("distill.instability.add_instability", compare)
    recipe = with_teacher(archive, recipe_of, tmp_path, "both")
    assert not run(recipe).failed
    assert not forgotten_units(archive, recipe)
    case = archive["learnt0"]
    refined, answered, believed = (case.labels(name).read() for name in ("pseudo/r2", "folds/r2", "both/r2"))
    assert compared == [([PSEUDO_SET, "pseudo/r2"], "both/r2")]
    assert case.labels("both/r2").history.parents == ("pseudo/r2", "folds/r2")
    assert (believed[refined != answered] == IGNORE).all()
    assert (believed[refined == answered] == refined[refined == answered]).all()
