"""Claims are renewed while work goes on, and a heart that stops is noticed."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage import Ledger, heartbeat
from storage.database import Database
from storage.heartbeat import beating
from storage.tables import UnitRow

PATIENCE_S = 20.0
"""Only a broken heartbeat is waited for so long."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/catalog.sqlite")
    yield made
    made.close()


@pytest.fixture
def ledger(database: Database, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """One unit is claimed; hearts beat fast."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    made = Ledger(database)
    made.plan("label", {"a": "1"})
    assert made.claim("label", "a")
    return made


def hearts() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "samdistill-heartbeat"]


class Beats:
    """Counts the beats of a ledger, and fails those that it is told to."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, failing: int) -> None:
        self._beat, self._failing, self._count = ledger.heartbeat, failing, 0
        self.one_came_through = threading.Event()
        monkeypatch.setattr(ledger, "heartbeat", self)

    def __call__(self) -> None:
        self._count += 1
        if self._count <= self._failing:
            message = "database is locked"
            raise OSError(message)
        self._beat()
        self.one_came_through.set()


def test_a_lease_is_renewed_while_the_block_runs_and_the_thread_ends_with_it(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = Beats(ledger, monkeypatch, failing=0)
    with database.writing() as connection:
        connection.execute(sa.update(UnitRow).values(lease_until=0.0))
    with beating(ledger):
        assert beats.one_came_through.wait(PATIENCE_S)
        assert all(thread.daemon for thread in hearts())
        assert len(hearts()) == 1
    assert hearts() == []
    with database.reading() as connection:
        assert connection.scalar(sa.select(UnitRow.lease_until)) > 0


def test_the_thread_ends_with_a_block_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), beating(Ledger("sqlite://")):
        _ = 1 / 0
    assert hearts() == []


def test_a_missed_beat_is_logged_and_the_next_one_comes(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats, lost = Beats(ledger, monkeypatch, failing=2), []
    with caplog.at_level(logging.WARNING, "samdistill.heartbeat"), beating(ledger, on_loss=lost.append):
        assert beats.one_came_through.wait(PATIENCE_S)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == ["OSError: database is locked"] * 2
    assert lost == []


def test_a_lease_without_any_beat_is_a_loss_and_is_told_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.05)
    Beats(ledger, monkeypatch, failing=10**9)
    lost: list[Exception] = []
    with beating(ledger, on_loss=lost.append):
        (thread,) = hearts()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert [str(error) for error in lost] == ["database is locked"]
