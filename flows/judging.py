"""The stage evaluate: student and teacher against experts, once per student and state of the labels, and where the report is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flows.console import Follow
from flows.errors import StageError
from flows.once import left_to_another_run, perform_once, why_given_up
from flows.opened import asked_with, channel_names, label_fingerprints, open_archive
from flows.recipe import Recipe
from flows.recipe_evaluate import UNTRAINED, ArmName
from flows.results import TEACHER_SET, StageResult
from storage import Archive, fingerprint
from students.results import Evaluation

if TYPE_CHECKING:  # torch stays out until a student is judged
    from students.predict import Student
    from students.promptable.answers import PromptedStudent

ALL_ARMS = "all"
"""Every arm that the archive has something for."""
_REPORT = "3"
"""Raised whenever a report from the same inputs would say other things, so that it is written anew."""


def check_arms(recipe: Recipe, arms: Sequence[str]) -> None:
    """Refuse arms that there are none of.

    Raises:
        StageError: naming the first such arm, and those there are.
    """
    known = (ALL_ARMS, *get_args(ArmName))
    for name in arms:
        if name not in known:
            message = f"there is no arm {name!r}. Known: {', '.join(known)}."
            raise StageError(message)
        if recipe.student.kind == "promptable" and name not in {ALL_ARMS, *UNTRAINED}:
            message = (
                f"the arm {name} trains a student like the recipe's own on labels, but a promptable one learns from none. Leave it out."
            )
            raise StageError(message)
        if name == "gold-alone" and recipe.student.gold is None:
            message = "the arm gold-alone needs student.gold in the recipe. Give it, or take few-gold or all-gold."
            raise StageError(message)


def with_arms(recipe: Recipe, arms: Sequence[str]) -> Recipe:
    """Return a recipe with these arms instead of its own; ``all`` are those that its archive has something for. None leaves it as it is.

    Raises:
        StageError: as of `check_arms`.
    """
    if not arms:
        return recipe
    from flows.arms import possible_arms

    check_arms(recipe, arms)
    chosen = possible_arms(open_archive(recipe), recipe) if ALL_ARMS in arms else tuple(dict.fromkeys(arms))
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"arms": chosen})})


def as_it_stands(archive: Archive, recipe: Recipe) -> Recipe:
    """Return the recipe with the arms of the report that is there, where these include its own and nothing else has changed since.

    So a report with more arms, which somebody asked for on the command line, is not replaced by the next run.
    """
    unit = archive.ledger.record("evaluate", recipe.student.name)
    try:
        there = json.loads((recipe.report_folder / "report.json").read_text(encoding="utf-8")).get("arms", [])
    except (OSError, ValueError, AttributeError):
        return recipe
    if unit is None or not set(recipe.evaluate.arms) < set(there) or not set(there) <= set(get_args(ArmName)):
        return recipe
    wider = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"arms": tuple(there)})})
    return wider if unit.fingerprint == evaluation_fingerprint(archive, wider) else recipe


def evaluate(recipe: Recipe) -> StageResult:
    """Score student and teacher against experts and write the report, once per student and state of the labels.

    While another live run trains the student, or where its training was given up before there was one, this stage has nothing to score:
    it is reported as left, with the one who trains, or with what was met.

    Raises:
        StageError: if there is no student, and nobody has tried to train it.
    """
    archive = open_archive(recipe)
    if archive.ledger.holder("train", recipe.student.name) is not None:
        return left_to_another_run(archive.ledger, stage="train", unit=recipe.student.name, reported_as="evaluate")
    if not (recipe.student_folder / "student.json").is_file():
        if given_up := why_given_up(archive.ledger, "train", recipe.student.name):
            return StageResult(stage="evaluate", failed=1, note=f"waits for train: {given_up}")
        message = f"there is no student in {recipe.student_folder} to evaluate. Run 'samdistill train RECIPE' first."
        raise StageError(message)
    if not archive.cases(part="test", with_labels="gold"):
        note = "no expert labels on test cases: nothing to score. Give ingest.gold and ingest.split to get a report."
        return StageResult(stage="evaluate", skipped=1, note=note)
    if recipe.student.kind == "promptable" and not archive.cases(part="test", with_labels=TEACHER_SET):
        note = "the teacher has drawn no test case, so there is nothing to ask its student about. Give prompts of them, and run 'samdistill label RECIPE'."
        return StageResult(stage="evaluate", skipped=1, note=note)
    recipe = as_it_stands(archive, recipe)
    return perform_once(
        archive.ledger,
        stage="evaluate",
        unit=recipe.student.name,
        fingerprint=evaluation_fingerprint(archive, recipe),
        output=recipe.report_folder / "report.html",
        work=lambda: _evaluate(archive, recipe),
    )


def evaluation_fingerprint(archive: Archive, recipe: Recipe) -> str:
    """Everything the report depends on: student, teacher's labels, every expert label (arms and hindsight use them), prompts, and what is known of the cases and their channels."""
    tested = archive.cases(part="test")
    prompted = [record.id for part in ("test", "archive") for record in archive.cases(part=part)]
    shapes = {key: block.shape for key, block in recipe.classes.items() if block.shape != "organ"}
    oracle = recipe.teacher.model_dump(mode="json", include={"checkpoint", "profile", "base", "precision"})
    return fingerprint(
        report=_REPORT,
        student=(recipe.student_folder / "student.json").read_text(encoding="utf-8"),
        block=recipe.evaluate.model_dump(mode="json"),
        known=[[record.id, record.modality, record.attributes] for record in tested],
        gold=label_fingerprints(archive, archive.cases(with_labels="gold"), "gold"),
        teacher=label_fingerprints(archive, archive.cases(part="test", with_labels=TEACHER_SET), TEACHER_SET),
        prompts=asked_with(archive, recipe, prompted),
        **channel_names(tested),
        **({"shapes": shapes} if shapes else {}),
        **({"oracle": oracle} if "teacher-gold-boxes" in recipe.evaluate.arms else {}),
    )


def _evaluate(archive: Archive, recipe: Recipe) -> str:
    from flows.arms import evaluation_plan
    from flows.curve import points
    from students.evaluate import evaluate as compare
    from students.outcome import evaluation_note
    from students.promptable.words import promptable_note
    from students.report import write_report

    follow = Follow("evaluate")
    arms, curve = recipe.evaluate.arms, len(list(points(recipe)))
    steps = 3 + len(arms) + sum(name != "ellipse" for name in arms) + 2 * curve  # arms and students are made, and later compared
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        follow(min(len(said), steps), steps, sentence)

    say("preparing the baselines")
    found = compare(archive, _judged(recipe), evaluation_plan(archive, recipe, say), say)
    write_report(found, archive, recipe.report_folder / "report.html")
    _write_model_card(found, recipe.student_folder)
    follow(steps, steps, "report written")
    dice = {name: value for name in ("student - gold", "teacher - gold") if (value := _dice(found, name)) is not None}
    known = {
        "dice": dice.get("student - gold"),
        "teacher_dice": dice.get("teacher - gold"),
        "test_cases": len(found.cases),
        "warnings": len(found.warnings),
    }
    archive.catalog.add_student_metrics(recipe.student.name, {name: value for name, value in known.items() if value is not None})
    scores = ", ".join(f"{name} {value:.3f}" for name, value in dice.items())
    return scores + promptable_note(found) + evaluation_note(found)


def _judged(recipe: Recipe) -> "Student | PromptedStudent":
    """Load the recipe's student; a promptable one is asked as the recipe asks its teacher."""
    if recipe.student.kind == "promptable":
        from flows.plans import label_plan
        from students.promptable.answers import PromptedStudent

        return PromptedStudent(recipe.student_folder, label_plan(recipe))
    from students import load_student

    return load_student(recipe.student_folder)


def _write_model_card(found: Evaluation, folder: Path) -> None:
    """Leave a page about the student beside it."""
    from students.checkpoint import read_card
    from students.export.model_card import FILE, model_card

    (folder / FILE).write_text(model_card(read_card(folder), found), encoding="utf-8")


def _dice(found: Evaluation, name: str) -> float | None:
    known = {comparison.name for comparison in found.comparisons}
    return found.mean(name) if name in known else None


def report_of(recipe: Recipe) -> str:
    """Path of the HTML report, or nothing while there is none."""
    report = recipe.report_folder / "report.html"
    return str(report) if report.is_file() else ""


def student_of(recipe: Recipe) -> str:
    """The student's folder, or nothing while there is none."""
    return str(recipe.student_folder) if (recipe.student_folder / "student.json").is_file() else ""
