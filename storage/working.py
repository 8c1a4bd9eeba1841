"""Working through a stage whose units are done one after the other: each is claimed, worked on, and finished or given back with what it met.

Refining, fusing and asking sources of prompts go this way. Labelling, whose cases share batches and threads, has a way of its own.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from storage.errors import LedgerError
from storage.heartbeat import beating
from storage.ledger import ATTEMPTS, Ledger

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked(Generic[R]):
    """What came of the units of a stage."""

    done: dict[str, R]
    """What work returned for the units that were finished now."""
    skipped: int
    """Units that were done before, from the same inputs."""
    quarantined: tuple[str, ...]
    unfinished: int
    """Units neither done nor quarantined, such as those that another live run holds."""


def work_through(
    ledger: Ledger,
    stage: str,
    units: Mapping[str, str],
    work: Callable[[str], R],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Worked[R]:
    """Do what is due of a stage, going through what fails as often as it takes to give it up; the claims are renewed meanwhile.

    Args:
        ledger: Knows what is due.
        stage: Name of the stage.
        units: Unit id -> fingerprint of everything its result depends on.
        work: Does one unit, and leaves its result behind before it returns. What it raises is kept with the unit, and the others go on;
            Ctrl-C gives the unit back without a mark.
        progress: Called with (units finished, units to do), at first with (0, units to do) where there are any.
    """
    todo = ledger.plan(stage, units)
    due, done = frozenset(todo), dict[str, R]()
    if due and progress is not None:
        progress(0, len(due))
    with beating(ledger):
        for _ in range(ATTEMPTS):
            for unit in todo:
                if ledger.claim(stage, unit):
                    done |= _finished(ledger, stage, unit, work)
                    if progress is not None:
                        progress(len(done), len(due))
            todo = ledger.plan(stage, {unit: units[unit] for unit in todo})
    quarantined = tuple(record.unit for record in ledger.quarantined(stage) if record.unit in units)
    return Worked(
        done=done,
        skipped=sum(unit not in due and unit not in quarantined for unit in units),
        quarantined=quarantined,
        unfinished=len(set(todo) - set(quarantined)),
    )


def _finished(ledger: Ledger, stage: str, unit: str, work: Callable[[str], R]) -> dict[str, R]:
    """Do a claimed unit; return what came of it, or nothing if it failed or another run has taken it meanwhile, whose it then is."""
    began = monotonic()
    try:
        result = work(unit)
    except Exception as error:  # noqa: BLE001 - one bad unit must not stop the others
        with suppress(LedgerError):
            ledger.fail(stage, unit, error)
        return {}
    except BaseException:
        with suppress(LedgerError):
            ledger.release(stage, unit)
        raise
    try:
        ledger.done(stage, unit, seconds=monotonic() - began)
    except LedgerError:
        return {}
    return {unit: result}
