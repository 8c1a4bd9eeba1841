"""Slices are stacked by where they lie, whatever their names and numbers say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from storage import Archive
from storage.ingest import ingest
from storage.ingest.dicom import read_series
from storage.ingest.dicom_headers import group_series, read_header
from storage.ingest.source import SourceCase

WriteSlices = Callable[..., list[Path]]
KEY = b"k" * 32
pytestmark = pytest.mark.usefixtures("quiet")


def planes(count: int, dtype: str = "uint16", seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900 if dtype != "uint8" else 200, (count, 6, 5)).astype(dtype)


def read(paths: list[Path]) -> list[SourceCase]:
    headers = [read_header(path, n, key=KEY, name=path.name) for n, path in enumerate(paths, start=1)]
    return [read_series(series) for series in group_series(headers, key=KEY)]


def test_order_and_spacing_come_from_positions_not_from_names_or_thickness(tmp_path: Path, write_slices: WriteSlices) -> None:
    values = planes(4)
    (case,) = read(write_slices(tmp_path, [6.0, 2.0, 4.0, 0.0], values=values))
    assert case.record.geometry.spacing_zyx_mm == (2.0, 0.7, 0.8)
    assert np.array_equal(case.image_czyx[0], values[[3, 1, 2, 0]].astype(int) - 1024)
    assert case.record.dtype == "int16"


def test_the_affine_is_in_the_ras_frame(tmp_path: Path, write_slices: WriteSlices) -> None:
    (case,) = read(write_slices(tmp_path, [0.0, 2.0]))
    expected = np.array([[-0.8, 0, 0, -1], [0, -0.7, 0, -2], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert np.allclose(case.record.geometry.affine, expected)


def test_a_tilted_gantry_is_kept_in_the_affine(tmp_path: Path, write_slices: WriteSlices) -> None:
    paths = [
        write_slices(tmp_path, [2.0 * n], first_file=n, values=planes(1, seed=n), ImagePositionPatient=[0, 0.5 * n, 2.0 * n])[0]
        for n in range(3)
    ]
    (case,) = read(paths)
    assert np.allclose(np.array(case.record.geometry.affine)[:3, 2], [0, -0.5, 2.0])


def test_broken_slopes_give_float_and_whole_ones_int16(tmp_path: Path, write_slices: WriteSlices) -> None:
    values = planes(2)
    (case,) = read(write_slices(tmp_path / "a", [0, 1], values=values, RescaleSlope=0.5, RescaleIntercept=0))
    assert case.record.dtype == "float32"
    assert np.array_equal(case.image_czyx[0], values * 0.5)
    (plain,) = read(write_slices(tmp_path / "b", [0, 1], values=values, RescaleSlope=None, RescaleIntercept=None))
    assert plain.record.dtype == "uint16"


@pytest.mark.parametrize("syntax", [pytest.param(RLELossless, id="RLE"), pytest.param(JPEG2000Lossless, id="JPEG 2000")])
def test_compressed_slices_decode_to_the_same_voxels(tmp_path: Path, write_slices: WriteSlices, syntax: str) -> None:
    values = np.random.default_rng(0).integers(0, 900, (2, 64, 48)).astype("uint16")
    paths = write_slices(tmp_path, [0, 1], values=values, BitsStored=12, HighBit=11)
    for path in paths:
        header = pydicom.dcmread(path)
        header.compress(syntax)
        header.save_as(path)
    (case,) = read(paths)
    assert np.array_equal(case.image_czyx[0], values.astype(int) - 1024)


def test_series_without_any_uid_are_told_apart_by_folder_and_grid(tmp_path: Path, write_slices: WriteSlices) -> None:
    bare = {"series": None, "SOPInstanceUID": "", "PatientID": ""}
    paths = write_slices(tmp_path / "a", [0, 1], values=planes(2), **bare)
    paths += write_slices(tmp_path / "b", [0, 1, 2], values=planes(3, seed=9), **bare)
    cases = read(paths)
    assert sorted(case.record.shape_czyx[1] for case in cases) == [2, 3]
    assert all(case.record.patient == case.record.id for case in cases)


def test_a_folder_without_uids_keeps_its_case_id_when_it_moves(tmp_path: Path, write_slices: WriteSlices) -> None:
    paths = write_slices(tmp_path / "a", [0, 1], series=None, SOPInstanceUID="")
    (before,) = read(paths)
    (tmp_path / "a").rename(tmp_path / "moved")
    (after,) = read(sorted((tmp_path / "moved").iterdir()))
    assert after.record == before.record


def test_two_series_in_one_folder_are_two_cases_of_one_patient(tmp_path: Path, write_slices: WriteSlices) -> None:
    paths = write_slices(tmp_path, [0, 1], series="1.1")
    paths += write_slices(tmp_path, [0, 1], series="1.2", first_file=2)
    first, second = read(paths)
    assert first.record.id != second.record.id
    assert first.record.patient == second.record.patient


def test_colour_pictures_without_a_position_are_cases_of_their_own(tmp_path: Path, write_slices: WriteSlices) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 6, 5, 3)).astype(np.uint8)
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "Modality": "OP"}
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    scale = {"RescaleSlope": None, "RescaleIntercept": None}
    cases = read(write_slices(tmp_path, [0, 1], values=pixels, **colour, **nowhere, **scale))
    assert [case.record.shape_czyx for case in cases] == [(3, 1, 6, 5)] * 2
    assert not cases[0].record.geometry.spacing_known


def test_monochrome1_is_turned_so_that_high_is_bright(tmp_path: Path, write_slices: WriteSlices) -> None:
    values = planes(1, "uint8")
    scale = {"RescaleSlope": None, "RescaleIntercept": None}
    (case,) = read(write_slices(tmp_path, [0], values=values, PhotometricInterpretation="MONOCHROME1", **scale))
    assert np.array_equal(case.image_czyx[0], 255 - values)


def reasons(archive: Archive) -> list[str]:
    return sorted(problem.reason for problem in archive.catalog.problems())


def test_a_gap_is_named_with_its_place(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2, 4, 8, 10])
    ingest(archive, tmp_path / "in")
    (problem,) = archive.catalog.problems()
    assert problem.reason == "missing-slices"
    assert "1 of 6 slices are missing, at 6.00 mm" in problem.message
    assert len(archive) == 0


def test_uneven_steps_are_refused(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2, 4, 6, 7.3, 8.6])
    assert ingest(archive, tmp_path / "in").reasons == {"mixed-spacing": 1}


def test_the_same_slice_twice_is_dropped_with_a_note(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    values = planes(3)
    write_slices(tmp_path / "in", [0, 2, 4], values=values)
    write_slices(tmp_path / "in", [2], values=values[1:2], first_file=9)
    summary = ingest(archive, tmp_path / "in")
    assert (summary.added, summary.problems) == (1, 0)
    assert "1 slices were there twice" in summary.notes[0]
    assert archive.cases()[0].shape_czyx[1] == 3


def test_two_different_slices_at_one_place_are_refused(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2, 4], values=planes(3))
    write_slices(tmp_path / "in", [2], values=planes(1, seed=8), first_file=9)
    assert ingest(archive, tmp_path / "in").reasons == {"duplicate-slices": 1}


def test_a_localizer_and_a_second_plane_do_not_spoil_the_series(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2, 4])
    write_slices(tmp_path / "in", [0], orientation=(0, 1, 0, 0, 0, -1), first_file=5)
    write_slices(tmp_path / "in", [0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], first_file=6)
    assert ingest(archive, tmp_path / "in").reasons == {"localizer": 1}
    assert sorted(case.shape_czyx[1] for case in archive.cases()) == [1, 3]


def test_objects_files_cut_off_and_text_are_recorded_while_the_series_goes_in(
    archive: Archive, tmp_path: Path, write_slices: WriteSlices
) -> None:
    folder = tmp_path / "in"
    write_slices(folder, [0, 2, 4])
    write_slices(folder, [0], series="9.1", Modality="SEG", first_file=20)
    write_slices(folder, [0], series="9.2", NumberOfFrames=4, first_file=21)
    (cut,) = write_slices(folder, [0], series="9.3", first_file=22)
    cut.write_bytes(cut.read_bytes()[:-20])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "text.dcm").write_text("no scan here " * 30)
    ingest(archive, folder)
    assert reasons(archive) == ["multi-frame", "not-an-image", "not-dicom", "truncated-dicom", "zero-bytes"]
    assert len(archive) == 1


def test_files_without_ending_or_preamble_are_found_by_content(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    for n, path in enumerate(write_slices(tmp_path / "in", [0, 2])):
        path.write_bytes(path.read_bytes()[132:])  # no preamble, and so no meta header that could be found
        path.rename(path.with_name(f"IM{n}"))
    assert ingest(archive, tmp_path / "in").added == 1


def test_a_second_run_does_nothing_and_a_new_slice_replaces_the_series(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2])
    ingest(archive, tmp_path / "in")
    assert ingest(archive, tmp_path / "in").unchanged == 1
    write_slices(tmp_path / "in", [4], first_file=7)
    assert ingest(archive, tmp_path / "in").replaced == 1
    assert archive.cases()[0].shape_czyx[1] == 3


def test_the_real_series_without_uids_has_slices_two_millimetres_apart(archive: Archive, real_data: Path) -> None:
    ingest(archive, real_data / "ct_organs" / "dicom_series")
    (record,) = archive.cases()
    assert record.geometry.spacing_zyx_mm == (2.0, 0.9765625, 0.9765625)
    assert record.shape_czyx == (1, 20, 512, 512)
    assert (record.modality, record.attributes["vendor"]) == ("CT", "Siemens")
    lowest = archive[record.id].read_slice(0)
    assert lowest.min() == -1024


def test_real_segmentation_objects_are_skipped_beside_their_scan(archive: Archive, real_data: Path) -> None:
    summary = ingest(archive, real_data / "dicom_seg")
    assert summary.added == 1
    assert summary.reasons == {"not-an-image": 2}
