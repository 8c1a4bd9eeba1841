"""Promise 4: geometry survives the way through the archive, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from storage import IGNORE, Archive, Case, CaseRecord, ClassInfo, Geometry, InvalidCaseError, LabelHistory
from storage.export.nifti import export_image, export_labels, write_nifti

OBLIQUE = np.array([[-0.6, 0.1, 0.2, 90.0], [0.1, 0.7, -0.3, -126.0], [0.05, 0.2, 2.9, -72.0], [0.0, 0.0, 0.0, 1.0]])
nib: Any = nibabel
"""nibabel is half annotated: what ``load`` returns has no affine, as far as its types know."""

HISTORY = LabelHistory(label_set="pseudo/r1", classes=(ClassInfo(id=1, name="organ"),), made_by="tests")


def geometry_of(header: Any, affine: np.ndarray) -> Geometry:
    zooms = header.get_zooms()
    return Geometry(
        spacing_zyx_mm=(float(zooms[2]), float(zooms[1]), float(zooms[0])),
        affine=tuple(tuple(float(value) for value in row) for row in affine),  # type: ignore[misc]  # four rows of four
        nifti={
            "sform_code": int(header["sform_code"]),
            "qform_code": int(header["qform_code"]),
            "quatern": [float(header[f"quatern_{axis}"]) for axis in "bcd"],
            "qoffset": [float(header[f"qoffset_{axis}"]) for axis in "xyz"],
            "qfac": float(header["pixdim"][0]),
            "pixdim": [float(value) for value in header["pixdim"]],
            "sform": [float(value) for axis in "xyz" for value in header[f"srow_{axis}"]],
            "xyzt_units": int(header["xyzt_units"]),
        },
    )


@pytest.fixture
def add(tmp_path: Path) -> Callable[[np.ndarray, Geometry], Case]:
    archive = Archive.create(str(tmp_path / "archive.zarr"))

    def add_one(image_czyx: np.ndarray, geometry: Geometry) -> Case:
        channels, z, y, x = image_czyx.shape
        record = CaseRecord(id="a", patient="p", shape_czyx=(channels, z, y, x), dtype=str(image_czyx.dtype), geometry=geometry)
        return archive.add_case(record, image_czyx)

    return add_one


def image_of(dtype: str = "int16", channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, (channels, 5, 7, 9)).astype(dtype)


def forms_of(image: Any) -> list[float]:
    names = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")
    return [float(image.header[name]) for name in names] + [float(value) for value in image.header["pixdim"]]


@pytest.mark.parametrize(
    ("sform_code", "qform_code"),
    [
        pytest.param(1, 0, id="sform only"),
        pytest.param(0, 1, id="qform only"),
        pytest.param(2, 1, id="both"),
        pytest.param(0, 0, id="neither"),
    ],
)
@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_affine_forms_and_voxels_of_a_nifti_file_come_back_exactly(
    add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path, sform_code: int, qform_code: int, handedness: float
) -> None:
    array_czyx = image_of()
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(array_czyx[0].T.shape)
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = (0.61, 0.73, 2.9)
    if qform_code:
        rotation = np.linalg.qr(OBLIQUE[:3, :3])[0] * [1, 1, handedness]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = rotation @ np.diag([0.61, 0.73, 2.9]), (90.1, -126.2, -72.3)
        header.set_qform(affine, qform_code)
    if sform_code:
        header.set_sform(OBLIQUE, sform_code)
    nib.save(nib.Nifti1Image(array_czyx[0].T, None, header), tmp_path / "source.nii.gz")
    source = nib.load(tmp_path / "source.nii.gz")

    case = add(array_czyx, geometry_of(source.header, source.affine))
    exported = nib.load(export_image(case, tmp_path / "out" / "exported.nii.gz"))
    assert np.array_equal(exported.affine, source.affine)
    assert forms_of(exported) == forms_of(source)
    assert exported.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(exported.dataobj), np.asarray(source.dataobj))


def test_a_case_from_another_source_gets_its_affine_as_sform_in_millimetres(
    add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path
) -> None:
    affine = OBLIQUE.astype(np.float32).astype(float)
    geometry = Geometry(spacing_zyx_mm=(2.5, 0.75, 0.5), affine=tuple(map(tuple, affine.tolist())))
    exported = nib.load(export_image(add(image_of(), geometry), tmp_path / "a.nii"))
    assert np.array_equal(exported.affine, affine)
    assert (int(exported.header["sform_code"]), int(exported.header["qform_code"])) == (1, 0)
    assert exported.header.get_xyzt_units()[0] == "mm"
    assert exported.header.get_zooms() == (0.5, 0.75, 2.5)


def test_a_header_that_no_longer_fits_the_affine_gives_way_to_it(add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((9, 7, 5))
    header.set_sform(np.diag([1.0, 1.0, 1.0, 1.0]), 1)
    shifted = np.diag([1.0, 1.0, 1.0, 1.0])
    shifted[0, 3] = 17.0
    exported = nib.load(export_image(add(image_of(), geometry_of(header, shifted)), tmp_path / "a.nii"))
    assert np.array_equal(exported.affine, shifted)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_voxels_keep_type_and_value(add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path, dtype: str) -> None:
    array = image_of(dtype)
    exported = nib.load(export_image(add(array, plain_geometry()), tmp_path / "a.nii.gz"))
    assert exported.get_data_dtype() == np.dtype(dtype)
    assert np.array_equal(np.asarray(exported.dataobj), array[0].T)


def test_channels_become_vector_components_and_not_time(add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path) -> None:
    array = image_of("uint8", channels=3)
    exported = nib.load(export_image(add(array, plain_geometry()), tmp_path / "a.nii.gz"))
    assert exported.shape == (9, 7, 5, 1, 3)
    assert exported.header.get_intent()[0] == "vector"
    assert np.array_equal(np.asarray(exported.dataobj)[:, :, :, 0], array.transpose(3, 2, 1, 0))


def test_labels_are_exported_with_the_geometry_of_their_image_and_ignore_stays(
    add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path
) -> None:
    case = add(image_of(), plain_geometry())
    ids = np.zeros((5, 7, 9), np.uint8)
    ids[1:3, 2:5, 3:8], ids[0] = 1, IGNORE
    case.write_labels(HISTORY, ids)
    exported = nib.load(export_labels(case, "pseudo/r1", tmp_path / "labels.nii.gz"))
    assert exported.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(exported.dataobj), ids.T)
    assert np.array_equal(exported.affine, nib.load(export_image(case, tmp_path / "image.nii.gz")).affine)


def test_exporting_twice_gives_the_same_file(add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path) -> None:
    case = add(image_of(), plain_geometry())
    once = export_image(case, tmp_path / "a.nii.gz").read_bytes()
    assert export_image(case, tmp_path / "a.nii.gz").read_bytes() == once
    assert [path.name for path in tmp_path.glob("*.nii*")] == ["a.nii.gz"]


def test_other_endings_are_refused(add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path) -> None:
    case = add(image_of(), plain_geometry())
    with pytest.raises(InvalidCaseError, match=r"a\.mha must end in \.nii or \.nii\.gz"):
        export_image(case, tmp_path / "a.mha")


def test_whole_numbers_that_nifti_readers_do_not_know_are_stored_smaller_or_refused(tmp_path: Path) -> None:
    geometry = plain_geometry()
    path = write_nifti(np.full((2, 3, 4), 7, np.int64), geometry, tmp_path / "a.nii")
    assert nib.load(path).get_data_dtype() == np.int32
    with pytest.raises(InvalidCaseError, match="do not fit NIfTI's int32"):
        write_nifti(np.full((2, 3, 4), 2**40, np.int64), geometry, tmp_path / "b.nii")
    assert not (tmp_path / "b.nii").exists()


def test_real_scans_come_back_exactly(real_data: Path, add: Callable[[np.ndarray, Geometry], Case], tmp_path: Path) -> None:
    sources = sorted(real_data.glob("hippocampus/**/*.nii.gz"))[:1] + sorted(real_data.glob("cardiac/**/*.nii.gz"))[:1]
    assert sources
    for number, path in enumerate(sources):
        source = nib.load(path)
        array = np.asarray(source.dataobj)
        case = add(array.T[None], replace(geometry_of(source.header, source.affine))) if number == 0 else None
        exported = write_nifti(array.T, geometry_of(source.header, source.affine), tmp_path / f"{number}.nii.gz")
        assert np.array_equal(nib.load(exported).affine, source.affine)
        assert forms_of(nib.load(exported)) == forms_of(source)
        if case is not None:
            assert np.array_equal(np.asarray(nib.load(export_image(case, tmp_path / "case.nii.gz")).dataobj), array)


def plain_geometry() -> Geometry:
    affine = ((1.0, 0.0, 0.0, 3.0), (0.0, 1.5, 0.0, 4.0), (0.0, 0.0, 2.0, 5.0), (0.0, 0.0, 0.0, 1.0))
    return Geometry(spacing_zyx_mm=(2.0, 1.5, 1.0), affine=affine)
