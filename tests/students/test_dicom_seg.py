"""Labels of a DICOM series come back as DICOM SEG: right voxels, right place, right references, and nobody else may look."""

import stat
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from storage import ClassInfo
from storage.export.dicom_seg import MadeBy, anatomy, obstacle, write_dicom_seg
from students import load_student
from students.files import predict_files
from students.predict import Student

MakeStudent = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:highdicom.*", "ignore::UserWarning:pydicom.*")
MADE_BY = MadeBy(name="compact", version="weights", program_version="samdistill 0")
CLASSES = (ClassInfo(id=7, name="left-ventricle"), ClassInfo(id=3, name="kernel"))
ORIENTATION = [0.96, 0.28, 0.0, -0.28, 0.96, 0.0]


def series(folder: Path, slices: int = 4, *, leave_out: str = "", **changes: object) -> list[Path]:
    """Write an oblique CT series whose files are not named in the order of their places; return the files in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    rng = np.random.default_rng(4)
    paths = []
    for z in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(z * 3) % slices}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.Modality = "DOE^JANE", "4711", "19700101", "CT"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.PixelSpacing = ORIENTATION, [10, -5, 2.5 * z], [0.8, 0.7]
        ds.PixelData = rng.integers(0, 900, 480).astype(np.uint16).tobytes()
        for word, value in {**uids, **changes}.items():
            if word != leave_out:
                setattr(ds, word, value)
        pydicom.dcmwrite(path, ds, enforce_file_format=True)
        paths.append(path)
    return paths


@pytest.fixture
def labels() -> np.ndarray:
    ids = np.zeros((4, 20, 24), np.uint8)
    ids[1, 3:9, 2:17] = 7
    ids[2, 4:8, 20:] = 3
    ids[3, 19, 0] = 7
    return ids


def test_highdicom_reads_back_every_voxel_and_the_series_it_is_about(labels: np.ndarray, tmp_path: Path) -> None:
    files = series(tmp_path / "in")
    write_dicom_seg(labels, files, CLASSES, MADE_BY, tmp_path / "seg.dcm")
    found = hd.seg.segread(tmp_path / "seg.dcm")
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == ["left-ventricle", "kernel"]
    sources = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]
    pixels = found.get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)
    assert np.array_equal(pixels[..., 0], labels == 7)
    assert np.array_equal(pixels[..., 1], labels == 3)
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    for word in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "PatientBirthDate"):
        assert found[word].value == first[word].value
    assert found.SeriesInstanceUID != first.SeriesInstanceUID
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID


def test_pydicom_alone_finds_each_frame_where_its_slice_lies(labels: np.ndarray, tmp_path: Path) -> None:
    files = series(tmp_path / "in")
    write_dicom_seg(labels, files, CLASSES, MADE_BY, tmp_path / "seg.dcm")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    shared = found.SharedFunctionalGroupsSequence[0]
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.8, 0.7]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == ORIENTATION
    seen = {}
    for frame, groups in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        place = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        segment = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        seen[round(place / 2.5), segment] = frame
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert source == pydicom.dcmread(files[round(place / 2.5)], stop_before_pixels=True).SOPInstanceUID
    assert sorted(seen) == [(1, 1), (2, 2), (3, 1)], "empty frames are left out"
    for (z, segment), frame in seen.items():
        assert np.array_equal(frame > 0, labels[z] == CLASSES[segment - 1].id)


def test_the_same_labels_of_the_same_series_are_the_same_object_and_others_another(labels: np.ndarray, tmp_path: Path) -> None:
    files = series(tmp_path / "in")
    uids = []
    for ids in (labels, labels, np.where(labels == 3, 7, labels).astype(np.uint8)):
        write_dicom_seg(ids, files, CLASSES, MADE_BY, tmp_path / "seg.dcm")
        uids.append(pydicom.dcmread(tmp_path / "seg.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


def test_a_series_without_any_object_in_it_gets_an_empty_segmentation(tmp_path: Path) -> None:
    write_dicom_seg(np.zeros((4, 20, 24), np.uint8), series(tmp_path / "in"), CLASSES, MADE_BY, tmp_path / "seg.dcm")
    assert not pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.any()


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("hippocampus", "Hippocampus"), ("left-ventricle", "Left ventricle"), ("left", "Anatomical Structure")],
    ids=["one word", "two words", "no anatomy"],
)
def test_classes_named_after_anatomy_carry_its_code(name: str, meaning: str) -> None:
    assert anatomy(name).meaning.lower().startswith(meaning.lower())


@pytest.fixture(scope="module")
def student(make_student: MakeStudent) -> Student:
    return load_student(make_student("2d", name="segmented"), device="cpu")


def test_predict_answers_a_series_with_a_segmentation_of_it_that_only_its_owner_may_read(student: Student, tmp_path: Path) -> None:
    files = series(tmp_path / "in" / "DOE^JANE")
    (record,) = predict_files(student, [tmp_path / "in"], tmp_path / "out").scans
    assert record.problem == ""
    assert record.output == tmp_path / "out" / f"{record.source}.dcm"
    assert stat.S_IMODE(record.output.stat().st_mode) == 0o600
    (nifti,) = predict_files(student, [tmp_path / "in"], tmp_path / "nifti", nifti_only=True).scans
    assert nifti.output is not None
    import nibabel as nib

    expected = np.asarray(nib.load(nifti.output).dataobj).T == 3
    assert expected.any()
    sources = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files]
    found = hd.seg.segread(record.output).get_pixels_by_source_instance(sources, assert_missing_frames_are_empty=True)
    assert np.array_equal(found[..., 0] > 0, expected)


@pytest.mark.parametrize("lacking", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_that_cannot_be_referred_to_is_answered_in_nifti_with_the_reason(lacking: str, student: Student, tmp_path: Path) -> None:
    assert obstacle(series(tmp_path / "in", leave_out=lacking)) == f"its headers hold no {lacking}"
    (record,) = predict_files(student, [tmp_path / "in"], tmp_path / "out").scans
    assert record.problem == ""
    assert record.output is not None
    assert record.output.name.endswith(".nii.gz")
    assert f"written as NIfTI, not as DICOM SEG, since its headers hold no {lacking}." in record.notes[0]


def test_headers_that_do_not_go_into_a_segmentation_cost_the_format_and_are_not_quoted(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "in")

    def refuse(**_: object) -> None:
        message = "DOE^JANE is no name"
        raise ValueError(message)

    monkeypatch.setattr(hd.seg, "Segmentation", refuse)
    (record,) = predict_files(student, [tmp_path / "in"], tmp_path / "out").scans
    assert record.output is not None
    assert record.output.name.endswith(".nii.gz")
    assert record.notes == (f"{record.source}: written as NIfTI, since the headers of its series do not go into DICOM SEG (ValueError).",)


def test_warnings_of_the_dicom_libraries_which_quote_names_are_not_heard(
    labels: np.ndarray, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    files = series(tmp_path / "in", PatientName="DOE", SpecificCharacterSet="")
    recwarn.clear()
    write_dicom_seg(labels, files, CLASSES, MADE_BY, tmp_path / "seg.dcm")
    assert not recwarn.list
