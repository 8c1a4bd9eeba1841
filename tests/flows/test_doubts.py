"""The recipe's second opinions: asked once per state of the labels, and heard by refinement."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import stages
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import TEACHER_SET
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students import out_of_fold
from students.errors import TrainingError
from students.predict import Student

WriteRecipe = Callable[[str], Path]
ORGAN = ClassInfo(id=1, name="organ")
SHAPE = (3, 16, 20)


def recipe_with(write_recipe: WriteRecipe, refine: str = "{}") -> Recipe:
    return load_recipe(write_recipe(f"archive: ./a.zarr\nclasses: {{1: {{name: organ}}}}\nrefine: {refine}\n"))


def draw(archive: Archive, case: str, corner_yx: tuple[int, int]) -> None:
    """Let the teacher have drawn a block."""
    mask = np.zeros(SHAPE, bool)
    mask[:, corner_yx[0] : corner_yx[0] + 5, corner_yx[1] : corner_yx[1] + 6] = True
    history = LabelHistory(label_set=TEACHER_SET, classes=(ORGAN,), made_by="test", fingerprint=f"{case} {corner_yx}")
    stored = np.where(mask, 250, 0).astype(np.uint8)[None]
    archive[case].write_labels(history, mask.astype(np.uint8), probability_kzyx=stored, scores={"pairwise_dice/1": 0.95})


def archive_of(recipe: Recipe, patients: int) -> Archive:
    made = Archive.create(recipe.archive)
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    draws = np.random.default_rng(0)
    for n in range(patients):
        record = CaseRecord(id=f"case{n:02}", patient=f"p{n}", shape_czyx=(1, *SHAPE), dtype="float32", geometry=geometry)
        made.add_case(record, draws.uniform(0.3, 1, (1, *SHAPE)).astype(np.float32))
        draw(made, record.id, (int(draws.integers(2, 5)), int(draws.integers(2, 5))))
    return made


def test_a_mask_that_lies_elsewhere_is_rejected_for_its_place(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 14)
    draw(archive, "case03", (10, 13))
    assert stages.doubt(recipe).done == 1
    assert stages.refine(recipe, stages.shards_to_refine(recipe, 99)[0]).tally == {"accept": 13, "reject": 1}
    assert archive["case03"].labels("pseudo/r1").history.parameters["reason/1"] == "location-outside-prior"
    scores = archive.catalog.scores(TEACHER_SET)
    assert min(scores, key=lambda case: scores[case]["quality/1"]) == "case03"


def test_an_opinion_is_asked_again_only_when_labels_have_changed(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 12)
    assert stages.doubt(recipe).done == 1
    assert (stages.doubt(recipe).done, stages.doubt(recipe).skipped) == (0, 1)
    draw(archive, "case05", (9, 12))
    assert "prior/1" not in archive.catalog.scores(TEACHER_SET)["case05"]
    assert stages.doubt(recipe).done == 1
    assert archive.catalog.scores(TEACHER_SET)["case05"]["prior/1"] < 0.01


def test_labels_that_came_back_as_they_were_are_asked_about_again(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 12)
    stages.doubt(recipe)
    draw(archive, "case05", (2, 2))
    stages.doubt(recipe)
    draw(archive, "case05", (2, 2))
    assert stages.doubt(recipe).done == 1
    assert "firmness/1" in archive.catalog.scores(TEACHER_SET)["case05"]


def test_too_few_patients_are_told_now_and_later_and_keep_no_mask_from_being_accepted(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive_of(recipe, 4)
    said = "organ: masks of 4 patients do not say which place and size are usual, 10 would"
    assert (stages.doubt(recipe).note, stages.doubt(recipe).note) == (said, said)
    assert stages.refine(recipe, stages.shards_to_refine(recipe, 99)[0]).tally == {"accept": 4}


def test_without_tests_nothing_is_asked(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe, "{semantic: []}")
    archive = archive_of(recipe, 12)
    result = stages.doubt(recipe)
    assert (result.done, result.skipped) == (0, 0)
    assert set(archive.catalog.scores(TEACHER_SET)["case00"]) == {"pairwise_dice/1"}


def test_students_are_asked_where_the_recipe_says_so(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe, "{semantic: [prior, student], witness_budget: 1s}")
    archive = archive_of(recipe, 12)
    assert stages.doubt(recipe).done == 2
    assert all({"prior/1", "oof_dice/1", "quality/1"} <= set(known) for known in archive.catalog.scores(TEACHER_SET).values())
    assert stages.doubt(recipe).skipped == 2


def test_what_earlier_students_said_is_dropped_where_every_student_knows_the_patient_now(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with(write_recipe, "{semantic: [prior, student], witness_budget: 1s}")
    archive = archive_of(recipe, 12)
    stages.doubt(recipe)
    draw(archive, "case11", (9, 12))
    train = out_of_fold.train_folds

    def all_know_case03(*arguments: Any) -> list[Student]:
        students = train(*arguments)
        for student in students:
            student.card = student.card.model_copy(update={"training_patients": (*student.card.training_patients, "p3")})
        return students

    monkeypatch.setattr(out_of_fold, "train_folds", all_know_case03)
    assert "students have nothing to say of 1 case" in stages.doubt(recipe).note
    known = archive.catalog.scores(TEACHER_SET)
    assert [case for case in known if np.isnan(known[case]["oof_dice/1"])] == ["case03"]
    assert known["case03"]["quality/1"] == known["case03"]["firmness/1"] * min(1, known["case03"]["prior/1"] / 0.001)
    assert stages.doubt(recipe).skipped == 2


def test_what_earlier_students_said_is_dropped_where_there_can_be_none(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe, "{semantic: student, witness_budget: 1s}")
    archive = archive_of(recipe, 3)
    archive.catalog.add_scores("case00", TEACHER_SET, {"oof_dice/1": 0.1})
    with pytest.raises(TrainingError, match="at least 4 patients"):
        stages.doubt(recipe)
    assert np.isnan(archive.catalog.scores(TEACHER_SET)["case00"]["oof_dice/1"])


def test_gold_of_other_patients_is_asked_where_the_recipe_says_so_and_again_when_there_is_some(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe, "{semantic: reverse}")
    archive = archive_of(recipe, 6)
    first = stages.doubt(recipe)
    assert (first.done, first.note) == (1, "organ: no gold of two calibration patients to be judged by")
    assert stages.doubt(recipe).skipped == 1
    archive.catalog.set_part({"case00": "calibration", "case01": "calibration"})
    for case in ("case00", "case01"):
        gold = archive[case].labels(TEACHER_SET).read()
        archive[case].write_labels(LabelHistory(label_set="gold", classes=(ORGAN,), made_by="test", fingerprint=case), gold)
    assert stages.doubt(recipe).done == 1
    known = archive.catalog.scores(TEACHER_SET)
    assert all(0 <= known[case]["rca_dice/1"] <= 1 for case in known)


@pytest.mark.parametrize(
    ("refine", "message"),
    [
        pytest.param("{classes: {2: {components: 2}}}", "names class 2", id="a class that there is not"),
        pytest.param(
            "{classes: {1: {rectify_edges: always}}}", "must be auto, true, false, or a weight above 0", id="an edge rule that is none"
        ),
        pytest.param("{classes: {1: {rectify_edges: 9}}}", "up to 4, but is 9", id="too much weight"),
        pytest.param("{semantic: [priors]}", "semantic", id="a test that there is not"),
    ],
)
def test_rules_about_nothing_are_refused(refine: str, message: str, write_recipe: WriteRecipe) -> None:
    with pytest.raises(Exception, match=message):
        recipe_with(write_recipe, refine)


def test_rules_of_a_class_reach_refinement(write_recipe: WriteRecipe) -> None:
    from flows.rules import starting_rules

    rule = starting_rules(recipe_with(write_recipe, "{classes: {1: {components: 3, least_px: 7, holes: 3d, rectify_edges: true}}}"))[1]
    assert (rule.components, rule.least_px, rule.holes, rule.rectify_edges) == (3, 7, "3d", True)


@pytest.mark.parametrize(("said", "meant"), [("1", 1.0), ("1.5", 1.5), ("true", True), ("auto", False)])
def test_an_edge_rule_is_a_truth_a_weight_or_for_gold_to_say(write_recipe: WriteRecipe, said: str, meant: object) -> None:
    from flows.rules import starting_rules, weighed_edges

    recipe = recipe_with(write_recipe, f"{{classes: {{1: {{rectify_edges: {said}}}}}}}")
    rule = starting_rules(recipe)[1].rectify_edges
    assert (rule, type(rule)) == (meant, type(meant))
    assert weighed_edges(recipe) == ((1,) if said == "auto" else ())


def test_a_test_that_is_no_longer_asked_for_rejects_no_more_masks(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 14)
    draw(archive, "case03", (10, 13))
    stages.doubt(recipe)
    shard = stages.shards_to_refine(recipe, 99)[0]
    assert stages.refine(recipe, shard).tally["reject"] == 1
    assert stages.refine(recipe_with(write_recipe, "{semantic: []}"), shard).tally == {"accept": 14}


def test_a_test_that_is_no_longer_asked_for_is_heard_in_no_quality_either(write_recipe: WriteRecipe) -> None:
    asked = recipe_with(write_recipe)
    archive = archive_of(asked, 12)
    stages.doubt(asked)
    alone = archive.catalog.scores(TEACHER_SET)
    for case in alone:
        archive.catalog.add_scores(case, TEACHER_SET, {"oof_dice/1": 0.5, "quality/1": 0.5 * alone[case]["quality/1"]})
    stages.doubt(asked)
    known = archive.catalog.scores(TEACHER_SET)
    assert [known[case]["quality/1"] for case in known] == [alone[case]["quality/1"] for case in alone], (
        "as if students had never been asked"
    )
    stages.doubt(recipe_with(write_recipe, "{semantic: []}"))
    assert all(np.isnan(each["quality/1"]) for each in archive.catalog.scores(TEACHER_SET).values())


def test_a_class_that_the_recipe_no_longer_has_does_not_make_every_run_ask_again(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 12)
    archive.catalog.add_scores("case00", TEACHER_SET, {"pairwise_dice/2": 0.9})
    assert stages.doubt(recipe).done == 1
    assert stages.doubt(recipe).skipped == 1


def test_where_too_few_patients_are_left_no_place_is_unusual_any_more(write_recipe: WriteRecipe) -> None:
    recipe = recipe_with(write_recipe)
    archive = archive_of(recipe, 12)
    draw(archive, "case03", (10, 13))
    stages.doubt(recipe)
    for n in range(4, 8):
        archive[f"case{n:02}"].delete_labels(TEACHER_SET)
    assert "masks of 8 patients do not say which place and size are usual" in stages.doubt(recipe).note
    assert stages.refine(recipe, stages.shards_to_refine(recipe, 99)[0]).tally == {"accept": 8}, (
        "nothing is rejected by what was usual before"
    )
