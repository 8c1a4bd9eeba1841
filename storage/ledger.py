r"""The ledger: which unit of work is done, by whom it is being done, and why one could not be done.

A unit is one (stage, unit id, fingerprint of its inputs and parameters). Its life::

    pending --claim--> claimed --done--> done
                         |  \--fail--> failed --claim--> ... third time: quarantined
                         |\-release, or its worker dies--> pending
                         \--forget, with its result--> gone

A claim is one conditional UPDATE, so two workers never hold the same unit. A worker is a process: the ledger knows a dead one on
this host by its process id and start time, and one on another host by a lease that it no longer renews (``storage.heartbeat``). What
a live worker holds stays with it, also when somebody else plans the unit with other inputs meanwhile.
"""

import hashlib
import json
import os
import socket
import time
import traceback as tracebacks
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
import sqlalchemy as sa

from storage.database import Database, storable, upsert
from storage.errors import LedgerError
from storage.tables import UnitRow

State = Literal["pending", "claimed", "done", "failed", "quarantined"]
STATES: tuple[State, ...] = ("pending", "claimed", "done", "failed", "quarantined")

ATTEMPTS = 3
"""Failures after which a unit is quarantined: one for chance, one for a passing fault such as a full disk, one to be sure."""

LEASE_S = 120.0
"""How long a claim from another host is believed without a heartbeat; four missed beats of thirty seconds."""

_SAME_START_S = 2.0
"""Start times of one process may differ by this much between two readings, because the boot time they count from is rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRecord:
    """One unit of work as the ledger has it."""

    stage: str
    unit: str
    fingerprint: str
    state: State
    attempts: int
    """How often it failed."""
    seconds: float | None
    note: str
    error: str
    """The last error, as one line."""
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A live worker that holds a unit."""

    host: str
    pid: int

    def __str__(self) -> str:
        """Say it as a part of a sentence."""
        return f"process {self.pid} on {self.host}"


class Ledger:
    """The record of work of one archive. Safe for several threads and processes."""

    def __init__(self, database: Database | str) -> None:
        """Use an open database, or connect to a SQLAlchemy URL."""
        self._database = Database(database) if isinstance(database, str) else database
        self._planned: dict[tuple[str, str], str] = {}
        """(stage, unit) -> the fingerprint under which it was planned here; a claim is for that one only."""

    def plan(self, stage: str, units: Mapping[str, str]) -> list[str]:
        """Register the units of a stage and return those that still need work, in the order given.

        New units and those whose fingerprint changed become pending; claims of dead workers come back. A unit whose fingerprint
        changed while another live process is at it stays with that process, under the fingerprint it has: it is returned, but
        cannot be claimed until it is planned again after that process has ended with it. A claim of this process itself is taken back.

        Args:
            stage: Name of the stage, such as ``label``.
            units: Unit id -> fingerprint of everything its result depends on.
        """
        with self._database.writing() as connection:
            _recover(connection, stage)
            query = sa.select(UnitRow.unit, UnitRow.fingerprint, UnitRow.state).where(UnitRow.stage == stage)
            known = {unit: (print_, state) for unit, print_, state in connection.execute(query)}
            elsewhere = _held_by_others(connection, stage)
            due = {unit: print_ for unit, print_ in units.items() if known.get(unit, ("", ""))[0] != print_ and unit not in elsewhere}
            changed = [_pending(stage, unit, print_) for unit, print_ in due.items()]
            if changed:
                upsert(connection, UnitRow, changed, update=[name for name in changed[0] if name not in {"stage", "unit"}])
        self._planned.update({(stage, unit): print_ for unit, print_ in units.items()})
        finished = {(unit, print_) for unit, (print_, state) in known.items() if state in {"done", "quarantined"}}
        return [unit for unit, print_ in units.items() if (unit, print_) not in finished]

    def claim(self, stage: str, unit: str) -> bool:
        """Take a unit; False when another worker has it, or it is done, quarantined, never planned, or planned elsewhere with other inputs."""
        free = UnitRow.state.in_(("pending", "failed"))
        host, pid, started = _worker()
        abandoned = sa.and_(UnitRow.state == "claimed", UnitRow.host != host, UnitRow.lease_until < time.time())
        statement = (
            sa.update(UnitRow)
            .where(UnitRow.stage == stage, UnitRow.unit == unit, sa.or_(free, abandoned))
            .where(UnitRow.fingerprint == self._planned.get((stage, unit), UnitRow.fingerprint))
            .values(state="claimed", host=host, pid=pid, pid_started=started, lease_until=time.time() + LEASE_S)
        )
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount == 1

    def done(self, stage: str, unit: str, *, seconds: float | None = None, note: str = "") -> None:
        """Finish a unit that this process has claimed. Call it after the arrays are written.

        Raises:
            LedgerError: if this process does not hold the unit.
        """
        self._finish(stage, unit, state="done", seconds=seconds, note=note, error="", traceback="")

    def fail(self, stage: str, unit: str, error: BaseException) -> Literal["retry", "quarantined"]:
        """Give a claimed unit back with the error it met; the third time it is quarantined.

        Raises:
            LedgerError: if this process does not hold the unit.
        """
        line = f"{type(error).__name__}: {error}"
        text = "".join(tracebacks.format_exception(error))
        attempts = UnitRow.attempts + 1
        state = sa.case((attempts >= ATTEMPTS, "quarantined"), else_="failed")
        self._finish(stage, unit, state=state, attempts=attempts, error=storable(line), traceback=storable(text))
        return "quarantined" if self._unit(stage, unit).state == "quarantined" else "retry"

    def release(self, stage: str, unit: str) -> None:
        """Give a claimed unit back unfinished, for example on Ctrl-C; it does not count as a failure.

        Raises:
            LedgerError: if this process does not hold the unit.
        """
        self._finish(stage, unit, state="pending")

    def forget(self, stage: str, unit: str) -> None:
        """Take a claimed unit out of the ledger, once its result has been taken away; planned again, it is a new one.

        Raises:
            LedgerError: if this process does not hold the unit.
        """
        with self._database.writing() as connection:
            forgotten = connection.execute(sa.delete(UnitRow).where(UnitRow.stage == stage, UnitRow.unit == unit, *_mine())).rowcount
        if not forgotten:
            raise LedgerError(_not_held(stage, unit))

    def heartbeat(self) -> None:
        """Renew every claim of this process; ``storage.heartbeat`` does it while work goes on."""
        with self._database.writing() as connection:
            connection.execute(sa.update(UnitRow).where(*_mine()).values(lease_until=time.time() + LEASE_S))

    def counts(self, stage: str) -> dict[str, int]:
        """Return how many units of a stage are in each state; every state is named."""
        query = sa.select(UnitRow.state, sa.func.count()).where(UnitRow.stage == stage).group_by(UnitRow.state)
        with self._database.reading() as connection:
            found = dict(connection.execute(query).tuples().all())
        return {state: found.get(state, 0) for state in STATES}

    def state(self, stage: str, unit: str) -> State | None:
        """Return the state of a unit, or None if it was never planned."""
        record = self.record(stage, unit)
        return None if record is None else record.state

    def record(self, stage: str, unit: str) -> UnitRecord | None:
        """Return all that is known of a unit, or None if it was never planned."""
        return next(iter(self._units(UnitRow.stage == stage, UnitRow.unit == unit)), None)

    def holds(self, stage: str, unit: str) -> bool:
        """Tell whether this process holds a unit."""
        query = sa.select(UnitRow.unit).where(UnitRow.stage == stage, UnitRow.unit == unit, *_mine())
        with self._database.reading() as connection:
            return connection.scalar(query) is not None

    def holder(self, stage: str, unit: str) -> Holder | None:
        """Return the live worker that holds a unit; None if nobody does, or nobody who still lives."""
        owner = sa.select(UnitRow.host, UnitRow.pid, UnitRow.pid_started, UnitRow.lease_until)
        query = owner.where(UnitRow.stage == stage, UnitRow.unit == unit, UnitRow.state == "claimed")
        with self._database.reading() as connection:
            found = connection.execute(query).one_or_none()
        return Holder(host=found.host, pid=found.pid) if found is not None and _is_alive(*found) else None

    def unfinished(self, stage: str, units: Collection[str]) -> list[str]:
        """Return those of ``units`` that are neither done nor quarantined, sorted; never planned counts as unfinished."""
        query = sa.select(UnitRow.unit).where(UnitRow.stage == stage, UnitRow.state.in_(("done", "quarantined")))
        with self._database.reading() as connection:
            return sorted(set(units).difference(connection.scalars(query)))

    def quarantined(self, stage: str) -> list[UnitRecord]:
        """Return the units of a stage that were given up, with error and traceback."""
        return self._units(UnitRow.stage == stage, UnitRow.state == "quarantined")

    def requeue(self, stage: str, *, unit: str | None = None) -> int:
        """Give quarantined and failed units of a stage, or one of them, three new attempts, and return how many there were."""
        gone = UnitRow.state.in_(("quarantined", "failed"))
        which = (UnitRow.stage == stage, gone) if unit is None else (UnitRow.stage == stage, gone, UnitRow.unit == unit)
        statement = sa.update(UnitRow).where(*which).values(state="pending", attempts=0, error="", traceback="")
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount

    def _finish(self, stage: str, unit: str, **values: Any) -> None:
        statement = sa.update(UnitRow).where(UnitRow.stage == stage, UnitRow.unit == unit, *_mine())
        with self._database.writing() as connection:
            finished = connection.execute(statement.values(**values)).rowcount
        if not finished:
            raise LedgerError(_not_held(stage, unit))

    def _unit(self, stage: str, unit: str) -> UnitRecord:
        return self._units(UnitRow.stage == stage, UnitRow.unit == unit)[0]

    def _units(self, *conditions: sa.ColumnElement[bool]) -> list[UnitRecord]:
        columns = [getattr(UnitRow, name) for name in UnitRecord.__dataclass_fields__]
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(*columns).where(*conditions).order_by(UnitRow.unit)).mappings().all()
        return [UnitRecord(**row) for row in rows]


def fingerprint(**inputs: object) -> str:
    """Return a stable hash of named inputs: text, numbers, paths, dataclasses, and lists, tuples, sets and dicts of them.

    Raises:
        TypeError: for anything that has no canonical form, such as an array; pass a hash of it.
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=_canonical)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _canonical(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    message = f"a fingerprint cannot be made from {type(value).__name__}. Pass text, numbers, dataclasses, or a hash of it."
    raise TypeError(message)


def _pending(stage: str, unit: str, print_: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"host": "", "pid": 0, "pid_started": 0.0, "lease_until": 0.0, "seconds": None}
    texts = {"note": "", "error": "", "traceback": ""}
    return {"stage": stage, "unit": unit, "fingerprint": print_, "state": "pending", "attempts": 0} | empty | texts


def _recover(connection: sa.Connection, stage: str) -> None:
    """Set back the claims of workers that are gone."""
    owner = (UnitRow.host, UnitRow.pid, UnitRow.pid_started)
    held = sa.select(*owner, sa.func.max(UnitRow.lease_until)).where(UnitRow.stage == stage, UnitRow.state == "claimed").group_by(*owner)
    for host, pid, started, lease_until in connection.execute(held).all():
        if not _is_alive(host, pid, started, lease_until):
            mine = (UnitRow.host == host, UnitRow.pid == pid, UnitRow.pid_started == started)
            connection.execute(sa.update(UnitRow).where(UnitRow.stage == stage, UnitRow.state == "claimed", *mine).values(state="pending"))


def _held_by_others(connection: sa.Connection, stage: str) -> set[str]:
    """Return the units of a stage that other processes hold; those of dead ones have been set back before."""
    host, pid, _ = _worker()
    others = sa.or_(UnitRow.host != host, UnitRow.pid != pid)
    return set(connection.scalars(sa.select(UnitRow.unit).where(UnitRow.stage == stage, UnitRow.state == "claimed", others)))


def _is_alive(host: str, pid: int, started: float, lease_until: float) -> bool:
    """Say whether a worker lives; on this host the process table is the better witness than the lease."""
    return _is_running(pid, started) if host == socket.gethostname() else lease_until >= time.time()


def _worker() -> tuple[str, int, float]:
    """Return host, process id and start time; a process id alone is given out again."""
    pid = os.getpid()
    return socket.gethostname(), pid, _started(pid)


@cache
def _started(pid: int) -> float:
    return psutil.Process(pid).create_time()


def _is_running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # A zombie is dead but not yet fetched by its parent; it will not finish anything.
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < _SAME_START_S
    except psutil.NoSuchProcess:
        return False


def _not_held(stage: str, unit: str) -> str:
    return (
        f"stage {stage}, unit {unit}: this process does not hold the unit, so it cannot finish it. Either claim() was not called or "
        "returned False, or its inputs changed or its lease ran out meanwhile; then its result is to be discarded."
    )


def _mine() -> tuple[sa.ColumnElement[bool], ...]:
    host, pid, _ = _worker()
    return (UnitRow.state == "claimed", UnitRow.host == host, UnitRow.pid == pid)
