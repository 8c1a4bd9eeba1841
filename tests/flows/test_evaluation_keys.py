"""What a recipe, and the command line, say about an evaluation: arms, shapes of classes, and what gold is worth."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import arms, curve, judging, launch
from flows.errors import RecipeError, StageError
from flows.outdated import outdated_words
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import CURVE, PSEUDO_SET
from storage import Archive, ClassInfo, LabelHistory
from students.checkpoint import read_card
from students.spec import StudentSpec

WriteRecipe = Callable[[str], Path]
RecipeWith = Callable[[str], Recipe]
HEAD = "archive: ./a.zarr\nclasses: {1: {name: organ}}\n"
CLASSES = (ClassInfo(id=1, name="organ"),)


@pytest.fixture
def recipe_with(write_recipe: WriteRecipe) -> RecipeWith:
    return lambda text: load_recipe(write_recipe(HEAD + text))


@pytest.fixture
def archive(recipe_with: RecipeWith, make_labelled: Callable[[str, int], Archive]) -> Archive:
    return make_labelled(recipe_with("").archive, 4)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Students of a few steps; the names of those that were trained."""
    from students import training

    names: list[str] = []
    train = training.train

    def spec(recipe: Recipe) -> StudentSpec:
        return StudentSpec(
            name=recipe.student.name,
            budget_seconds=None,
            steps=2,
            width=4,
            threads=1,
            seed=recipe.student.seed,
            validations=1,
            mixed_precision=False,
            learning=recipe.student.learning,
        )

    def counted(archive: Archive, **asked: object) -> object:
        names.append(asked["spec"].name)  # type: ignore[attr-defined]
        return train(archive, **asked)  # type: ignore[arg-type]

    monkeypatch.setattr("flows.plans.student_spec", spec)
    monkeypatch.setattr(training, "train", counted)
    return names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("evaluate: {arms: [best]}", "teacher-gold-boxes", id="an arm that there is none of"),
        pytest.param("evaluate: {gold_curve: [0]}", "greater than or equal to 1", id="gold of nobody"),
        pytest.param("student: {kind: nnunet}\nevaluate: {gold_curve: [1]}", "is of kind: compact", id="a curve of nnU-Net"),
        pytest.param("", "", id="nothing at all"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(recipe_with: RecipeWith, text: str, said: str) -> None:
    if not said:
        assert recipe_with(text).evaluate.gold_curve == ()
        return
    with pytest.raises(RecipeError, match=said):
        recipe_with(text)


def test_a_shape_that_is_none_is_refused_and_one_that_is_reaches_the_evaluation(write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError, match="'organ', 'tube' or 'lesions'"):
        load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: vessel, shape: pipe}}\n"))
    assert load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: vessel, shape: tube}}\n")).classes[1].shape == "tube"


def test_the_curve_trains_each_student_once_and_alone_and_mixed_get_the_same_gold(
    recipe_with: RecipeWith, archive: Archive, trained: list[str]
) -> None:
    recipe = recipe_with("evaluate: {gold_curve: [2, 1, 2], gold_curve_seeds: [0, 5]}")
    students, missing = curve.curve_students(archive, recipe, lambda _: None)
    assert missing == ()
    wanted = [f"compact-{taught}-{n}{seed}" for seed in ("", "-seed-5") for n in (1, 2) for taught in ("gold", "mixed")]
    assert trained == wanted
    cards = {each.path.name: read_card(each.path) for each in students}
    alone, mixed = cards["compact-gold-2"], cards["compact-mixed-2"]
    assert alone.gold_cases == mixed.gold_cases
    assert set(cards["compact-gold-1"].gold_cases) < set(alone.gold_cases)
    assert (alone.training_cases, len(mixed.training_cases)) == ((), 2)
    assert "tested" not in {*mixed.gold_cases, *mixed.training_cases}
    again, _ = curve.curve_students(archive, recipe, lambda _: None)
    assert again == students
    assert trained == wanted, "nothing is trained twice"


def test_more_patients_than_there_are_is_a_line_of_the_report_and_no_error(
    recipe_with: RecipeWith, archive: Archive, trained: list[str]
) -> None:
    students, missing = curve.curve_students(archive, recipe_with("evaluate: {gold_curve: [1, 9]}"), lambda _: None)
    assert [each.patients for each in students] == [1, 1]
    assert trained == ["compact-gold-1", "compact-mixed-1"]
    assert all("asks for 9 patients, but the archive part has gold of 4" in each for each in missing)


def test_changed_gold_trains_its_students_anew_and_no_others(recipe_with: RecipeWith, archive: Archive, trained: list[str]) -> None:
    recipe = recipe_with("evaluate: {gold_curve: [1, 3]}")
    students, _ = curve.curve_students(archive, recipe, lambda _: None)
    first, second = (set(read_card(each.path).gold_cases) for each in (students[0], students[2]))
    case = min(second - first)
    ids = archive[case].labels("gold").read()
    archive[case].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="mended"), ids)
    trained.clear()
    curve.curve_students(archive, recipe, lambda _: None)
    assert trained == ["compact-gold-3", "compact-mixed-3"]


def test_without_believed_labels_there_is_gold_alone_only(recipe_with: RecipeWith, archive: Archive, trained: list[str]) -> None:
    for n in range(4):
        archive[f"learnt{n}"].delete_labels(PSEUDO_SET)
    students, _ = curve.curve_students(archive, recipe_with("evaluate: {gold_curve: [1]}"), lambda _: None)
    assert [each.taught for each in students] == ["gold"]
    assert trained == ["compact-gold-1"]


def test_what_was_given_up_is_named_and_tried_again_when_that_is_asked(
    recipe_with: RecipeWith, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_with("evaluate: {gold_curve: [1]}")

    def fail(*_: object) -> str:
        message = "no room"
        raise RuntimeError(message)

    monkeypatch.setattr(curve, "_train", fail)
    for _ in range(7):  # three attempts for each of two students, and a look
        try:
            _, missing = curve.curve_students(archive, recipe, lambda _: None)
        except RuntimeError:
            continue
    assert len(missing) == 2
    assert all("given up after 3 attempts" in each and "no room" in each for each in missing)
    assert launch.requeue(recipe, ("evaluate",)) == 2
    assert not archive.ledger.quarantined(CURVE)


def test_all_arms_are_those_that_the_archive_has_something_for(recipe_with: RecipeWith, archive: Archive) -> None:
    every = arms.possible_arms(archive, recipe_with(""))
    assert every == ("ellipse", "ellipse-student", "few-gold", "all-gold", "teacher-gold-boxes")
    assert "gold-alone" in arms.possible_arms(archive, recipe_with("student: {gold: {patients: 1}}"))
    archive["set"].delete_labels("gold")
    assert "few-gold" not in arms.possible_arms(archive, recipe_with(""))
    assert judging.with_arms(recipe_with(""), ("all",)).evaluate.arms == arms.possible_arms(archive, recipe_with(""))


@pytest.mark.usefixtures("archive")
def test_named_arms_stand_in_for_the_recipes_and_strangers_are_refused_before_anything_runs(
    recipe_with: RecipeWith, write_recipe: WriteRecipe
) -> None:
    recipe = recipe_with("evaluate: {arms: [few-gold], tolerance_mm: 2}")
    chosen = judging.with_arms(recipe, ("all-gold", "ellipse", "all-gold"))
    assert (chosen.evaluate.arms, chosen.evaluate.tolerance_mm) == (("all-gold", "ellipse"), 2)
    assert judging.with_arms(recipe, ()) is recipe
    with pytest.raises(StageError, match=r"no arm 'oracle'. Known: all, ellipse"):
        launch.launch(write_recipe(HEAD), ("evaluate",), arms=("oracle",))
    with pytest.raises(StageError, match=r"gold-alone needs student\.gold"):
        judging.check_arms(recipe, ("gold-alone",))


def test_a_report_with_more_arms_than_the_recipe_names_stands_until_something_else_changes(
    recipe_with: RecipeWith, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, made = recipe_with("evaluate: {arms: [ellipse]}"), []
    recipe.student_folder.mkdir(parents=True)
    (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")

    def report(_archive: Archive, recipe: Recipe) -> str:
        made.append(recipe.evaluate.arms)
        recipe.report_folder.mkdir(parents=True, exist_ok=True)
        (recipe.report_folder / "report.html").write_text("", encoding="utf-8")
        (recipe.report_folder / "report.json").write_text(json.dumps({"arms": recipe.evaluate.arms}), encoding="utf-8")
        return ""

    monkeypatch.setattr(judging, "_evaluate", report)
    judging.evaluate(judging.with_arms(recipe, ("ellipse", "all-gold")))
    assert judging.evaluate(recipe).skipped == 1
    assert "report" not in outdated_words(archive, recipe, "recipe.yaml")
    assert made == [("ellipse", "all-gold")]
    (recipe.student_folder / "student.json").write_text('{"trained": "again"}', encoding="utf-8")
    assert judging.evaluate(recipe).done == 1
    assert made[1:] == [("ellipse",)], "what was asked for once is not trained again for every student"
    assert judging.evaluate(recipe_with("evaluate: {arms: [ellipse], tolerance_mm: 3}")).done == 1


def test_a_report_depends_on_what_is_known_of_the_cases_and_on_the_shapes_of_classes(
    write_recipe: WriteRecipe, recipe_with: RecipeWith, archive: Archive
) -> None:
    recipe = recipe_with("")
    recipe.student_folder.mkdir(parents=True)
    (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
    before = judging.evaluation_fingerprint(archive, recipe)
    tube = load_recipe(write_recipe(HEAD.replace("{name: organ}", "{name: organ, shape: tube}")))
    assert judging.evaluation_fingerprint(archive, tube) != before
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"precision": "fp32"})})
    assert judging.evaluation_fingerprint(archive, other) == before, "the teacher is asked for nothing here"
    boxes = [judging.with_arms(each, ("teacher-gold-boxes",)) for each in (recipe, other)]
    assert len({judging.evaluation_fingerprint(archive, each) for each in boxes}) == 2


def test_the_arm_of_gold_boxes_is_a_label_set_and_full_supervision_is_known_as_such(
    recipe_with: RecipeWith, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(arms, "draw_in_gold_boxes", lambda _archive, _plan, cases: asked.append(list(cases)))
    monkeypatch.setattr(arms, "_trained", lambda *_, **__: arms.Arm(name="full", student=Path("x")))
    recipe = recipe_with("")
    boxes = arms._arm(archive, recipe, "teacher-gold-boxes", lambda _: None)
    assert (boxes.label_set, boxes.is_full_supervision) == ("oracle/gold-boxes", False)
    assert asked == [["tested"]], "of test cases alone"
    assert arms._arm(archive, recipe, "all-gold", lambda _: None).is_full_supervision
