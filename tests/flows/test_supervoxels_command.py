"""``samdistill supervoxels`` writes pieces in the geometry of the scans, once, and over nobody's files."""

import runpy
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from flows.errors import StageError
from flows.supervoxels import export_supervoxels
from storage import Archive

SMALL = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_archive.py"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Return a recipe about two small volumes and a teacher of random weights that keeps whatever it draws."""
    SMALL["archive_of"](tmp_path, 2, depth=3)
    SMALL["write_checkpoint"](tmp_path)
    grid = "{points_per_side: 3, least_iou: 0, least_stability: 0, least_px: 1}"
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "archive: a.zarr\nclasses: {1: {name: a}}\nteacher: {checkpoint: small.safetensors, device: cpu}\n"
        f"prompts: {{everything: {{grid: {grid}}}}}\n"
    )
    return path


def test_each_case_becomes_a_file_in_its_geometry_and_a_second_run_keeps_it(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    first = export_supervoxels(recipe_file, out, part=None)
    assert (first.done, first.skipped) == (2, 0)
    image = nib.nifti1.Nifti1Image.from_filename(out / "case00.nii.gz")
    assert image.shape == (26, 20, 3)
    assert np.asarray(image.dataobj).dtype == np.uint16
    assert (
        first.tally["pieces"]
        == sum(int(np.asarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj).max()) for path in out.iterdir())
        > 0
    )
    second = export_supervoxels(recipe_file, out, part=None)
    assert (second.done, second.skipped) == (0, 2)


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(("points_per_side: 3", "points_per_side: 5"), id="another grid"),
        pytest.param(("classes:", "intensity: {mr: {windows: [[0, 300]]}}\nclasses:"), id="another window"),
    ],
)
def test_pieces_of_another_question_are_made_anew(change: tuple[str, str], recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    export_supervoxels(recipe_file, out, part=None)
    before = stored(out)
    recipe_file.write_text(recipe_file.read_text().replace(*change))
    again = export_supervoxels(recipe_file, out, part=None)
    assert (again.done, again.skipped) == (2, 0)
    assert all(before[name] != made for name, made in stored(out).items())


def test_pieces_of_a_scan_that_was_replaced_are_made_anew(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "pieces"
    export_supervoxels(recipe_file, out, part=None)
    before = stored(out)
    archive = Archive.open(str(tmp_path / "a.zarr"))
    record = archive["case01"].record
    other = np.random.default_rng(9).integers(0, 900, record.shape_czyx, dtype=np.int16)
    archive.add_case(replace(record, fingerprint="other"), other, replace=True)
    again = export_supervoxels(recipe_file, out, part=None)
    assert (again.done, again.skipped) == (1, 1)
    assert [before[name] == made for name, made in stored(out).items()] == [True, False]


def test_a_file_of_somebody_else_is_not_lost(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "case01.nii.gz").write_bytes(b"mine")
    with pytest.raises(StageError, match=r"case01\.nii\.gz would be lost"):
        export_supervoxels(recipe_file, tmp_path, part=None)
    assert not (tmp_path / "case00.nii.gz").exists()


def test_no_case_is_said_to_be_so(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no case in part test"):
        export_supervoxels(recipe_file, tmp_path / "pieces", part="test")
