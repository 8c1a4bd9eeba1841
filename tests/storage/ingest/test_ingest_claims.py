"""Claims of an ingest are renewed while it works, and a unit that somebody else took meanwhile is theirs."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage import Archive, heartbeat
from storage.database import Database
from storage.errors import IngestError
from storage.ingest import ingest
from storage.ingest import run as ingest_run
from storage.ingest.discover import check_any, find_files
from storage.tables import UnitRow

WriteNifti = Callable[..., Path]


def test_claims_are_renewed_while_a_scan_is_brought_in(
    archive: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(tmp_path / "in" / "scan.nii.gz")
    renewed, store = threading.Event(), ingest_run._store
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(archive.ledger, "heartbeat", renewed.set)

    def slow(*args: object) -> ingest_run.Outcome:
        assert renewed.wait(30)
        return store(*args)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(ingest_run, "_store", slow)
    assert ingest(archive, tmp_path / "in").added == 1


@pytest.mark.parametrize("error", [None, RuntimeError(), IngestError("cut", "cut")], ids=["stored", "failed", "refused"])
def test_a_scan_that_another_run_has_taken_meanwhile_is_left_to_it_and_the_others_go_in(
    error: Exception | None, archive: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz")
    store = ingest_run._store

    def taken(archive: Archive, book: ingest_run.Bookkeeping, task: ingest_run.Task, found: ingest_run.SourceCase) -> ingest_run.Outcome:
        if task.case == "a":
            with Database(archive.catalog.url).writing() as connection:
                connection.execute(sa.update(UnitRow).where(UnitRow.unit == task.unit).values(host="elsewhere"))
            if error is not None:
                raise error
        return store(archive, book, task, found)

    monkeypatch.setattr(ingest_run, "_store", taken)
    assert ingest(archive, tmp_path / "in", workers=1).added == 1
    assert archive.ledger.counts("ingest")["claimed"] == 1


def test_embeddings_that_are_kept_beside_an_archive_are_no_source(tmp_path: Path, write_nifti: WriteNifti) -> None:
    write_nifti(tmp_path / "a.zarr.embeddings" / "ab" / "scan.nii.gz")
    assert find_files(tmp_path) == []
    with pytest.raises(IngestError, match="is empty"):
        check_any(tmp_path)
