"""How a recipe says what a student learns, and which gold it may never learn from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flows import arms, learnt, stages, teaching
from flows.errors import RecipeError
from flows.outdated import find_outdated
from flows.plans import student_spec
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import PSEUDO_SET, TEACHER_SET
from storage import Archive, ClassInfo, LabelHistory
from students.checkpoint import read_card
from students.errors import TrainingError
from students.learning import GoldSpec, Learning, LossSpec
from students.spec import StudentSpec

WriteRecipe = Callable[[str], Path]
HEAD = "archive: ./a.zarr\nclasses: {1: {name: organ}}\n"
CLASSES = (ClassInfo(id=1, name="organ"),)


@pytest.fixture
def recipe_with(write_recipe: WriteRecipe) -> Callable[[str], Recipe]:
    def make(student: str, more: str = "") -> Recipe:
        return load_recipe(write_recipe(f"{HEAD}student: {student}\n{more}"))

    return make


@pytest.fixture
def archive(recipe_with: Callable[[str], Recipe], make_labelled: Callable[[str, int], Archive]) -> Archive:
    return make_labelled(recipe_with("{}").archive, 5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students of a few steps."""

    def spec(recipe: Recipe) -> StudentSpec:
        return StudentSpec(
            name=recipe.student.name,
            budget_seconds=None,
            steps=12,
            width=4,
            threads=1,
            validations=1,
            mixed_precision=False,
            learning=recipe.student.learning,
            hints=TEACHER_SET if recipe.student.hints == "teacher" else None,
        )

    monkeypatch.setattr("flows.plans.student_spec", spec)
    monkeypatch.setattr(arms, "student_spec", spec)


def test_a_recipe_that_asks_for_nothing_new_asks_for_the_student_it_always_did(recipe_with: Callable[[str], Recipe]) -> None:
    spec = student_spec(recipe_with("{}"))
    assert spec.learning == Learning()
    assert "learning" not in spec.model_dump()
    assert "learning" not in spec.model_dump(exclude={"threads"}, mode="json")
    assert StudentSpec.model_validate(spec.model_dump()) == spec


def test_each_key_reaches_the_trainer(recipe_with: Callable[[str], Recipe]) -> None:
    text = """{loss: gce, targets: soft, confidence: 2, consistency: 0.1, unlabeled_share: 0.5,
      gold: {patients: 3, share: 0.25, weight: 2, alone_from: 0.6, agreement: 0.5, witness_budget: 1min}}"""
    assert student_spec(recipe_with(text)).learning == Learning(
        loss=LossSpec(name="gce"),
        targets="soft",
        confidence=2,
        consistency=0.1,
        unlabeled_share=0.5,
        gold=GoldSpec(share=0.25, weight=2, alone_from=0.6, agreement=0.5, witness_seconds=60),
    )
    assert recipe_with("{loss: {name: kl, temperature: 3}}").student.learning.loss == LossSpec(name="kl", temperature=3)


@pytest.mark.parametrize(
    ("student", "more", "said"),
    [
        pytest.param("{gold: {}}", "", "needs either cases, by name, or patients", id="no gold in the block"),
        pytest.param("{gold: {cases: [a], patients: 1}}", "", "needs either cases, by name, or patients", id="both ways at once"),
        pytest.param("{gold: {patients: 1, correct: true, agreement: 0.5}}", "", "has both correct and agreement", id="two judges"),
        pytest.param("{hints: everything}", "", "'none' or 'teacher'", id="hints that are none"),
        pytest.param("{loss: dice}", "", "'ce', 'gce', 'sce' or 'kl'", id="a loss that is none"),
        pytest.param("{}", "evaluate: {arms: [gold-alone]}", "student.gold gives no gold", id="an arm without its gold"),
    ],
)
def test_a_block_that_says_nothing_definite_is_refused(recipe_with: Callable[..., Recipe], student: str, more: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_with(student, more)


@pytest.mark.parametrize("case", ["tested", "set"])
@pytest.mark.usefixtures("archive")
def test_gold_that_scores_or_sets_thresholds_is_refused_by_name_before_anything_is_drawn(
    recipe_with: Callable[[str], Recipe], case: str
) -> None:
    with pytest.raises(TrainingError, match=f"case {case} belongs to the"):
        stages.shards_to_label(recipe_with(f"{{gold: {{cases: [learnt0, {case}]}}}}"), 8)


@pytest.mark.usefixtures("quick")
def test_gold_labels_cut_pseudo_labels_and_the_student_tells_whose_gold_it_was(
    recipe_with: Callable[[str], Recipe], archive: Archive
) -> None:
    recipe = recipe_with("{gold: {cases: [learnt0, learnt1], agreement: 0.0}, name: mixed, consistency: 0.1}")
    result = teaching.train(recipe)
    assert "gold of 2 cases learnt from" in result.note
    card = read_card(recipe.student_folder)
    assert (card.label_set, card.gold_cases) == (learnt.agreed_set("mixed"), ("learnt0", "learnt1"))
    assert card.training_cases == ("learnt2", "learnt3", "learnt4")
    labels = archive["learnt2"].labels("agreed/mixed")
    before, after = archive["learnt2"].labels(PSEUDO_SET).read(), labels.read()
    assert ((after == before) | (after == 255)).all()
    assert labels.history.parents[0] == PSEUDO_SET
    assert "agreed/mixed" not in archive["learnt0"].label_sets()
    assert teaching.train(recipe).skipped == 1
    assert find_outdated(archive).students == ()
    archive["learnt0"].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint="mended"), before)
    assert find_outdated(archive).students == ("mixed",)


@pytest.mark.usefixtures("quick", "archive")
def test_pseudo_labels_that_a_student_of_the_gold_contradicts_are_left_out(recipe_with: Callable[[str], Recipe]) -> None:
    recipe = recipe_with("{gold: {patients: 2, agreement: 1.0}, name: strict}")
    note = teaching.train(recipe).note
    assert "3 pseudo-labels left out" in note
    assert read_card(recipe.student_folder).training_cases == ()


@pytest.mark.usefixtures("quick")
def test_gold_corrects_pseudo_labels_with_what_the_teacher_drew_in_view(recipe_with: Callable[[str], Recipe], archive: Archive) -> None:
    recipe = recipe_with("{gold: {cases: [learnt0, learnt1], correct: true}, name: mended}")
    note = teaching.train(recipe).note
    assert "3 pseudo-labels corrected by students of the gold, which changed them by" in note
    card = read_card(recipe.student_folder)
    assert (card.label_set, card.gold_cases) == (learnt.corrected_set("mended"), ("learnt0", "learnt1"))
    assert card.training_cases == ("learnt2", "learnt3", "learnt4")
    assert card.spec.hints is None
    witnesses = recipe.results / "witnesses" / "mended"
    assert read_card(witnesses / "mended-gold-corrector").spec.hints == TEACHER_SET
    assert read_card(witnesses / "mended-gold-witness").spec.hints is None
    assert archive["learnt2"].labels("corrected/mended").history.parents == (PSEUDO_SET, TEACHER_SET, "gold")
    assert teaching.train(recipe).skipped == 1
    assert find_outdated(archive).students == ()
    drawn = archive["learnt0"].labels(TEACHER_SET)
    archive["learnt0"].write_labels(replace(drawn.history, fingerprint="drawn anew"), drawn.read())
    assert find_outdated(archive).students == ("mended",)


@pytest.mark.usefixtures("quick", "archive")
def test_a_student_of_pseudo_labels_may_see_the_teacher_too(recipe_with: Callable[[str], Recipe]) -> None:
    recipe = recipe_with("{hints: teacher, name: shown}")
    assert teaching.train(recipe).done == 1
    assert read_card(recipe.student_folder).plan.hints == 1


@pytest.mark.usefixtures("quick")
def test_the_arm_of_gold_alone_learns_from_the_same_gold_and_nothing_else(recipe_with: Callable[..., Recipe], archive: Archive) -> None:
    recipe = recipe_with("{gold: {patients: 2}}", "evaluate: {arms: [gold-alone]}")
    arm = arms._arm(archive, recipe, "gold-alone", lambda _: None)
    assert arm.student is not None
    card = read_card(arm.student)
    assert (card.training_cases, card.gold_cases) == ((), learnt.chosen_gold(archive, recipe))
    assert arm.name == "same net, trained on the student's own gold alone (2 cases)"
