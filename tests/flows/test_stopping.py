"""Ctrl-C and SIGTERM end a run within seconds, also where they reach Prefect's server first, and leave nothing claimed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import psutil
import pytest

from flows import stopping
from storage import Archive

PROGRAM = """
import os, sys, time
from pathlib import Path
from flows import stages, teaching
from flows.cli import main
from flows.console import Follow
from flows.once import perform_once
from storage import Archive

class Destroyed:
    def __del__(self):
        Path("working").touch()
        time.sleep(600)

def ingest(recipe):
    Archive.open_or_create(recipe.archive)
    Follow("ingest")(7, 7)
    return stages.StageResult(stage="ingest")

def train(recipe):
    def work():
        Follow("train", percent=True)(37, 100)
        if "DESTROYED" in os.environ:
            Destroyed()
        Path("working").touch()
        time.sleep(600)
    archive = Archive.open(recipe.archive)
    return perform_once(archive.ledger, stage="train", unit="compact", fingerprint="1", output=Path("none"), work=work)

stages.ingest, teaching.train = ingest, train
stages.shards_to_label = stages.shards_to_refine = lambda recipe, size: []
stages.doubt = stages.calibrate = lambda recipe: stages.StageResult(stage="refine")
stages.report_filter = lambda recipe: stages.StageResult(stage="filter")
main(["run", "recipe.yaml"])
"""


def until(there: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if there.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("the run did not begin to train")


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("number", "code", "lost"),
    [
        pytest.param(signal.SIGTERM, 143, {}, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, {"DESTROYED": "1"}, id="Ctrl-C-while-an-object-is-destroyed"),
    ],
)
def test_a_signal_to_run_and_server_ends_the_run_with_its_unit_given_back(
    number: int, code: int, lost: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("archive: ./a.zarr\nclasses: {1: {name: organ}}\n")
    environment = (
        {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {"PREFECT_HOME": str(tmp_path / "home")} | lost
    )
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until(tmp_path / "working", run)
        children = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, number)  # as a terminal, timeout or a container's stop do
        _, said = run.communicate(timeout=60)  # without leaving at once, Prefect tries for minutes to tell its server
    finally:
        run.kill()
    assert run.returncode == code
    assert said.splitlines()[-1] == ("error: stopped. Done so far: ingest 7 of 7 files, train 37 %. The same command goes on from there.")
    assert Archive.open(str(tmp_path / "a.zarr")).ledger.state("train", "compact") == "pending"
    assert children, "there was a server to be ended"
    assert psutil.wait_procs(children, timeout=30)[1] == []


def interrupted(stop: stopping._Stop) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_signals_that_come_together_are_one_and_a_later_one_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(stopping, "leave", left.append)
    stop = stopping._Stop()
    stop.working = True
    interrupted(stop)
    stop(signal.SIGTERM, None)
    assert left == [], "the stage is still giving its units back"
    monkeypatch.setattr(stopping, "TOGETHER_S", 0.0)
    with pytest.raises(KeyboardInterrupt):  # a leave that returns goes on
        stop(signal.SIGTERM, None)
    assert left == [signal.SIGTERM]


@pytest.mark.parametrize("listening", [pytest.param(True, id="during the run"), pytest.param(False, id="after it")])
def test_a_stage_that_does_not_stop_is_left(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Event()
    monkeypatch.setattr(stopping, "leave", lambda _number: left.set())
    monkeypatch.setattr(stopping, "PATIENCE_S", 0.01)
    stop = stopping._Stop()
    stop.working, stop.listening = True, listening
    interrupted(stop)
    assert stop.patience is not None
    stop.patience.join()
    assert left.is_set() == listening


def test_what_an_object_raises_while_it_is_destroyed_is_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: heard.append(lost.exc_type))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    class Destroyed:
        def __del__(self) -> None:
            raise ValueError

    with stopping.listening():
        Destroyed()
    Destroyed()
    assert heard == [ValueError, ValueError]


def test_outside_of_a_run_a_stage_is_called_as_it_is() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert stopping.stoppable(lambda: signal.getsignal(signal.SIGTERM))() is before


def test_a_server_of_somebodys_own_is_told_by_prefect_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("PREFECT_API_URL", "http://here")
    with stopping.listening():
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_handlers_of_signals_are_as_before_when_a_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.listening():
        assert stopping.stoppable(lambda: 5)() == 5
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
