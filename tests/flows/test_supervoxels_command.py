"""``samdistill supervoxels`` writes pieces in the geometry of the scans, once, and over nobody's files."""

import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from flows.errors import StageError
from flows.supervoxels import export_supervoxels

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


def test_a_file_of_somebody_else_is_not_lost(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "case01.nii.gz").write_bytes(b"mine")
    with pytest.raises(StageError, match=r"case01\.nii\.gz would be lost"):
        export_supervoxels(recipe_file, tmp_path, part=None)
    assert not (tmp_path / "case00.nii.gz").exists()


def test_no_case_is_said_to_be_so(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no case in part test"):
        export_supervoxels(recipe_file, tmp_path / "pieces", part="test")
