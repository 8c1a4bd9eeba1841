"""Which files an ingest finds, and what it remembers of those that it refused."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import Archive, ClassInfo
from storage.errors import IngestError
from storage.ingest import import_labels, import_prompts, ingest
from storage.ingest.dicom_attributes import load_or_make_key
from storage.ingest.discover import find_files, walk

WriteNifti = Callable[..., Path]
WriteSlices = Callable[..., list[Path]]
ORGAN = (ClassInfo(id=1, name="organ"),)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs what POSIX file systems have")


def reasons(archive: Archive) -> list[str]:
    return [problem.reason for problem in archive.catalog.problems()]


def test_a_refused_file_is_one_problem_however_its_folder_is_named_and_goes_when_it_is_mended(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").touch()
    monkeypatch.chdir(tmp_path)
    assert ingest(archive, Path("in")).problems == 1
    assert ingest(archive, tmp_path / "in").problems == 1
    assert [problem.source for problem in archive.catalog.problems()] == [str(tmp_path / "in" / "bad.nii.gz")]
    write_nifti(tmp_path / "in" / "bad.nii.gz", np.arange(210, dtype=np.int16).reshape(5, 6, 7))
    assert ingest(archive, tmp_path / "in").problems == 0
    assert reasons(archive) == []


def test_bringing_in_one_file_forgets_nothing_of_its_neighbours(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.nii.gz").touch()
    ingest(archive, tmp_path / "in")
    ingest(archive, write_nifti(tmp_path / "in" / "new.nii.gz"))
    assert reasons(archive) == ["zero-bytes"]


def test_the_problem_of_a_label_file_goes_with_it(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "in" / "scan.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").touch()
    ingest(archive, tmp_path / "in")
    stranger = write_nifti(tmp_path / "in" / "labels" / "stranger.nii.gz")
    import_labels(archive, tmp_path / "in" / "labels", classes=ORGAN)
    assert sorted(reasons(archive)) == ["unknown-case", "zero-bytes"]
    stranger.unlink()
    import_labels(archive, tmp_path / "in" / "labels", classes=ORGAN)
    assert reasons(archive) == ["zero-bytes"]


def test_the_problem_of_a_sparse_label_file_goes_with_it(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "picture.png").touch()
    ingest(archive, tmp_path / "sparse")
    stranger = write_nifti(tmp_path / "sparse" / "stranger.nii.gz")
    import_prompts(archive, tmp_path / "sparse")
    assert reasons(archive) == ["zero-bytes", "unknown-case"]
    stranger.unlink()
    import_prompts(archive, tmp_path / "sparse")
    assert reasons(archive) == ["zero-bytes"]


@pytest.mark.parametrize("others", [True, False], ids=["beside a series", "alone"])
def test_the_problem_of_a_dicom_file_goes_with_it(others: bool, archive: Archive, tmp_path: Path, write_slices: WriteSlices) -> None:
    if others:
        write_slices(tmp_path / "in", [0.0, 2.0], first_file=5)
    (report,) = write_slices(tmp_path / "in", [0.0], series="5.6", Modality="SR")
    (tmp_path / "elsewhere").mkdir()
    write_slices(tmp_path / "elsewhere", [0.0], series="7.8", Modality="SR")
    ingest(archive, tmp_path / "in")
    ingest(archive, tmp_path / "elsewhere")
    assert reasons(archive) == ["not-an-image", "not-an-image"]
    report.unlink()
    assert ingest(archive, tmp_path / "in").problems == 0
    assert reasons(archive) == ["not-an-image"], "what is wrong in another folder stays"


@posix_only
def test_a_file_whose_name_is_no_utf8_goes_in_or_is_refused_like_any_other(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti, write_slices: WriteSlices
) -> None:
    scan, (slice_, *_) = write_nifti(tmp_path / "in" / "scan.nii.gz"), write_slices(tmp_path / "in", [0.0, 2.0])
    scan.rename(os.fsdecode(os.fsencode(tmp_path) + b"/in/M\xfcller.nii.gz"))
    slice_.rename(os.fsdecode(os.fsencode(tmp_path) + b"/in/M\xfcller.dcm"))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/M\xe9lanie.nii.gz")).touch()
    summary = ingest(archive, tmp_path / "in")
    assert (summary.added, summary.reasons) == (2, {"zero-bytes": 1})
    assert ingest(archive, tmp_path / "in").problems == 1


@posix_only
def test_links_to_folders_are_followed_once_and_never_in_a_circle(tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "disk" / "P1" / "scan.nii.gz")
    (tmp_path / "disk" / "P1" / "up").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "own").mkdir(parents=True)
    (tmp_path / "in" / "own" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a").symlink_to(tmp_path / "disk" / "P1")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "disk" / "P1")
    assert [file.name for file in find_files(tmp_path / "in")] == ["a/scan.nii.gz"]
    assert tmp_path / "in" / "b" / "scan.nii.gz" in walk(tmp_path / "in", leave_out={tmp_path / "in" / "a"})


@posix_only
@pytest.mark.timeout(30)
def test_a_named_pipe_among_the_scans_is_not_waited_for(tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "in" / "scan.nii.gz")
    os.mkfifo(tmp_path / "in" / "pipe")
    assert [file.name for file in find_files(tmp_path / "in")] == ["scan.nii.gz"]


def test_a_key_is_made_where_the_file_system_knows_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    key = load_or_make_key(tmp_path / "out.dicom-key")
    assert (len(key), load_or_make_key(tmp_path / "out.dicom-key")) == (32, key)
    assert [path.name for path in tmp_path.iterdir()] == ["out.dicom-key"]


def test_a_mapping_of_labels_that_leads_to_no_class_is_refused_before_a_file_is_read(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"leads to no class: \{2: 7\}\. Classes: \[1\]") as refused:
        import_labels(archive, tmp_path / "gold", classes=ORGAN, mapping={1: 1, 2: 7, 3: 0, 4: 255})
    assert refused.value.reason == "unknown-class"


@posix_only
def test_a_link_to_a_folder_above_brings_in_what_is_beside_and_nothing_twice(tmp_path: Path) -> None:
    scans = tmp_path / "disk" / "scans"
    scans.mkdir(parents=True)
    for place in (scans / "own.nii", tmp_path / "disk" / "beside.nii"):
        place.touch()
    (scans / "all").symlink_to(tmp_path / "disk")
    assert [path.relative_to(scans).as_posix() for path in walk(scans)] == ["own.nii", "all/beside.nii"]
