"""One bad file never keeps a good one out, and each says what is wrong with it."""

import shutil
from pathlib import Path

import pytest

from storage import Archive
from storage.ingest import ingest


def test_every_good_file_goes_in_and_every_bad_one_has_its_reason(archive: Archive, bad_corpus: Path, bad_files: dict[str, str]) -> None:
    summary = ingest(archive, bad_corpus)
    assert [case.id for case in archive.cases()] == [f"good{n}" for n in range(1, 7)]
    assert {Path(p.source).name: p.reason for p in archive.catalog.problems()} == bad_files
    assert (summary.added, summary.problems) == (6, len(bad_files))
    assert summary.reasons["zero-bytes"] == 3


def test_each_message_names_the_case_or_file_and_a_way_out(archive: Archive, bad_corpus: Path) -> None:
    ingest(archive, bad_corpus)
    for problem in archive.catalog.problems():
        assert Path(problem.source).name.split(".")[0] in problem.message
        assert len(problem.message) > 40


def test_a_second_run_does_nothing_and_still_names_the_problems(archive: Archive, bad_corpus: Path, bad_files: dict[str, str]) -> None:
    ingest(archive, bad_corpus)
    calls: list[tuple[int, int]] = []
    again = ingest(archive, bad_corpus, progress=lambda done, total: calls.append((done, total)))
    assert (again.added, again.unchanged, again.problems, calls) == (0, 6, len(bad_files), [])


def test_a_problem_goes_when_its_file_is_fixed(archive: Archive, bad_corpus: Path) -> None:
    ingest(archive, bad_corpus)
    shutil.copy(bad_corpus / "good1.nii.gz", bad_corpus / "cut.nii.gz")
    (bad_corpus / "text.png").unlink()
    # cut.nii and cut.nii.gz are two files for one case; with one of them gone, the other may have the name
    (bad_corpus / "cut.nii").unlink()
    (bad_corpus / "cut.png").unlink()
    (bad_corpus / "cut.jpg").unlink()
    summary = ingest(archive, bad_corpus)
    assert summary.added == 1
    assert "cut" in archive
    standing = {Path(p.source).name for p in archive.catalog.problems()}
    assert not {"cut.nii.gz", "cut.nii", "text.png"} & standing


def test_two_files_of_one_name_are_a_problem_and_never_an_overwrite(archive: Archive, tmp_path: Path, bad_corpus: Path) -> None:
    folder = tmp_path / "twice"
    for sub, name in (("a", "good1.nii.gz"), ("b", "good2.nii")):
        (folder / sub).mkdir(parents=True)
        shutil.copy(bad_corpus / name, folder / sub / f"case{Path(name).suffix}".replace(".gz", ".nii.gz"))
    for _ in range(2):
        summary = ingest(archive, folder)
        assert summary.reasons == {"duplicate-case-id": 1}
    original = archive["case"].read()
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(bad_corpus / "good2.nii", other / "case.nii")
    assert ingest(archive, other).reasons == {"duplicate-case-id": 1}
    assert (archive["case"].read() == original).all()


def test_a_folder_that_moved_is_recognised_by_its_content(archive: Archive, tmp_path: Path, bad_corpus: Path) -> None:
    ingest(archive, bad_corpus / "sub")
    (bad_corpus / "sub").rename(tmp_path / "moved")
    summary = ingest(archive, tmp_path / "moved")
    assert (summary.unchanged, summary.problems) == (1, 0)


def test_a_changed_file_replaces_its_own_case_and_keeps_its_part(archive: Archive, tmp_path: Path, bad_corpus: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(bad_corpus / "good1.nii.gz", folder / "a.nii.gz")
    ingest(archive, folder)
    archive.catalog.set_part({"a": "test"})
    before = archive["a"].record
    shutil.copy(bad_corpus / "sub" / "good6.nii.gz", folder / "a.nii.gz")
    assert ingest(archive, folder).replaced == 1
    after = archive["a"].record
    assert after.fingerprint != before.fingerprint
    assert after.part == "test"


def test_a_later_case_follows_its_patient_into_the_test_part(archive: Archive, tmp_path: Path, bad_corpus: Path) -> None:
    folder = tmp_path / "visits"
    folder.mkdir()
    shutil.copy(bad_corpus / "good1.nii.gz", folder / "P1-first.nii.gz")
    ingest(archive, folder, patient_from="^(P[0-9]+)-")
    archive.catalog.set_part({"P1-first": "test"})
    shutil.copy(bad_corpus / "good2.nii", folder / "P1-second.nii")
    ingest(archive, folder, patient_from="^(P[0-9]+)-")
    assert [(case.patient, case.part) for case in archive.cases()] == [("P1", "test"), ("P1", "test")]


def test_a_name_without_its_patient_is_a_problem(archive: Archive, bad_corpus: Path) -> None:
    summary = ingest(archive, bad_corpus / "sub", patient_from="^(P[0-9]+)-")
    assert summary.reasons == {"patient-not-matched": 1}


def test_exclude_leaves_files_out(archive: Archive, bad_corpus: Path) -> None:
    ingest(archive, bad_corpus, exclude=["[!g]*", "sub/*"])
    assert len(archive) == 5
    assert archive.catalog.problems() == []


def test_progress_counts_up_to_the_total(archive: Archive, bad_corpus: Path) -> None:
    calls: list[tuple[int, int]] = []
    ingest(archive, bad_corpus, workers=3, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, len(calls) + 1))
    assert {total for _, total in calls} == {len(calls)}


def test_a_source_that_is_not_there_says_what_to_give(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing at"):
        ingest(archive, tmp_path / "nowhere")
