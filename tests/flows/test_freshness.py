"""What a run depends on: its inputs, however odd, and never its own output."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import freshness
from flows.launch import requeue
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from storage import Archive

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
    archive.catalog.record_problem("scan.nii.gz", "", "truncated-gzip", "scan.nii.gz: the file ends too early.")
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
