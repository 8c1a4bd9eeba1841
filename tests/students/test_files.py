"""Using a student on files: every kind an ingest reads, geometry survives, bad files do not stop good ones, nobody is named."""

import os
import shutil
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from storage import Archive, ClassInfo
from students import compact, load_student
from students.files import FilePrediction, predict_files
from students.predict import Student
from students.spec import StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)


@pytest.fixture(scope="module")
def student(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Student:
    spec = StudentSpec(
        name="filed", budget_seconds=None, steps=8, width=4, dimensions="2d", batch=2, threads=1, device="cpu", validation_fraction=0
    )
    done = compact.train(archive, label_set="gold", classes=CLASSES, spec=spec, workdir=tmp_path_factory.mktemp("student"))
    return load_student(done.path, device="cpu")


@pytest.fixture
def volume(archive: Archive) -> np.ndarray:
    return archive["test0"].read()[0]


def oblique(array_kji: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[0.9, 0.2, 0.0, -20.0], [-0.2, 0.75, 0.1, 7.5], [0.05, -0.1, 1.5, 3.25], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.ascontiguousarray(array_kji.T), affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"JANE DOE"
    nib.save(image, path)
    return path


def picture(path: Path, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.add.outer(np.arange(40), np.arange(56)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def dicom_series(folder: Path, slices: int = 3, *, modality: str = "CT", kind: str = "AXIAL", stem: str = "DOE_JANE") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid()
    for z in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{stem}_{z}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID, series
        ds.PatientName, ds.PatientID, ds.Modality = "DOE^JANE", "4711", modality
        ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * z], [0.8, 0.7]
        ds.PixelData = np.arange(480, dtype=np.uint16).tobytes()
        pydicom.dcmwrite(path, ds, enforce_file_format=True)


def by_name(records: tuple[FilePrediction, ...]) -> dict[str, FilePrediction]:
    return {record.source: record for record in records}


def test_the_output_file_lies_exactly_where_its_input_lies(volume: np.ndarray, student: Student, tmp_path: Path) -> None:
    source = oblique(volume, tmp_path / "scan.nii.gz")
    (record,) = predict_files(student, [source], tmp_path / "out").scans
    assert record.problem == ""
    assert record.output == tmp_path / "out" / "scan.nii.gz"
    given, answer = nib.load(source), nib.load(record.output)
    np.testing.assert_array_equal(answer.affine, given.affine)
    assert answer.shape == given.shape
    assert answer.get_data_dtype() == np.uint8
    for key in ("sform_code", "qform_code", "xyzt_units", "pixdim", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(answer.header[key], given.header[key])
    spacing = given.header.get_zooms()[::-1]
    wanted = student.predict(np.asanyarray(given.dataobj).T, [float(s) for s in spacing]).labels
    np.testing.assert_array_equal(np.asanyarray(answer.dataobj).T, wanted)


def test_free_text_of_a_header_does_not_pass_into_the_answer(volume: np.ndarray, student: Student, tmp_path: Path) -> None:
    source = oblique(volume, tmp_path / "scan.nii")
    (record,) = predict_files(student, [source], tmp_path / "out").scans
    assert b"JANE" in source.read_bytes()
    assert record.output is not None
    assert not nib.load(record.output).header["descrip"].tobytes().strip(b"\0")


def test_a_bad_file_is_reported_as_an_ingest_would_and_the_others_are_answered(
    volume: np.ndarray, student: Student, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    oblique(volume, folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:400])
    (folder / "c.nii").write_text("these are not the voxels you are looking for")
    (folder / "e.png").write_bytes(b"")
    bad = volume.copy()
    bad[0, 0, 0] = np.nan
    oblique(bad, folder / "f.nii")
    oblique(volume, folder / "g.nii")
    seen: list[tuple[str, int]] = []
    records = predict_files(student, [folder], tmp_path / "out", lambda r, total: seen.append((r.source, total))).scans
    assert seen == [(name, 6) for name in ("a.nii.gz", "b.nii.gz", "c.nii", "e.png", "f.nii", "g.nii")]
    problems = [r.problem for r in records]
    assert problems[0] == problems[5] == ""
    assert problems[1] == "b.nii.gz: the compressed data ends early or is damaged. Copy or export the file again."
    assert problems[2] == "c.nii: the content is not NIfTI. Was another kind of file renamed?"
    assert problems[3] == "e.png: the file has no bytes. A copy was probably interrupted; copy it again."
    assert problems[4].startswith("f.nii: 1 of ")
    assert "Replace them by the value of the background" in problems[4]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.nii.gz", "g.nii.gz"]


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.tif"])
def test_a_picture_gets_a_grey_picture_of_ids_of_its_own_size(student: Student, tmp_path: Path, name: str) -> None:
    (record,) = predict_files(student, [picture(tmp_path / name)], tmp_path / "out").scans
    assert record.problem == ""
    assert record.output == tmp_path / "out" / "p.png"
    with Image.open(record.output) as answer:
        assert (answer.mode, answer.size) == ("L", (56, 40))
        assert set(np.unique(np.asarray(answer))) <= {0, 3}


def test_a_picture_without_a_spacing_is_answered_with_a_warning_where_the_student_knew_one_and_a_scan_with_one_without(
    student: Student, volume: np.ndarray, tmp_path: Path
) -> None:
    flat, scan = predict_files(student, [picture(tmp_path / "p.png"), oblique(volume, tmp_path / "v.nii.gz")], tmp_path / "out").scans
    assert flat.notes[-1].startswith("WARNING: p.png is without a spacing and read as if a pixel were 1 mm")
    assert not any("WARNING" in note for note in scan.notes)


def test_a_picture_gets_nifti_where_asked(student: Student, tmp_path: Path) -> None:
    (record,) = predict_files(student, [picture(tmp_path / "p.png")], tmp_path / "out", nifti_only=True).scans
    assert record.output == tmp_path / "out" / "p.nii.gz"
    assert nib.load(record.output).shape == (56, 40, 1)


def test_a_colour_picture_is_refused_by_a_grey_student_with_the_likely_cause(student: Student, tmp_path: Path) -> None:
    (record,) = predict_files(student, [picture(tmp_path / "p.png", "RGB")], tmp_path / "out").scans
    assert record.problem.startswith("p.png: student filed needs")
    assert "saved in colour" in record.problem


def test_folders_are_searched_to_the_bottom_and_mirrored_and_strangers_are_listed(
    volume: np.ndarray, student: Student, tmp_path: Path
) -> None:
    oblique(volume, tmp_path / "in" / "one" / "scan.nii.gz")
    picture(tmp_path / "in" / "two" / "deep" / "scan.png")
    (tmp_path / "in" / "two" / "notes.txt").write_text("not a scan")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    assert {name: record.output for name, record in by_name(found.scans).items()} == {
        "one/scan.nii.gz": tmp_path / "out" / "one" / "scan.nii.gz",
        "two/deep/scan.png": tmp_path / "out" / "two" / "deep" / "scan.png",
    }
    assert found.passed_over == ("two/notes.txt",)


def test_answers_in_the_searched_folder_are_not_segmented_in_their_turn(student: Student, tmp_path: Path) -> None:
    picture(tmp_path / "scan.png")
    first = predict_files(student, [tmp_path], tmp_path / "out")
    again = predict_files(student, [tmp_path], tmp_path / "out")
    assert [r.source for r in first.scans] == [r.source for r in again.scans] == ["scan.png"]
    assert again.scans[0].problem == ""


def test_a_named_file_that_is_no_scan_or_not_there_is_a_failure_with_its_reason(student: Student, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a scan")
    records = predict_files(student, [tmp_path / "notes.txt", tmp_path / "gone.nii"], tmp_path / "out").scans
    assert "notes.txt: no scan. NIfTI, DICOM, PNG, JPEG and TIFF can be read" in records[0].problem
    assert "there is nothing at" in records[1].problem


def test_two_inputs_of_one_name_do_not_overwrite_each_other(student: Student, tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg")
    records = predict_files(student, [first, second], tmp_path / "out").scans
    assert records[0].output is not None
    assert "overwrite" in records[1].problem


def test_a_scan_is_never_overwritten_by_its_own_answer(student: Student, tmp_path: Path) -> None:
    before = picture(tmp_path / "a.png").read_bytes()
    (record,) = predict_files(student, [tmp_path / "a.png"], tmp_path).scans
    assert "overwrite" in record.problem
    assert (tmp_path / "a.png").read_bytes() == before


def test_no_answer_takes_the_place_of_another_scan_of_the_run(student: Student, tmp_path: Path) -> None:
    picture(tmp_path / "scans" / "x.jpg")
    before = picture(tmp_path / "scans" / "x.png").read_bytes()
    for out in (tmp_path / "scans", tmp_path / "link"):
        if out.name == "link":
            out.symlink_to(tmp_path / "scans")
        records = predict_files(student, [tmp_path / "scans"], out).scans
        assert ["would overwrite" in record.problem for record in records] == [True, True]
    assert (tmp_path / "scans" / "x.png").read_bytes() == before


def test_no_answer_takes_the_place_of_a_scan_that_was_not_asked_for(volume: np.ndarray, student: Student, tmp_path: Path) -> None:
    before = oblique(volume, tmp_path / "q" / "a.nii.gz").read_bytes()
    source = oblique(volume, tmp_path / "q" / "a.nii")
    (record,) = predict_files(student, [source], tmp_path / "q").scans
    assert "would overwrite another file" in record.problem
    assert (tmp_path / "q" / "a.nii.gz").read_bytes() == before


def test_an_answer_may_be_renewed_where_it_lies_in_a_folder_of_its_own(volume: np.ndarray, student: Student, tmp_path: Path) -> None:
    source = oblique(volume, tmp_path / "a.nii")
    for _ in range(2):
        assert predict_files(student, [source], tmp_path / "out").scans[0].problem == ""


@pytest.mark.parametrize("out", [".", "..", "../.."], ids=["here", "above", "two above"])
def test_a_folder_for_answers_above_the_scans_hides_none_of_them(
    out: str, student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "one" / "two"
    picture(here / "scans" / "sub" / "a.png")
    monkeypatch.chdir(here)
    (record,) = predict_files(student, ["scans"], out).scans
    assert record.problem == ""
    assert (here / out / "sub" / "a.png").is_file()


def test_dicom_can_be_answered_into_the_folder_one_is_in(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    dicom_series(here / "in")
    monkeypatch.chdir(here)
    found = predict_files(student, ["in"], ".")
    assert [record.problem for record in found.scans] == [""]
    assert found.private_list == tmp_path / "here.dicom-names.csv"
    assert (here / f"{found.scans[0].source}.nii.gz").is_file()


def test_the_private_list_keeps_the_series_of_earlier_runs(student: Student, tmp_path: Path) -> None:
    names = []
    for folder in ("first", "second", "first"):
        if not (tmp_path / folder).exists():
            dicom_series(tmp_path / folder)
        found = predict_files(student, [tmp_path / folder], tmp_path / "out")
        names.append(found.scans[0].source)
    assert found.private_list is not None
    rows = found.private_list.read_text(encoding="utf-8").splitlines()
    assert rows[0] == "name,file"
    assert len(rows) == len(set(rows)) == 1 + 3 + 3
    assert {row.split(",")[0] for row in rows[1:]} == set(names)
    assert stat.S_IMODE(found.private_list.stat().st_mode) == 0o600


def test_no_name_beside_dicom_is_said_and_a_slice_without_bytes_is_a_failure(student: Student, tmp_path: Path) -> None:
    dicom_series(tmp_path / "in")
    (tmp_path / "in" / "SMITH_JOHN_1960").write_bytes(b"")
    (tmp_path / "in" / "SMITH_JOHN.txt").write_text("a letter")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    said = repr((found.scans, found.passed_over, found.unnamed))
    assert "SMITH" not in said
    (broken,) = [record for record in found.scans if record.problem]
    assert "the file has no bytes" in broken.problem
    assert found.unnamed == (("other file", 1),)
    assert found.private_list is not None
    listed = found.private_list.read_text(encoding="utf-8")
    assert "SMITH_JOHN_1960" in listed
    assert "SMITH_JOHN.txt" in listed


def test_localizers_and_objects_without_a_picture_are_passed_over_and_counted(student: Student, tmp_path: Path) -> None:
    dicom_series(tmp_path / "in")
    dicom_series(tmp_path / "in", 2, kind="LOCALIZER", stem="SCOUT")
    dicom_series(tmp_path / "in", 1, modality="SR", stem="REPORT")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    assert [record.problem for record in found.scans] == [""]
    assert found.unnamed == (("DICOM object without a picture", 1), ("localizer", 2))
    assert found.private_list is not None
    assert "SCOUT_1.dcm" in found.private_list.read_text(encoding="utf-8")


def test_a_scan_that_is_given_twice_is_answered_once(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = picture(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    found = predict_files(student, [first, "in/a.png", "in", tmp_path / "in"], tmp_path / "out")
    assert [(record.source, record.problem) for record in found.scans] == [("a.png", "")]


def test_advice_for_a_bad_scan_speaks_of_predicting_and_not_of_an_ingest(volume: np.ndarray, student: Student, tmp_path: Path) -> None:
    bad = volume.copy()
    bad[0, 0, 0] = np.nan
    (record,) = predict_files(student, [oblique(bad, tmp_path / "a.nii")], tmp_path / "out").scans
    assert record.problem.endswith("Replace them by the value of the background, then predict again.")


def test_a_dicom_series_is_one_volume_under_a_pseudonym_that_stays(student: Student, tmp_path: Path) -> None:
    dicom_series(tmp_path / "in" / "DOE^JANE")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    (record,) = found.scans
    assert record.problem == ""
    assert record.output == tmp_path / "out" / f"{record.source}.nii.gz"
    answer = nib.load(record.output)
    assert answer.shape == (24, 20, 3)
    np.testing.assert_allclose(answer.header.get_zooms(), (0.7, 0.8, 2.5), rtol=1e-6)
    again = predict_files(student, [tmp_path / "in"], tmp_path / "out").scans[0]
    assert again.source == record.source


def test_only_the_owner_may_read_which_pseudonym_is_which_file(student: Student, tmp_path: Path) -> None:
    dicom_series(tmp_path / "in" / "DOE^JANE")
    broken = tmp_path / "in" / "DOE^JOHN.dcm"
    broken.write_bytes(b"\0" * 128 + b"DICM")
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    said = " ".join(record.source + record.problem for record in found.scans) + "".join(p.name for p in (tmp_path / "out").rglob("*"))
    assert "DOE" not in said
    assert sum(bool(record.problem) for record in found.scans) == 1
    assert found.private_list == tmp_path / "out.dicom-names.csv"
    assert stat.S_IMODE(found.private_list.stat().st_mode) == 0o600
    listed = found.private_list.read_text(encoding="utf-8")
    assert "DOE^JOHN.dcm" in listed
    assert next(record.source for record in found.scans if record.output) in listed


def test_a_student_can_be_read_by_whoever_the_umask_lets(archive: Archive, tmp_path: Path) -> None:
    spec = StudentSpec(name="shared", budget_seconds=None, steps=1, width=4, batch=1, threads=1, device="cpu", validation_fraction=0)
    before = os.umask(0o027)
    try:
        done = compact.train(archive, label_set="gold", classes=CLASSES, spec=spec, workdir=tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in done.path.iterdir()}
    assert modes == {"student.json": 0o640, "model.safetensors": 0o640}
    shutil.copytree(done.path, tmp_path / "copy")
    assert load_student(tmp_path / "copy", device="cpu").card == done.card


def test_what_lies_in_archives_and_kept_embeddings_is_nobodys_scan_and_not_listed(student: Student, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    for name in ("a.zarr/zarr.json", "a.zarr.embeddings/ab/embedding.bin", "__MACOSX/._a.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = predict_files(student, [tmp_path / "in"], tmp_path / "out")
    assert (len(found.scans), found.passed_over) == (1, ())
