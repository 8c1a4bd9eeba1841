"""Stages with a single unit of work, such as training: done once per fingerprint, however often they are asked for."""

import time
from collections.abc import Callable
from pathlib import Path

from flows.results import StageResult
from storage import Ledger


def perform_once(ledger: Ledger, *, stage: str, unit: str, fingerprint: str, output: Path, work: Callable[[], str]) -> StageResult:
    """Do the work unless the ledger knows it as done and its output is still there.

    Args:
        ledger: The archive's ledger.
        stage: Name of the stage.
        unit: Name of its one unit.
        fingerprint: Of everything the output depends on.
        output: File or folder that the work leaves behind.
        work: Does it, and returns a note for the table.
    """
    # A unit that is not done has no output yet; to forget it too would take it from the run that is at it, and its failures with it.
    if not output.exists() and ledger.state(stage, unit) == "done":
        ledger.plan(stage, {unit: ""})  # somebody deleted the result: forget that it was made
    if not ledger.plan(stage, {unit: fingerprint}):
        return _as_before(ledger, stage, unit, output)
    if not ledger.claim(stage, unit):
        return StageResult(stage=stage, skipped=1, output=str(output), note="another run is at it")
    started = time.monotonic()
    note = _claimed(ledger, stage, unit, work)
    seconds = time.monotonic() - started
    ledger.done(stage, unit, seconds=seconds, note=note)
    return StageResult(stage=stage, done=1, seconds=seconds, output=str(output), note=note)


def _claimed(ledger: Ledger, stage: str, unit: str, work: Callable[[], str]) -> str:
    """Do the work; whatever ends it early, give the unit back."""
    try:
        return work()
    except Exception as error:
        ledger.fail(stage, unit, error)
        raise
    except BaseException:
        ledger.release(stage, unit)
        raise


def _as_before(ledger: Ledger, stage: str, unit: str, output: Path) -> StageResult:
    given_up = next((record for record in ledger.quarantined(stage) if record.unit == unit), None)
    if given_up is None:
        return StageResult(stage=stage, skipped=1, output=str(output))
    return StageResult(stage=stage, quarantined=1, note=f"given up after {given_up.attempts} attempts: {given_up.error}")
