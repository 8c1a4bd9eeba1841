"""What goes in through NIfTI is what was in the file."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import Archive
from storage.ingest import ingest
from storage.ingest.nifti import read_nifti
from storage.ingest.source import Naming

WriteNifti = Callable[..., Path]
NAMING = Naming(case="a", patient="a")
pytestmark = pytest.mark.usefixtures("quiet")

# Rotations, flips, shears and anisotropic voxels alike; columns that vanish are no geometry.
AFFINES = (
    st.lists(st.floats(-4, 4, width=32), min_size=9, max_size=9)
    .map(lambda v: np.array(v).reshape(3, 3))
    .filter(lambda m: abs(np.linalg.det(m)) > 0.01 and np.linalg.norm(m, axis=0).min() > 0.05)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matrix=AFFINES,
    offset=st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3),
    dtype=st.sampled_from(["uint8", "int16", "int32", "float32", "float64", "uint16"]),
    codes=st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([0, 1, 3])),
)
def test_affine_spacing_and_voxels_survive_exactly(
    tmp_path: Path, matrix: np.ndarray, offset: list[float], dtype: str, codes: tuple[int, int]
) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, offset
    values = np.random.default_rng(1).integers(0, 200, (3, 4, 5)).astype(dtype)
    image = nib.Nifti1Image(values, affine)
    image.header["sform_code"], image.header["qform_code"] = codes
    path = tmp_path / "a.nii"
    nib.save(image, path)
    expected = nib.Nifti1Image.from_filename(path)
    found = read_nifti(path, NAMING)
    assert np.array_equal(np.array(found.record.geometry.affine), expected.affine)
    assert found.record.geometry.spacing_zyx_mm == tuple(float(z) for z in expected.header.get_zooms()[::-1])
    assert found.image_czyx.dtype == values.dtype
    assert np.array_equal(found.image_czyx[0].T, values)


def test_the_archive_gives_back_the_same_voxels_and_geometry(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    affine = np.array([[0, -0.7, 0.1, -20.5], [0.8, 0, 0, 11.25], [0, 0.05, 2.5, -300], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "in" / "odd.nii.gz", affine=affine)
    ingest(archive, tmp_path / "in")
    case, original = archive["odd"], nib.Nifti1Image.from_filename(path)
    assert np.array_equal(np.array(case.record.geometry.affine), original.affine)
    assert np.array_equal(case.read()[0].T, np.asanyarray(original.dataobj))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(matrix=AFFINES, codes=st.sampled_from([(0, 0), (1, 0), (0, 1), (2, 1), (1, 3)]))
def test_what_is_exported_has_the_affine_and_voxels_of_what_came_in(tmp_path: Path, matrix: np.ndarray, codes: tuple[int, int]) -> None:
    from storage.export.nifti import write_nifti as export

    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, (-12.5, 3.25, 100)
    image = nib.Nifti1Image(np.random.default_rng(1).integers(0, 200, (3, 4, 5)).astype(np.int16), affine)
    image.header["sform_code"], image.header["qform_code"] = codes
    nib.save(image, tmp_path / "in.nii")
    found = read_nifti(tmp_path / "in.nii", NAMING)
    export(found.image_czyx[0], found.record.geometry, tmp_path / "out.nii")
    before, after = (nib.Nifti1Image.from_filename(tmp_path / name) for name in ("in.nii", "out.nii"))
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.dataobj, after.dataobj)
    assert before.get_data_dtype() == after.get_data_dtype()


def test_the_header_fields_behind_the_affine_are_kept(tmp_path: Path, write_nifti: WriteNifti) -> None:
    path = write_nifti(tmp_path / "a.nii", qform_code=1)
    header = nib.Nifti1Image.from_filename(path).header
    kept = read_nifti(path, NAMING).record.geometry.nifti
    assert kept["sform_code"] == int(header["sform_code"])
    assert kept["qform_code"] == 1
    assert kept["quatern"] == [float(header[f"quatern_{a}"]) for a in "bcd"]
    assert kept["sform"] == [float(v) for a in "xyz" for v in header[f"srow_{a}"]]
    assert kept["pixdim"] == [float(v) for v in header["pixdim"]]
    assert kept["qfac"] == float(header["pixdim"][0])
    assert set(kept) == {"sform_code", "qform_code", "quatern", "qoffset", "qfac", "pixdim", "sform", "xyzt_units"}


@pytest.mark.parametrize(
    ("slope", "dtype"), [pytest.param(0.5, "float32", id="exact in single"), pytest.param(1 / 3, "float64", id="not exact")]
)
def test_scaled_values_take_the_smallest_float_that_holds_them(tmp_path: Path, slope: float, dtype: str) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(slope, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz", NAMING)
    assert found.image_czyx.dtype == dtype
    assert np.array_equal(found.image_czyx[0].T, np.asanyarray(nib.Nifti1Image.from_filename(tmp_path / "a.nii.gz").dataobj))


def test_colour_and_vector_files_become_channels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    rgb = values.copy().view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    nib.save(nib.Nifti1Image(values[:, :, :, None], np.eye(4)), tmp_path / "vector.nii")
    for name in ("rgb.nii", "vector.nii"):
        image = read_nifti(tmp_path / name, NAMING).image_czyx
        assert image.shape == (3, 6, 5, 4)
        assert np.array_equal(image, np.transpose(values, (3, 2, 1, 0)))


def test_planes_single_volumes_nifti2_and_big_endian_files_go_in(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (4, 5)).astype(">i2")
    big = nib.Nifti1Header(endianness=">")
    big.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(values, np.eye(4), header=big), tmp_path / "plane.nii")
    nib.save(nib.Nifti2Image(values.astype("<i2")[..., None, None], np.eye(4)), tmp_path / "two.nii.gz")
    for name in ("plane.nii", "two.nii.gz"):
        found = read_nifti(tmp_path / name, NAMING)
        assert found.record.dtype == "int16"
        assert found.image_czyx.dtype.isnative
        assert np.array_equal(found.image_czyx, values.T[None, None])


def test_a_header_at_odds_with_its_affine_leaves_a_note(tmp_path: Path, write_nifti: WriteNifti) -> None:
    path = write_nifti(tmp_path / "a.nii", pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    found = read_nifti(path, NAMING)
    assert found.record.geometry.spacing_zyx_mm == (1, 1, 1)
    assert "its affine" in found.notes[0]


@pytest.mark.parametrize("seed", [pytest.param(0, id="same pixels"), pytest.param(1, id="new pixels")])
def test_another_rule_for_patients_moves_no_case_to_another_part(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti, seed: int
) -> None:
    values = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    path = write_nifti(tmp_path / "in" / "P1_a.nii.gz", values)
    ingest(archive, path)
    archive.catalog.set_part({"P1_a": "test"})
    write_nifti(path, values + np.int16(seed))
    ingest(archive, path, patient_from="^(P[0-9])_")
    assert (archive["P1_a"].record.patient, archive["P1_a"].record.part) == ("P1", "test")


def test_real_volumes_come_through_bit_for_bit(real_data: Path) -> None:
    for path in [*sorted((real_data / "hippocampus" / "images").iterdir())[:10], real_data / "ct_organs" / "example_mr_sm.nii.gz"]:
        found, original = read_nifti(path, NAMING), nib.Nifti1Image.from_filename(path)
        assert np.array_equal(np.array(found.record.geometry.affine), original.affine)
        assert np.array_equal(found.image_czyx[0].T, np.asanyarray(original.dataobj))
