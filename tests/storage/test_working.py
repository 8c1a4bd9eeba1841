"""The units of a stage, one after the other: finished, given back, or left to whoever has them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.ledger import ATTEMPTS, Ledger
from storage.working import work_through

STAGE = "refine:pseudo/r1"
UNITS = {"a": "1", "b": "1", "c": "1"}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'catalog.sqlite'}")


def shouting(asked: list[str]) -> Callable[[str], str]:
    """Work that remembers what it was asked for."""

    def work(unit: str) -> str:
        asked.append(unit)
        return unit.upper()

    return work


def test_what_work_returns_is_kept_by_unit_and_a_second_time_nothing_is_done(ledger: Ledger) -> None:
    asked: list[str] = []
    assert work_through(ledger, STAGE, UNITS, shouting(asked)).done == {"a": "A", "b": "B", "c": "C"}
    again = work_through(ledger, STAGE, UNITS, shouting(asked))
    assert (again.done, again.skipped, asked) == ({}, 3, ["a", "b", "c"])


def test_a_unit_that_always_fails_is_given_up_with_its_error_and_the_others_are_done(ledger: Ledger) -> None:
    asked: list[str] = []

    def work(unit: str) -> None:
        asked.append(unit)
        if unit == "b":
            message = "not this one"
            raise ValueError(message)

    worked = work_through(ledger, STAGE, UNITS, work)
    assert (set(worked.done), worked.quarantined, worked.unfinished, worked.skipped) == ({"a", "c"}, ("b",), 0, 0)
    assert asked.count("b") == ATTEMPTS
    assert ledger.quarantined(STAGE)[0].error == "ValueError: not this one"


def test_ctrl_c_gives_the_unit_back_without_a_mark(ledger: Ledger) -> None:
    def work(unit: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_through(ledger, STAGE, UNITS, work)
    assert ledger.counts(STAGE) == {"pending": 3, "claimed": 0, "done": 0, "failed": 0, "quarantined": 0}


def test_a_unit_that_another_run_took_meanwhile_counts_for_that_run_alone(ledger: Ledger) -> None:
    def work(unit: str) -> None:
        if unit == "b":
            ledger.release(STAGE, "b")  # as if its lease had run out

    worked = work_through(ledger, STAGE, {"b": "1"}, work)
    assert (worked.done, worked.unfinished) == ({}, 1)


def test_what_another_process_holds_is_unfinished_and_not_asked_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ledger, "claim", lambda stage, unit: False)
    worked = work_through(ledger, STAGE, {"a": "1"}, shouting(asked))
    assert (worked.unfinished, asked) == (1, [])


def test_progress_counts_what_is_due_and_not_what_was_done_before(ledger: Ledger) -> None:
    work_through(ledger, STAGE, {"a": "1"}, shouting([]))
    seen: list[tuple[int, int]] = []
    work_through(ledger, STAGE, UNITS, shouting([]), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
