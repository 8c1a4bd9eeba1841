"""The ledger: who may work on what, and what becomes of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from storage import Ledger, LedgerError, fingerprint
from storage.database import Database
from storage.ledger import ATTEMPTS, LEASE_S, Holder
from storage.tables import UnitRow

UNITS = {f"case-{number:03d}": "print-1" for number in range(200)}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.sqlite"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    database = Database(url)
    yield Ledger(database)
    database.close()


def set_claim(url: str, **values: object) -> None:
    with Database(url).writing() as connection:
        connection.execute(sa.update(UnitRow).values(**values))


def test_a_unit_is_planned_claimed_done_and_never_planned_again(ledger: Ledger) -> None:
    assert ledger.plan("label", {"b": "1", "a": "1"}) == ["b", "a"]
    assert ledger.claim("label", "a")
    ledger.done("label", "a", seconds=1.5, note="3 objects")
    assert ledger.plan("label", {"b": "1", "a": "1"}) == ["b"]
    assert not ledger.claim("label", "a")
    assert ledger.counts("label") == {"pending": 1, "claimed": 0, "done": 1, "failed": 0, "quarantined": 0}


def test_a_claimed_unit_belongs_to_one(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1"})
    assert ledger.claim("label", "a")
    assert not ledger.claim("label", "a")
    ledger.release("label", "a")
    assert ledger.claim("label", "a")


def test_a_unit_that_was_never_planned_cannot_be_claimed(ledger: Ledger) -> None:
    assert not ledger.claim("label", "a")


def test_what_is_not_held_cannot_be_finished(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1"})
    for finish in (ledger.done, ledger.release, ledger.forget):
        with pytest.raises(LedgerError, match="stage label, unit a: this process does not hold the unit"):
            finish("label", "a")
    with pytest.raises(LedgerError, match="does not hold"):
        ledger.fail("label", "a", ValueError())


def test_the_third_failure_quarantines_and_keeps_error_and_traceback(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1", "b": "1"})
    outcomes = []
    for attempt in range(ATTEMPTS):
        assert ledger.plan("label", {"a": "1"}) == ["a"]
        assert ledger.claim("label", "a")
        try:
            _ = 1 / (attempt * 0)
        except ZeroDivisionError as error:
            outcomes.append(ledger.fail("label", "a", error))
    assert outcomes == ["retry", "retry", "quarantined"]
    assert ledger.plan("label", {"a": "1"}) == []
    assert not ledger.claim("label", "a")
    (unit,) = ledger.quarantined("label")
    assert (unit.unit, unit.attempts, unit.error) == ("a", 3, "ZeroDivisionError: division by zero")
    assert "1 / (attempt * 0)" in unit.traceback


def test_a_unit_that_was_forgotten_is_new_when_it_is_planned_again(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1", "b": "1"})
    ledger.claim("label", "a")
    ledger.forget("label", "a")
    assert ledger.counts("label") == {"pending": 1, "claimed": 0, "done": 0, "failed": 0, "quarantined": 0}
    assert ledger.plan("label", {"a": "1"}) == ["a"]
    assert ledger.claim("label", "a")


def test_requeued_units_have_three_attempts_again(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1"})
    for _ in range(ATTEMPTS):
        ledger.claim("label", "a")
        ledger.fail("label", "a", ValueError("bad"))
    assert ledger.requeue("label") == 1
    assert ledger.claim("label", "a")
    assert ledger.fail("label", "a", ValueError("bad")) == "retry"


def test_success_after_a_failure_forgets_the_error(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    ledger.fail("label", "a", ValueError("bad"))
    ledger.claim("label", "a")
    ledger.done("label", "a")
    with Database(url).reading() as connection:
        assert connection.execute(sa.select(UnitRow.error, UnitRow.traceback)).one() == ("", "")


@pytest.mark.parametrize("before", ["done", "quarantined", "claimed"])
def test_a_changed_fingerprint_makes_a_unit_pending_again(ledger: Ledger, url: str, before: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    set_claim(url, state=before, attempts=2)
    assert ledger.plan("label", {"a": "2"}) == ["a"]
    if before == "claimed":
        with pytest.raises(LedgerError, match="inputs changed"):
            ledger.done("label", "a")
    assert ledger.claim("label", "a")
    assert ledger.fail("label", "a", ValueError()) == "retry"


def held_elsewhere(url: str, *, lease_s: float = LEASE_S) -> None:
    set_claim(url, host="elsewhere", lease_until=time.time() + lease_s)


@pytest.mark.parametrize("ends_as", ["done", "failed", "pending"])
def test_changed_inputs_do_not_take_a_unit_from_a_live_process_that_is_at_it(ledger: Ledger, url: str, ends_as: str) -> None:
    ledger.plan("label", {"a": "1", "b": "1"})
    ledger.claim("label", "a")
    held_elsewhere(url)
    assert ledger.plan("label", {"a": "2", "b": "1"}) == ["a", "b"]
    assert ledger.state("label", "a") == "claimed"
    assert not ledger.claim("label", "a")
    set_claim(url, state=ends_as)
    assert not ledger.claim("label", "a"), "under the fingerprint of the other process's inputs"
    assert ledger.plan("label", {"a": "2"}) == ["a"]
    assert ledger.claim("label", "a")


def test_changed_inputs_take_a_unit_from_a_dead_process(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    held_elsewhere(url, lease_s=-1)
    assert ledger.plan("label", {"a": "2"}) == ["a"]
    assert ledger.claim("label", "a")


def test_the_holder_of_a_unit_is_a_live_worker_or_nobody(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    assert ledger.holder("label", "a") is None
    assert ledger.holder("label", "never planned") is None
    ledger.claim("label", "a")
    assert ledger.holder("label", "a") == Holder(host=socket.gethostname(), pid=os.getpid())
    held_elsewhere(url)
    assert str(ledger.holder("label", "a")) == f"process {os.getpid()} on elsewhere"
    held_elsewhere(url, lease_s=-1)
    assert ledger.holder("label", "a") is None


def test_unfinished_units_are_those_neither_done_nor_given_up(ledger: Ledger, url: str) -> None:
    ledger.plan("label", dict.fromkeys("abcd", "1"))
    ledger.claim("label", "a")
    ledger.done("label", "a")
    ledger.claim("label", "b")
    with Database(url).writing() as connection:
        connection.execute(sa.update(UnitRow).where(UnitRow.unit == "c").values(state="quarantined"))
    assert ledger.unfinished("label", ["d", "c", "b", "a", "new"]) == ["b", "d", "new"]


def test_stages_do_not_mix(ledger: Ledger) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.plan("refine", {"a": "1"})
    ledger.claim("label", "a")
    ledger.done("label", "a")
    assert ledger.plan("refine", {"a": "1"}) == ["a"]
    assert ledger.counts("train")["pending"] == 0


def claim_all(url: str) -> list[str]:
    """Claim whatever is free; the module is not a package, so worker processes import it by path."""
    ledger = Ledger(url)
    return [unit for unit in UNITS if ledger.claim("label", unit)]


CLAIMER = """
import sys
from storage import Ledger
ledger = Ledger(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(",".join(unit for unit in ledger.plan("label", {f"case-{n:03d}": "print-1" for n in range(200)}) if ledger.claim("label", unit)), flush=True)
sys.stdin.readline()
"""


def start_claimer(url: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        [sys.executable, "-c", CLAIMER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ}
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def let_claim(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()


def claims_of(worker: subprocess.Popen[str]) -> set[str]:
    assert worker.stdout is not None
    return set(worker.stdout.readline().strip().split(",")) - {""}


def test_two_processes_share_the_units_and_a_killed_ones_come_back(ledger: Ledger, url: str) -> None:
    ledger.plan("label", UNITS)
    workers = [start_claimer(url), start_claimer(url)]
    try:
        for worker in workers:
            let_claim(worker)
        first, second = map(claims_of, workers)
        assert not first & second
        assert first | second == set(UNITS)
        assert not any(ledger.claim("label", unit) for unit in UNITS)
        assert len(ledger.plan("label", UNITS)) == 200
        assert ledger.counts("label")["claimed"] == 200
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        ledger.plan("label", UNITS)
        assert {unit for unit in UNITS if ledger.claim("label", unit)} == first
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_threads_never_share_a_unit(url: str) -> None:
    Ledger(url).plan("label", UNITS)
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(claim_all, [url] * 4))
    assert sorted(unit for mine in claims for unit in mine) == sorted(UNITS)


def test_threads_never_share_a_unit_of_one_ledger(ledger: Ledger) -> None:
    ledger.plan("label", UNITS)
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda unit: ledger.claim("label", unit), [*UNITS, *UNITS]))
    assert sum(won) == len(UNITS)


def test_a_process_id_that_was_given_out_again_is_not_taken_for_the_old_worker(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    set_claim(url, pid_started=1.0)
    ledger.plan("label", {"a": "1"})
    assert ledger.claim("label", "a")


def test_a_worker_on_another_host_is_believed_until_its_lease_runs_out(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    set_claim(url, host="elsewhere", lease_until=time.time() + LEASE_S)
    ledger.plan("label", {"a": "1"})
    assert not ledger.claim("label", "a")
    set_claim(url, lease_until=time.time() - 1)
    assert ledger.claim("label", "a")


def test_a_live_worker_on_this_host_keeps_a_long_unit_without_a_heartbeat(ledger: Ledger, url: str) -> None:
    ledger.plan("train", {"student": "1"})
    ledger.claim("train", "student")
    set_claim(url, lease_until=time.time() - 1000)
    ledger.plan("train", {"student": "1"})
    assert not ledger.claim("train", "student")
    ledger.done("train", "student")


def test_a_heartbeat_renews_the_lease(ledger: Ledger, url: str) -> None:
    ledger.plan("label", {"a": "1"})
    ledger.claim("label", "a")
    set_claim(url, lease_until=0.0)
    ledger.heartbeat()
    with Database(url).reading() as connection:
        assert connection.execute(sa.select(UnitRow.lease_until)).scalar_one() > time.time()


def test_an_archive_of_many_cases_is_planned_in_a_few_statements(ledger: Ledger) -> None:
    units, statements = {f"case-{number}": "1" for number in range(20_000)}, list[str]()

    def count(*told: Any) -> None:
        statements.append(told[2])

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        assert [len(ledger.plan("label", units)) for _ in range(2)] == [20_000] * 2
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
    assert 2 <= len(statements) <= 2 * 20_000 / 100


@dataclass(frozen=True)
class Parameters:
    boxes: int
    jitter: float


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(inputs=st.dictionaries(st.text(), values, max_size=5))
def test_a_fingerprint_does_not_depend_on_the_order_of_its_inputs(inputs: dict[str, object]) -> None:
    assert fingerprint(inputs=inputs) == fingerprint(inputs=dict(reversed(inputs.items())))


def test_a_fingerprint_sees_every_change() -> None:
    base = {"teacher": "abc", "parameters": Parameters(boxes=5, jitter=0.05), "path": Path("x"), "classes": {1, 2}}
    prints = {
        fingerprint(**base),
        fingerprint(**{**base, "parameters": Parameters(boxes=5, jitter=0.06)}),
        fingerprint(**{**base, "more": 0}),
    }
    assert len(prints) == 3


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    program = "from storage import fingerprint; print(fingerprint(a={'x', 'y'}, b=1.5))"
    root = Path(__file__).parents[2]
    seeds = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert {run.stdout.strip() for run in seeds} == {fingerprint(a={"x", "y"}, b=1.5)}


def test_a_fingerprint_of_an_array_is_refused() -> None:
    with pytest.raises(TypeError, match="Pass text, numbers"):
        fingerprint(array=np.zeros(3))


def test_one_unit_can_be_requeued_while_its_neighbour_stays_given_up(ledger: Ledger) -> None:
    ledger.plan("train", {"mine": "1", "theirs": "1"})
    for unit in ["mine", "theirs"] * ATTEMPTS:
        ledger.claim("train", unit)
        ledger.fail("train", unit, ValueError("bad"))
    assert ledger.requeue("train", unit="mine") == 1
    assert (ledger.state("train", "mine"), ledger.state("train", "theirs")) == ("pending", "quarantined")
