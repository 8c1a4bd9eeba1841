"""What goes wrong while labelling stops only what it has to, and no claim is left behind."""

import runpy
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from distill import appoint, label_pass
from distill.casework import CaseWork
from distill.engine import label_archive
from distill.teachers.base import TeacherProfile
from distill.teachers.conv_encoder import build_conv_sam
from distill.teachers.sam import SamTeacher
from distill.wavefront import AskSettings
from storage import heartbeat
from storage.database import Database
from storage.tables import UnitRow

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_archive.py"))))  # tests are no package
archive_of, plan_for = small.archive_of, small.plan_for


class PoisonedTeacher(SamTeacher):
    """Fails whenever a picture of one particular height is among those it is shown."""

    def encode(self, images: list[np.ndarray]) -> object:  # type: ignore[override]
        if any(image.shape[0] == 21 for image in images):
            message = "poisoned picture"
            raise RuntimeError(message)
        return super().encode(images)


def test_a_poisoned_case_is_quarantined_with_its_error_and_the_others_are_labelled(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 4)  # case01 alone is 21 pixels high
    torch.manual_seed(0)
    poisoned = PoisonedTeacher(build_conv_sam(small.SMALL), TeacherProfile(name="samdistill-conv", image_size=64), "x")
    monkeypatch.setattr(appoint, "load_teacher", lambda *_, **__: poisoned)
    summary = label_archive(archive, plan_for(checkpoint, window=3))
    assert summary.quarantined == ("case01",)
    assert summary.done == 3
    assert "poisoned picture" in archive.ledger.quarantined("label:teacher/r1")[0].traceback


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_a_catalog_that_can_no_longer_be_written_stops_every_device_with_its_error_and_no_claim_is_left(
    device: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 6)

    def broken(*_: object, **__: object) -> None:
        message = "database or disk is full"
        raise OSError(message)

    monkeypatch.setattr(archive.ledger, "done", broken)
    with pytest.raises(OSError, match="disk is full"):
        label_archive(archive, plan_for(checkpoint, window=1, device=device))
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0


def test_a_reader_that_fails_stops_the_run_with_its_error(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 3)

    def locked(*_: object, **__: object) -> bool:
        message = "database is locked"
        raise OSError(message)

    monkeypatch.setattr(archive.ledger, "claim", locked)
    with pytest.raises(OSError, match="database is locked"):
        label_archive(archive, plan_for(checkpoint))


def test_an_interrupted_run_leaves_nothing_claimed_and_the_next_one_in_the_same_process_finishes(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 5)
    with monkeypatch.context() as patched:
        patched.setattr(label_pass, "run_wavefront", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            label_archive(archive, plan_for(checkpoint, window=2))
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0
    assert label_archive(archive, plan_for(checkpoint)).done == 5


def test_cases_that_another_run_holds_are_reported_as_unfinished(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 3)
    claim = archive.ledger.claim
    monkeypatch.setattr(archive.ledger, "claim", lambda stage, unit: unit != "case01" and claim(stage, unit))
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.unfinished, summary.quarantined) == (2, 1, ())


def test_claims_are_renewed_while_a_slow_teacher_is_at_one_window(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 2)
    renewed, beat, wavefront = threading.Event(), archive.ledger.heartbeat, label_pass.run_wavefront
    outcomes: list[bool] = []

    def beaten() -> None:
        beat()
        renewed.set()

    def slow(*arguments: object, **options: object) -> None:
        renewed.clear()
        outcomes.append(renewed.wait(20))
        wavefront(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(archive.ledger, "heartbeat", beaten)
    monkeypatch.setattr(label_pass, "run_wavefront", slow)
    assert label_archive(archive, plan_for(checkpoint, window=2)).done == 2
    assert outcomes == [True]
    assert not small.left_behind()


def test_a_run_whose_claims_cannot_be_renewed_for_a_whole_lease_stops_with_that_error(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 4)
    wavefront, asked = label_pass.run_wavefront, []

    def lost() -> None:
        message = "connection to the catalog lost"
        raise OSError(message)

    def slow(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        for thread in threading.enumerate():
            if thread.name == "samdistill-heartbeat":
                thread.join(20)
        wavefront(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.05)
    monkeypatch.setattr(archive.ledger, "heartbeat", lost)
    monkeypatch.setattr(label_pass, "run_wavefront", slow)
    with pytest.raises(OSError, match="connection to the catalog lost"):
        label_archive(archive, plan_for(checkpoint, window=1))
    assert len(asked) == 1
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0


def test_a_case_whose_inputs_changed_while_another_live_run_is_at_it_stays_with_that_run(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    stage = "label:teacher/r1"
    archive.ledger.plan(stage, {"case01": "what it was"})
    archive.ledger.claim(stage, "case01")
    with Database(archive.catalog.url).writing() as connection:
        connection.execute(sa.update(UnitRow).values(host="elsewhere"))
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.skipped, summary.unfinished) == (1, 0, 1)
    assert archive.ledger.state(stage, "case01") == "claimed"
    assert archive["case01"].label_sets() == []


def test_a_case_that_was_given_up_does_not_count_as_one_that_had_these_labels(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 2)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(label_pass, "run_wavefront", broken)
        label_archive(archive, plan_for(checkpoint), cases=["case00"])
    label_archive(archive, plan_for(checkpoint), cases=["case01"])
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.skipped, summary.quarantined) == (0, 1, ("case00",))


@pytest.mark.parametrize("fails", [False, True], ids=["labelled", "failed"])
def test_a_case_that_another_run_has_taken_meanwhile_is_left_to_it_and_the_others_are_labelled(
    fails: bool,
    tmp_path: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = archive_of(tmp_path, 3)
    wavefront = label_pass.run_wavefront

    def taken(teacher: object, works: list[CaseWork], ask: AskSettings, **options: object) -> None:
        if any(work.record.id == "case01" for work in works):
            with Database(archive.catalog.url).writing() as connection:
                connection.execute(sa.update(UnitRow).where(UnitRow.unit == "case01").values(host="elsewhere"))
            if fails:
                raise RuntimeError
        wavefront(teacher, works, ask, **options)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(label_pass, "run_wavefront", taken)
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.unfinished, summary.quarantined) == (2, 1, ())
    assert archive.ledger.state("label:teacher/r1", "case01") == "claimed"


def test_what_a_failed_window_held_is_let_go_before_its_cases_are_asked_one_by_one(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, wavefront = archive_of(tmp_path, 2), label_pass.run_wavefront
    held: list[weakref.ref[np.ndarray]] = []
    alive: list[bool] = []

    def failing(teacher: object, works: list[CaseWork], *arguments: object, **options: object) -> None:
        if len(works) > 1:
            large = np.zeros(1000)
            held.append(weakref.ref(large))
            raise MemoryError
        alive.append(held[0]() is not None)
        wavefront(teacher, works, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(label_pass, "run_wavefront", failing)
    assert label_archive(archive, plan_for(checkpoint, window=2)).done == 2
    assert alive == [False, False]
