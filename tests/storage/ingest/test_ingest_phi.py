"""Names, dates and free text of DICOM files reach neither archive nor catalog nor log (promise 7)."""

import logging
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import Archive
from storage.ingest import dicom_key_path, ingest
from storage.ingest.dicom_attributes import keyed_hash, load_or_make_key

WriteSlices = Callable[..., list[Path]]
SECRETS = ("Mustermann", "19631224", "ZK-4711", "Sankt Elsewhere", "complains of", "Dr Who", "1.2.99.77")
PLANTED = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "ZK-4711",
    "PatientBirthDate": "19631224",
    "PatientSex": "F",
    "PatientAge": "061Y",
    "InstitutionName": "Sankt Elsewhere",
    "ReferringPhysicianName": "Dr Who",
    "StudyDescription": "complains of Mustermann syndrome",
    "SeriesDescription": "complains of",
    "ImageComments": "complains of headache",
    "ProtocolName": "Mustermann",
    "Manufacturer": "Siemens, property of Sankt Elsewhere",
    "ManufacturerModelName": "Mustermann 3000",
    "AccessionNumber": "ZK-4711",
    "StudyDate": "19631224",
}


def every_byte_below(folder: Path) -> bytes:
    return b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_planted_in_the_headers_comes_out_anywhere(
    tmp_path: Path, write_slices: WriteSlices, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    source = tmp_path / "Mustermann_Erika_19631224"
    write_slices(source / "good", [0, 2, 4], series="1.2.99.77", **PLANTED)
    write_slices(source / "gap", [0, 2, 6], series="1.2.99.77.1", **PLANTED)
    (cut,) = write_slices(source / "cut", [0], series="1.2.99.77.2", **PLANTED)
    cut.write_bytes(cut.read_bytes()[:-9])
    write_slices(source / "object", [0], series="1.2.99.77.3", **(PLANTED | {"Modality": "SR"}))
    (garbled,) = write_slices(source / "garbled", [0], series="1.2.99.77.4", **PLANTED)
    garbled.write_bytes(garbled.read_bytes().replace(b"0.7\\0.8 ", b"Musterma"))
    (source / "Mustermann.dcm").write_bytes(b"")
    out = tmp_path / "out"
    out.mkdir()
    archive = Archive.create(str(out / "archive.zarr"))
    summary = ingest(archive, source)
    assert (summary.added, summary.problems) == (1, 5)
    told = every_byte_below(out).decode("latin-1") + caplog.text + "".join(capfd.readouterr()) + repr(summary) + repr(archive.cases())
    assert [secret for secret in SECRETS if secret in told] == []


def test_what_is_kept_is_sex_age_vendor_and_numbers(tmp_path: Path, archive: Archive, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2], KVP=120, **PLANTED)
    ingest(archive, tmp_path / "in")
    (record,) = archive.cases()
    assert record.attributes == {"sex": "F", "age_years": 61.0, "vendor": "Siemens", "kvp": 120.0, "slice_thickness_mm": 3.0}


@pytest.mark.parametrize(
    ("planted", "kept"),
    [
        pytest.param({"PatientAge": "099Y"}, {"age_years": 90.0}, id="ages over 89 are one group"),
        pytest.param({"PatientAge": "018M"}, {"age_years": 1.5}, id="months become years"),
        pytest.param({"PatientSex": "MUSTERMANN"}, {}, id="words that are no sex"),
        pytest.param({"Manufacturer": "Mustermann Imaging"}, {"vendor": "other"}, id="vendors that are not known"),
    ],
)
def test_attributes_pass_only_as_what_they_should_be(
    tmp_path: Path, archive: Archive, write_slices: WriteSlices, planted: dict[str, str], kept: dict[str, object]
) -> None:
    write_slices(tmp_path / "in", [0, 2], SliceThickness=None, **planted)
    ingest(archive, tmp_path / "in")
    assert archive.cases()[0].attributes == kept


def test_the_key_is_for_its_owner_only_and_stays_the_same(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2])
    ingest(archive, tmp_path / "in")
    path = dicom_key_path(archive)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make_key(path) == load_or_make_key(path)
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".key")] == []


def test_another_key_gives_other_pseudonyms() -> None:
    assert keyed_hash(b"a" * 32, ["ZK-4711"]) != keyed_hash(b"b" * 32, ["ZK-4711"])


def test_a_damaged_key_file_is_an_error_with_its_cure(archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    write_slices(tmp_path / "in", [0, 2])
    dicom_key_path(archive).write_text("oops")
    with pytest.raises(ValueError, match="Restore it from a backup"):
        ingest(archive, tmp_path / "in")
