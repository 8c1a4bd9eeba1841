"""Names, addresses and texts from outside: what cannot be used is refused in words, and nothing that a file is called stops a run."""

import os
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from storage import (
    Archive,
    ArchiveError,
    ArchiveNotFoundError,
    CaseRecord,
    CatalogError,
    Geometry,
    InvalidCaseError,
    ProblemRecord,
    rebuild_catalog,
)
from storage.case import check_case_id
from storage.labels import folder_of

EYE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
FOREIGN = os.fsdecode(b"M\xfcller.nii.gz")
"""A file name of an older system, in Latin-1: no UTF-8."""


def test_a_name_that_ends_in_a_line_break_is_none() -> None:
    with pytest.raises(InvalidCaseError, match="is not usable"):
        check_case_id("scan\n")
    with pytest.raises(InvalidCaseError, match="is not usable"):
        folder_of("gold\n")


@pytest.mark.parametrize(
    ("catalog", "said"),
    [
        pytest.param("catalog.sqlite", "'catalog.sqlite' is no database URL. Write sqlite:///FILE", id="a path"),
        pytest.param("somedb://host/name", "is of a kind of database that is not known here", id="unknown kind"),
        pytest.param("sqlite:///{}/junk", "cannot be read: file is not a database", id="another file"),
    ],
)
def test_a_catalog_that_cannot_be_one_is_an_error_in_words(catalog: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"something else altogether, and long enough to have a header" * 9)
    with pytest.raises(CatalogError, match=said.replace(".", r"\.")):
        Archive.create(str(tmp_path / "a.zarr"), catalog=catalog.format(tmp_path))


def test_a_catalog_whose_driver_is_missing_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> None:
        raise ModuleNotFoundError(name="psycopg2")

    monkeypatch.setattr(sa, "create_engine", missing)
    with pytest.raises(CatalogError, match=r"postgresql://me:\*\*\*@host/name needs the Python package psycopg2"):
        Archive.create(str(tmp_path / "a.zarr"), catalog="postgresql://me:secret@host/name")


def test_what_may_be_a_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as refused:
        Archive.create(str(tmp_path / "a.zarr"), catalog="postgres!//me:secret@host")
    assert "secret" not in str(refused.value)


def test_the_home_of_somebody_unknown_is_an_error_in_words() -> None:
    with pytest.raises(ArchiveError, match="home folder that is not known on this machine"):
        Archive.open("~nobody-of-this-name/a.zarr")


def test_rebuilding_the_catalog_of_an_archive_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(ArchiveNotFoundError, match="there is no archive"):
        rebuild_catalog(str(tmp_path / "misspelt.zarr"))
    assert list(tmp_path.iterdir()) == []


def record(case: str) -> CaseRecord:
    return CaseRecord(
        id=case, patient=case, shape_czyx=(1, 1, 2, 3), dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1, 1, 1), affine=EYE)
    )


def test_a_case_is_never_written_over_another_where_capitals_and_small_letters_are_one_folder(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    archive.add_case(record("P1"), np.full((1, 1, 2, 3), 7, np.uint8))
    (tmp_path / "a.zarr" / "cases" / "p1").symlink_to("P1")  # as such a file system would have it
    with pytest.raises(InvalidCaseError, match="case p1: its folder is that of case P1"):
        archive.add_case(record("p1"), np.zeros((1, 1, 2, 3), np.uint8))
    assert archive["P1"].read().max() == 7
    assert "p1" not in archive


def test_problems_and_errors_keep_names_that_are_no_utf8(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    archive.catalog.record_problems([ProblemRecord(source=FOREIGN, row="\0", reason="cut", message=f"{FOREIGN} is cut off")])
    (problem,) = archive.catalog.problems()
    assert (problem.source, problem.row) == (r"M\udcfcller.nii.gz", r"\x00")
    assert archive.catalog.find_case(FOREIGN) is None
    archive.ledger.plan("label", {"a": "1"})
    archive.ledger.claim("label", "a")
    assert archive.ledger.fail("label", "a", OSError(FOREIGN)) == "retry"
