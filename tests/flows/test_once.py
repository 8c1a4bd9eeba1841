"""A stage with one unit is done once per fingerprint."""

import os
import socket
import threading
from pathlib import Path

import pytest

from flows.once import perform_once
from flows.results import RunSummary, StageResult
from storage import Ledger, heartbeat


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    from storage import Archive

    return Archive.create(str(tmp_path / "a.zarr")).ledger


class Work:
    """Writes its output, or fails, and counts."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        self.output.write_text("trained")
        return "0.5 M parameters"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "student.json")


def perform(ledger: Ledger, work: Work, fingerprint: str = "a") -> StageResult:
    return perform_once(ledger, stage="train", unit="compact", fingerprint=fingerprint, output=work.output, work=work)


def test_the_second_call_does_nothing(ledger: Ledger, work: Work) -> None:
    assert (perform(ledger, work).done, perform(ledger, work).skipped, work.calls) == (1, 1, 1)


def test_what_was_remarked_then_is_remarked_whenever_the_result_is_taken_as_it_is(ledger: Ledger, work: Work) -> None:
    assert [perform(ledger, work).note for _ in range(2)] == ["0.5 M parameters"] * 2


def test_another_fingerprint_is_other_work(ledger: Ledger, work: Work) -> None:
    perform(ledger, work)
    assert perform(ledger, work, "b").done == 1


def test_a_deleted_output_is_made_again(ledger: Ledger, work: Work) -> None:
    perform(ledger, work)
    work.output.unlink()
    assert (perform(ledger, work).done, work.calls) == (1, 2)


def test_a_failure_is_tried_again_and_given_up_after_the_third(ledger: Ledger, work: Work) -> None:
    perform(ledger, work, "before")  # an older output lies there
    work.error = ValueError("labels contradict the classes")
    for _ in range(3):
        with pytest.raises(ValueError, match="contradict"):
            perform(ledger, work)
    result = perform(ledger, work)
    assert (result.quarantined, work.calls) == (1, 4)
    assert "labels contradict the classes" in result.note


def test_a_unit_that_another_run_is_at_stays_with_it_although_its_output_is_not_there_yet(ledger: Ledger, work: Work) -> None:
    ledger.plan("train", {"compact": "a"})
    assert ledger.claim("train", "compact")
    assert perform(ledger, work).failed == 1
    assert (work.calls, ledger.state("train", "compact")) == (0, "claimed")
    ledger.done("train", "compact")


def test_a_unit_that_another_run_is_at_is_left_and_not_done_and_the_note_names_that_run(ledger: Ledger, work: Work) -> None:
    ledger.plan("train", {"compact": "a"})
    ledger.claim("train", "compact")
    result = perform(ledger, work)
    assert (result.done, result.skipped, result.failed, result.output) == (0, 0, 1, "")
    assert result.note == f"another run is (process {os.getpid()} on {socket.gethostname()}) at it. Run again when that one has ended."
    assert RunSummary(stages=(result,)).left == 1


def test_the_claim_is_renewed_while_the_work_goes_on(ledger: Ledger, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(ledger, "heartbeat", renewed.set)
    seen: list[bool] = []

    def slow() -> str:
        seen.append(renewed.wait(20))
        return work()

    perform_once(ledger, stage="train", unit="compact", fingerprint="a", output=work.output, work=slow)
    assert seen == [True]


def test_failures_without_an_output_add_up_to_three(ledger: Ledger, work: Work) -> None:
    work.error = ValueError("labels contradict the classes")
    for _ in range(3):
        with pytest.raises(ValueError, match="contradict"):
            perform(ledger, work)
    assert (perform(ledger, work).quarantined, work.calls) == (1, 3)


def test_a_unit_that_nobody_planned_has_no_state(ledger: Ledger) -> None:
    assert ledger.state("train", "compact") is None


def test_ctrl_c_gives_the_unit_back_without_a_mark(ledger: Ledger, work: Work) -> None:
    work.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        perform(ledger, work)
    assert ledger.counts("train")["pending"] == 1
    work.error = None
    assert perform(ledger, work).done == 1
