"""Stages with a single unit of work, such as training: done once per fingerprint, however often they are asked for."""

import time
from collections.abc import Callable
from pathlib import Path

from flows.results import StageResult
from storage import Ledger
from storage.heartbeat import beating


def perform_once(ledger: Ledger, *, stage: str, unit: str, fingerprint: str, output: Path, work: Callable[[], str]) -> StageResult:
    """Do the work unless the ledger knows it as done and its output is still there.

    Args:
        ledger: The archive's ledger.
        stage: Name of the stage.
        unit: Name of its one unit.
        fingerprint: Of everything the output depends on.
        output: File or folder that the work leaves behind.
        work: Does it, and returns a note for the table.

    Returns:
        What was done. A unit that another live run is at has failed for now, with a note that names that run: it has no result
        that this run could build on.
    """
    # A unit that is not done has no output yet; to forget it too would take it from the run that is at it, and its failures with it.
    if not output.exists() and ledger.state(stage, unit) == "done":
        ledger.plan(stage, {unit: ""})  # somebody deleted the result: forget that it was made
    if not ledger.plan(stage, {unit: fingerprint}):
        return _as_before(ledger, stage, unit, output)
    if not ledger.claim(stage, unit):
        return left_to_another_run(ledger, stage=stage, unit=unit)
    started = time.monotonic()
    note = _claimed(ledger, stage, unit, work)
    seconds = time.monotonic() - started
    ledger.done(stage, unit, seconds=seconds, note=note)
    return StageResult(stage=stage, done=1, seconds=seconds, output=str(output), note=note)


def left_to_another_run(ledger: Ledger, *, stage: str, unit: str, reported_as: str | None = None) -> StageResult:
    """Report a unit that somebody else has as one without a result.

    Args:
        ledger: The archive's ledger.
        stage: Name of the stage that somebody is at.
        unit: Name of its one unit.
        reported_as: The stage that waits for it; by default itself.
    """
    holder = ledger.holder(stage, unit)
    who = "another run was" if holder is None else f"another run is ({holder})"
    waits = f"waits for {stage}: " if reported_as is not None else ""
    return StageResult(stage=reported_as or stage, failed=1, note=f"{waits}{who} at it. Run again when that one has ended.")


def _claimed(ledger: Ledger, stage: str, unit: str, work: Callable[[], str]) -> str:
    """Do the work, renewing the claim meanwhile; whatever ends it early, give the unit back."""
    try:
        with beating(ledger):
            return work()
    except Exception as error:
        ledger.fail(stage, unit, error)
        raise
    except BaseException:
        ledger.release(stage, unit)
        raise


def why_given_up(ledger: Ledger, stage: str, unit: str) -> str:
    """Say after how many attempts a unit was given up, and over what; empty where it was not."""
    record = next((record for record in ledger.quarantined(stage) if record.unit == unit), None)
    return "" if record is None else f"given up after {record.attempts} attempts: {record.error}"


def _as_before(ledger: Ledger, stage: str, unit: str, output: Path) -> StageResult:
    """Report what was done before with the remarks of then: warnings hold as long as the result does."""
    if given_up := why_given_up(ledger, stage, unit):
        return StageResult(stage=stage, quarantined=1, note=given_up)
    before = ledger.record(stage, unit)
    return StageResult(stage=stage, skipped=1, output=str(output), note=before.note if before is not None else "")
