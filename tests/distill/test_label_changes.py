"""What a labelling run is about to replace is said beforehand, with what differs."""

import runpy
from pathlib import Path

import pytest

from distill.engine import label_archive
from distill.label_changes import REMOVED, SAME_RECIPE, LabelChanges, foreseen_changes
from distill.label_plan import LabelPlan
from distill.wavefront import AskSettings
from storage import Archive, ClassInfo, Prompt

SMALL = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))
archive_of, plan_for = SMALL["archive_of"], SMALL["plan_for"]


@pytest.fixture
def plan(tmp_path: Path) -> LabelPlan:
    return plan_for(SMALL["write_checkpoint"](tmp_path))  # type: ignore[no-any-return]


@pytest.fixture
def archive(tmp_path: Path, plan: LabelPlan) -> Archive:
    """Return two labelled cases, the first with a proposed box besides."""
    made: Archive = archive_of(tmp_path, 2)
    made.catalog.add_prompts([Prompt(case="case00", class_id=1, kind="box", slice=4, box_xyxy_px=(5, 4, 18, 15), source="proposed/middle")])
    label_archive(made, plan)
    return made


def test_nothing_is_foreseen_for_a_second_run_or_for_an_archive_without_labels(archive: Archive, plan: LabelPlan, tmp_path: Path) -> None:
    assert foreseen_changes(archive, plan) == LabelChanges()
    assert foreseen_changes(archive_of(tmp_path / "new", 1), plan) == LabelChanges()


def test_another_source_replaces_what_it_prompts_and_takes_the_rest_back(archive: Archive, plan: LabelPlan) -> None:
    found = foreseen_changes(archive, plan_for(plan.teacher, sources=("middle",)))
    assert (found.redrawn, found.withdrawn, found.of_another_recipe) == (1, 1, True)
    assert found.differences == {"prompts: weak -> middle": 1, "prompts: weak -> none of middle": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"classes": (ClassInfo(id=1, name="b"),)}, "classes: 1 a -> 1 b", id="other classes"),
        pytest.param({"ask": AskSettings(boxes=3)}, "uncertainty", id="asked otherwise"),
        pytest.param({"teacher": "bundled"}, "another teacher", id="another teacher"),
    ],
)
def test_what_differs_is_named(changes: dict[str, object], said: str, archive: Archive, plan: LabelPlan) -> None:
    found = foreseen_changes(archive, plan_for(**({"checkpoint": plan.teacher} | changes_for(changes))))
    assert (found.redrawn, found.differences) == (2, {said: 2})


def changes_for(changes: dict[str, object]) -> dict[str, object]:
    return {"checkpoint" if name == "teacher" else name: value for name, value in changes.items()}


def test_a_prompt_that_was_removed_is_not_another_recipe(archive: Archive, plan: LabelPlan) -> None:
    archive.catalog.forget_boxes("case01", 1, source="weak")
    found = foreseen_changes(archive, plan)
    assert (found.redrawn, found.withdrawn, found.differences, found.of_another_recipe) == (0, 1, {REMOVED: 1}, False)


def test_a_corrected_prompt_is_not_another_recipe(archive: Archive, plan: LabelPlan) -> None:
    archive.catalog.add_prompts([Prompt(case="case01", class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15))])
    found = foreseen_changes(archive, plan)
    assert (found.redrawn, found.differences, found.of_another_recipe) == (1, {SAME_RECIPE: 1}, False)


def test_a_box_of_a_reviewer_is_not_another_recipe(archive: Archive, plan: LabelPlan) -> None:
    box = Prompt(case="case01", class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15), source="review")
    archive.catalog.add_prompts([box])
    found = foreseen_changes(archive, plan)
    assert (found.redrawn, found.differences, found.of_another_recipe) == (1, {SAME_RECIPE: 1}, False)
