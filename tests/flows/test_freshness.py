"""What a run depends on: its inputs, however odd, and never its own output."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import freshness, launch
from flows.launch import requeue
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import RunSummary
from storage import Archive, CaseRecord, Geometry, ProblemRecord, Prompt

WriteRecipe = Callable[[str], Path]


@pytest.fixture
def recipe(write_recipe: WriteRecipe, tmp_path: Path) -> Recipe:
    """A recipe whose images, archive, catalog and results share one folder."""
    path = write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\ningest: {images: .}\n")
    (tmp_path / "scan.nii.gz").write_bytes(b"scan")
    return load_recipe(path)


def test_what_the_run_itself_writes_beside_the_images_is_no_input(recipe: Recipe, tmp_path: Path) -> None:
    Archive.create(recipe.archive)
    recipe.student_folder.mkdir(parents=True)
    (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
    (tmp_path / ".lock").touch()
    assert (tmp_path / "a.zarr.catalog.sqlite").is_file()
    assert [path.name for path in freshness._inputs(recipe)] == ["recipe.yaml", "scan.nii.gz"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_dangling_link_among_the_images_is_noticed_and_stops_nothing(recipe: Recipe, tmp_path: Path) -> None:
    archive = Archive.create(recipe.archive)
    before = freshness.run_fingerprint(recipe, archive)
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    assert freshness.run_fingerprint(recipe, archive) != before
    assert freshness._stamp(tmp_path / "gone.nii.gz") == [str(tmp_path / "gone.nii.gz"), -1, 0]


def test_files_refused_by_the_first_run_count_in_the_second_one_too(recipe: Recipe) -> None:
    archive = Archive.create(recipe.archive)
    problem = ProblemRecord(source="scan.nii.gz", row="", reason="truncated-gzip", message="scan.nii.gz: the file ends too early.")
    archive.catalog.record_problems([problem])
    ingest = next(result for result in freshness.standing(recipe) if result.stage == "ingest")
    assert ingest.quarantined == 1


def test_embeddings_that_are_kept_beside_the_archive_are_no_input(recipe: Recipe, tmp_path: Path) -> None:
    before = freshness.run_fingerprint(recipe, Archive.create(recipe.archive))
    (tmp_path / "a.zarr.embeddings").mkdir()
    (tmp_path / "a.zarr.embeddings" / "index.sqlite").touch()
    assert freshness.run_fingerprint(recipe, Archive.open(recipe.archive)) == before


def give_up(archive: Archive, stage: str, unit: str) -> None:
    archive.ledger.plan(stage, {unit: "1"})
    for _ in range(3):
        archive.ledger.claim(stage, unit)
        archive.ledger.fail(stage, unit, ValueError("bad"))


def test_thresholds_that_were_given_up_by_the_first_run_count_in_the_second_one_too(recipe: Recipe) -> None:
    give_up(Archive.create(recipe.archive), "calibrate", recipe.student.name)
    refine = next(result for result in freshness.standing(recipe) if result.stage == "refine")
    assert refine.quarantined == 1


def test_retrying_gives_new_attempts_to_the_units_of_the_chosen_stages_and_of_this_student_alone(recipe: Recipe) -> None:
    archive, own = Archive.create(recipe.archive), recipe.student.name
    units = [("label:teacher/r1", "scan"), ("refine:pseudo/r1", "scan"), ("calibrate", own), ("calibrate", "other"), ("train", own)]
    for stage, unit in units:
        give_up(archive, stage, unit)
    assert requeue(recipe, ("label", "refine")) == 3
    states = [archive.ledger.state(stage, unit) for stage, unit in units]
    assert states == ["pending", "pending", "pending", "quarantined", "quarantined"]


def run_once(recipe: Recipe, meanwhile: Callable[[], object] = lambda: None) -> bool:
    """Do what a launch does around a run, and tell whether the next launch would find nothing to do."""
    archive = Archive.open_or_create(recipe.archive, catalog=recipe.catalog)
    recipe.student_folder.mkdir(parents=True, exist_ok=True)
    (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
    files, brought_in = freshness.input_stamps(recipe), freshness.material(archive)
    meanwhile()
    freshness.remember_run(recipe, files, brought_in)
    return freshness.is_up_to_date(recipe, freshness.input_stamps(recipe))


def test_a_run_that_nothing_disturbed_is_remembered(recipe: Recipe) -> None:
    assert run_once(recipe)


def test_a_scan_that_came_while_a_run_was_going_is_for_the_next_run(recipe: Recipe, tmp_path: Path) -> None:
    assert not run_once(recipe, (tmp_path / "late.nii.gz").touch)


def test_a_launch_looks_at_its_inputs_before_it_runs(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def run(*_: object) -> RunSummary:
        runs.append(1)
        Archive.open_or_create(recipe.archive)
        recipe.student_folder.mkdir(parents=True, exist_ok=True)
        (recipe.student_folder / "student.json").write_text("{}", encoding="utf-8")
        if len(runs) == 1:
            (tmp_path / "late.nii.gz").touch()
        return RunSummary(stages=())

    monkeypatch.setattr(launch, "_run", run)
    states = [launch.launch(tmp_path / "recipe.yaml").up_to_date for _ in range(3)]
    assert (states, len(runs)) == ([False, False, True], 2)


@pytest.mark.parametrize(("source", "disturbs"), [("weak", True), ("proposed/exemplar", False)], ids=["a person's", "the run's own"])
def test_prompts_that_people_left_while_a_run_was_going_are_for_the_next_run(recipe: Recipe, source: str, disturbs: bool) -> None:
    archive = Archive.create(recipe.archive)
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    record = CaseRecord(
        id="a", patient="a", shape_czyx=(1, 1, 2, 3), dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1, 1, 1), affine=eye)
    )
    archive.add_case(record, np.zeros((1, 1, 2, 3), np.uint8))
    prompt = Prompt(case="a", class_id=1, kind="box", slice=0, box_xyxy_px=(0.0, 0.0, 2.0, 2.0), source=source)
    assert run_once(recipe, lambda: archive.catalog.add_prompts([prompt])) == (not disturbs)
    assert run_once(recipe)


@pytest.mark.parametrize("stage", ["ingest", "gold"])
def test_a_file_that_is_to_be_tried_again_by_the_next_run_keeps_a_run_from_being_the_last(stage: str, recipe: Recipe) -> None:
    archive = Archive.create(recipe.archive)
    archive.ledger.plan(stage, {"scan": "1"})
    archive.ledger.claim(stage, "scan")
    archive.ledger.fail(stage, "scan", OSError("the network is gone"))
    assert not run_once(recipe)


def test_a_version_with_other_source_looks_again_whatever_its_number(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_once(recipe)
    monkeypatch.setattr(freshness, "source_hash", lambda: "other")
    assert not freshness.is_up_to_date(recipe, freshness.input_stamps(recipe))


def test_what_other_students_of_the_archive_met_is_not_counted_to_this_one(recipe: Recipe) -> None:
    archive, own = Archive.create(recipe.archive), recipe.student.name
    give_up(archive, "train", "other")
    for stage in ("train", "evaluate"):
        archive.ledger.plan(stage, {own: "0"})
        archive.ledger.claim(stage, own)
        archive.ledger.done(stage, own)
    counts = {result.stage: (result.skipped, result.failed, result.quarantined) for result in freshness.standing(recipe)}
    assert (counts["train"], counts["evaluate"]) == ((1, 0, 0), (1, 0, 0))
    give_up(archive, "train", own)
    assert next(result for result in freshness.standing(recipe) if result.stage == "train").quarantined == 1


def test_masks_that_prompts_name_and_what_lies_beside_a_checkpoint_are_inputs(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMDISTILL_CACHE", str(tmp_path / "cache"))
    for name in ("cache/checkpoints/sam_vit_b_01ec64.pth", "delta.pth", "adapter_config.json", "images/scan.png", "masks/m 1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "weak.json").write_text(r'[{"path": "masks/m 1.png"}, {"path": "masks\\gone.PNG"}]', encoding="utf-8")
    (tmp_path / "weak.csv").write_text("case,path\nscan,masks/m 1.png\n", encoding="utf-8")
    smallest = "archive: ./a.zarr\nclasses: {1: {name: organ}}\nteacher: {checkpoint: delta.pth, base: vit_b}\n"
    for prompts in ("weak.json", "weak.csv"):
        recipe = load_recipe(write_recipe(f"{smallest}ingest: {{images: images, prompts: {prompts}}}\n"))
        found = [str(path.relative_to(tmp_path)) for path in freshness._inputs(recipe)]
        assert found[:3] == ["delta.pth", "adapter_config.json", "cache/checkpoints/sam_vit_b_01ec64.pth"]
        masks = ["masks/m 1.png", "masks/gone.PNG"] if prompts == "weak.json" else ["masks/m 1.png"]
        assert found[3:] == ["images/scan.png", prompts, *masks]


def test_a_name_that_no_file_can_have_is_stamped_as_a_file_that_is_not_there() -> None:
    assert freshness._stamp(Path("mask\0.png")) == ["mask\0.png", -1, 0]


def test_what_a_source_of_prompts_gave_up_in_the_first_run_counts_in_the_second_one_too(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\nprompts: {source: [weak, threshold]}\n"))
    give_up(Archive.create(recipe.archive), "prompts:threshold", "scan")
    assert next(result for result in freshness.standing(recipe) if result.stage == "label").quarantined == 1
