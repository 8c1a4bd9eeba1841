"""What was made from labels that are not there any more is not shown as if it stood, and the command that makes it anew is named."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
import zarr

from flows import judging, opened, pipeline, stages, teaching
from flows.console import show_summary
from flows.inspection import inspect_path
from flows.made_of import outdated_cases
from flows.outdated import find_outdated, outdated_words
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import RunSummary, StageResult
from storage import Archive, Case, Labels, Prompt, StudentRecord
from storage.database import Database
from storage.ome import LabelAttributes

WriteRecipe = Callable[[str], Path]
SMALL = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_archive.py"))
TEXT = "archive: ./a/a.zarr\nteacher: {checkpoint: small.safetensors, device: cpu}\nuncertainty: {boxes: 2, planes: axial}\nclasses: {1: {name: a}}\n"


def mark_done(archive: Archive, stage: str, unit: str, fingerprint: str) -> None:
    archive.ledger.plan(stage, {unit: fingerprint})
    assert archive.ledger.claim(stage, unit)
    archive.ledger.done(stage, unit)


def label_and_refine(recipe: Recipe) -> None:
    (shard,) = stages.shards_to_label(recipe, 256)
    stages.label(recipe, shard)
    stages.refine(recipe, shard)


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: WriteRecipe) -> Recipe:
    """Return the recipe of an archive of three cases that were drawn, refined, learnt from and scored."""
    SMALL["write_checkpoint"](tmp_path)
    archive: Archive = SMALL["archive_of"](tmp_path / "a", 3)
    recipe = load_recipe(write_recipe(TEXT))
    label_and_refine(recipe)
    for case in ("case00", "case01", "case02"):
        archive.catalog.add_scores(case, "pseudo/r1", {"accepted": 1.0})
    archive.catalog.record_student(StudentRecord(name="compact", kind="compact", path=str(recipe.student_folder), label_set="pseudo/r1"))
    recipe.student_folder.mkdir(parents=True)
    (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
    recipe.report_folder.mkdir(parents=True)
    (recipe.report_folder / "report.html").write_text("", encoding="utf-8")
    mark_done(archive, "train", "compact", "1")
    mark_done(archive, "evaluate", "compact", judging.evaluation_fingerprint(archive, recipe))
    return recipe


@pytest.fixture
def learnt(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Return the recipe's archive; its student is known to have learnt from the labels that are there."""
    from flows.plans import student_spec
    from students import checkpoint

    class Card:
        spec = student_spec(recipe)
        gold_cases = ()

    monkeypatch.setattr(checkpoint, "read_card", lambda _path: Card)
    archive = opened.open_archive(recipe)
    mark_done(archive, "train", "compact", teaching.train_fingerprint(archive, Card.spec, teaching.believed_cases(archive)))
    return archive


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows with each label set whose file is read."""
    read, reads = LabelAttributes.read, list[object]()

    def noted(group: zarr.Group) -> LabelAttributes:
        reads.append(group)
        return read(group)

    monkeypatch.setattr(LabelAttributes, "read", noted)
    return reads


def draw_with_other_prompts(recipe: Recipe, *cases: str) -> Archive:
    archive = opened.open_archive(recipe)
    archive.catalog.add_prompts([Prompt(case=case, class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15)) for case in cases])
    stages.label(recipe, stages.shards_to_label(recipe, 256)[0])
    return archive


def test_what_is_of_the_labels_that_are_there_stands(recipe: Recipe) -> None:
    facts = inspect_path(recipe.archive).facts
    assert (facts["refine (cases)"], facts["train (students)"], facts["evaluate (reports)"]) == ("3 done", "1 done", "1 done")
    assert facts["students"] == "compact"
    assert "outdated" not in facts
    assert outdated_words(opened.open_archive(recipe), recipe, "recipe.yaml") == ""


def test_inspect_counts_only_what_is_of_the_labels_that_are_there_now(recipe: Recipe) -> None:
    draw_with_other_prompts(recipe, "case00", "case01", "case02")
    facts = inspect_path(recipe.archive).facts
    assert facts["label (cases)"] == "3 done"
    assert (facts["refine (cases)"], facts["train (students)"]) == ("3 outdated", "1 outdated")
    assert (facts["evaluate (reports)"], facts["students"]) == ("1 outdated", "")
    assert not {"label set pseudo/r1", "verdicts of pseudo/r1"} & facts.keys()
    assert facts["outdated"] == (
        "the refined labels of 3 cases, the student compact, the report on compact: labels have changed since. "
        "'samdistill run RECIPE' makes this anew"
    )


def test_cases_that_were_not_drawn_anew_stay_what_they_are(recipe: Recipe) -> None:
    archive = draw_with_other_prompts(recipe, "case01")
    facts = inspect_path(recipe.archive).facts
    assert (facts["refine (cases)"], facts["label set pseudo/r1"]) == ("2 done, 1 outdated", 2)
    assert find_outdated(archive).refined == ("case01",)


def test_what_is_planned_anew_and_not_done_is_pending_and_not_outdated(recipe: Recipe) -> None:
    archive = opened.open_archive(recipe)
    archive.catalog.retract_label_set("case01", "teacher/r1")
    archive.ledger.plan("refine:pseudo/r1", {f"case0{n}": "by other rules" for n in range(3)})
    assert find_outdated(archive).refined == ("case01",)
    assert inspect_path(recipe.archive).facts["refine (cases)"] == "3 pending"


def test_labels_that_are_being_written_anew_meanwhile_are_passed_over(recipe: Recipe) -> None:
    archive = opened.open_archive(recipe)
    records = archive.cases(with_labels="pseudo/r1")
    archive.catalog.retract_label_set("case01", "pseudo/r1")
    archive.catalog.retract_label_set("case02", "teacher/r1")
    assert outdated_cases(archive, records) == ["case02"]
    assert sorted(opened.label_fingerprints(archive, records, "pseudo/r1")) == ["case00", "case02"]
    assert sorted(opened.label_fingerprints(archive, records, "teacher/r1")) == ["case00", "case01"]


def test_inspect_holds_out_while_labels_are_written_anew_at_any_time(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, labels_of = opened.open_archive(recipe).catalog, Case.labels

    def taken_away_once_read(case: Case, name: str) -> Labels:
        found = labels_of(case, name)
        assert found.history
        catalog.retract_label_set(case.id, name)
        return found

    monkeypatch.setattr(Case, "labels", taken_away_once_read)
    known = str(inspect_path(recipe.archive).facts["verdicts of pseudo/r1"])
    assert sum(int(count) for count in re.findall(r"\d+", known)) == 3


def test_no_file_is_read_to_find_what_is_outdated_however_many_cases_there_are(
    recipe: Recipe, learnt: Archive, files_read: list[object]
) -> None:
    assert outdated_words(learnt, recipe, "recipe.yaml") == ""
    assert files_read == []
    draw_with_other_prompts(recipe, "case00", "case01")
    files_read.clear()
    assert find_outdated(learnt).refined == ("case00", "case01")
    assert outdated_words(learnt, recipe, "recipe.yaml").startswith("Outdated, as labels have changed since: the refined labels of 2 cases")
    assert files_read == []


def test_what_a_catalog_from_before_does_not_know_is_read_from_files_until_the_next_refinement(
    recipe: Recipe, files_read: list[object]
) -> None:
    archive = draw_with_other_prompts(recipe, "case01")
    with Database(archive.catalog.url).writing() as connection:
        connection.execute(sa.text("UPDATE label_sets SET made_of = NULL"))
    files_read.clear()
    assert find_outdated(archive).refined == ("case01",)
    assert len(files_read) == 3
    stages.refine(recipe, stages.shards_to_refine(recipe, 256)[0])
    files_read.clear()
    assert find_outdated(archive).refined == ()
    assert files_read == []


def test_once_it_is_refined_anew_the_labels_stand_and_the_student_that_learnt_from_the_old_ones_does_not(
    recipe: Recipe, learnt: Archive
) -> None:
    assert find_outdated(learnt).words == ""
    draw_with_other_prompts(recipe, "case01")
    label_and_refine(recipe)
    learnt.catalog.add_scores("case01", "pseudo/r1", {"accepted": 1.0})
    found = find_outdated(learnt)
    assert (found.words, found.reason) == ("the student compact, the report on compact", "labels have changed")


def test_a_student_of_an_older_program_is_outdated_because_of_that_and_not_of_labels(
    recipe: Recipe, learnt: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from students import compact

    monkeypatch.setattr(compact, "TRAINER", str(int(compact.TRAINER) + 2))
    assert outdated_words(learnt, recipe, "recipe.yaml").startswith(
        "Outdated, as the program has changed since: the student compact, the report on compact ("
    )
    assert inspect_path(recipe.archive).facts["outdated"] == (
        "the student compact, the report on compact: the program has changed since. 'samdistill run RECIPE' makes this anew"
    )
    draw_with_other_prompts(recipe, "case01")
    assert find_outdated(learnt).reason == "labels have changed"


def test_label_does_not_name_an_old_report_as_if_it_were_of_these_labels(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    archive = draw_with_other_prompts(recipe, "case00")
    words = outdated_words(archive, recipe, "recipe.yaml")
    assert words.startswith(
        "Outdated, as labels have changed since: the refined labels of 1 case, the student compact, the report on compact ("
    )
    assert words.endswith("recipe.yaml' makes this anew.")
    show_summary(RunSummary(stages=(), report=judging.report_of(recipe), outdated=words))
    said = capsys.readouterr().out
    assert "Report:" not in said
    assert words in said


def test_a_single_stage_says_what_is_outdated_after_it(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_done(opened.open_archive(recipe), "evaluate", "compact", "of other prompts")
    monkeypatch.setattr(pipeline, "FLOWS", {"label": lambda _file: StageResult(stage="label")})
    summary = pipeline.run_recipe.fn(str(tmp_path / "recipe.yaml"), ("label",))
    assert summary.outdated.startswith("Outdated, as the student, labels, prompts or settings have changed since: the report on compact (")
