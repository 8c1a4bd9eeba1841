"""Pieces of work reach every core, each exactly once, and whatever goes wrong in one is heard of."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.teachers.cpu_crew import share_out


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_piece_is_done_once_and_by_operations_that_do_not_divide_themselves(count: int) -> None:
    done: list[int] = []
    inside: dict[int, int] = {}

    def work(pieces: Iterator[int]) -> None:
        inside[threading.get_ident()] = torch.get_num_threads()
        for piece in pieces:
            time.sleep(0.001)
            done.append(piece)

    with threads(count):
        share_out(work, range(40))
        assert torch.get_num_threads() == count
    assert sorted(done) == list(range(40))
    assert list(inside.values()) == [1] * count
    assert (threading.get_ident() in inside) == (count == 1)


def test_a_failure_is_raised_after_all_threads_have_ended() -> None:
    done: list[int] = []

    def work(pieces: Iterator[int]) -> None:
        for piece in pieces:
            if piece == 3:
                message = "piece 3"
                raise ValueError(message)
            time.sleep(0.01)
            done.append(piece)

    with threads(2), pytest.raises(ValueError, match="piece 3"):
        share_out(work, range(10))
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("inference", [False, True])
def test_results_may_be_written_into_the_callers_tensors(inference: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    with threads(2), torch.inference_mode(inference), torch.no_grad():
        answer = torch.zeros(8, 3)

        def work(pieces: Iterator[int]) -> None:
            for piece in pieces:
                torch.mul(weight, piece, out=answer[piece])

        share_out(work, range(8))
    assert not answer.requires_grad
    assert answer.sum() == 3 * 28


def test_a_forked_process_gets_threads_of_its_own() -> None:
    program = """
import os, signal, torch
from distill.teachers.cpu_crew import share_out
torch.set_num_threads(2)
share_out(list, range(4))
child = os.fork()
if not child:
    signal.alarm(20)
    share_out(list, range(4))
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr


def test_after_ctrl_c_nothing_more_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    interrupted = threading.Event()

    def work(pieces: Iterator[int]) -> None:
        for piece in pieces:
            begun.append(piece)
            assert interrupted.wait(60)

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with threads(2):
        share_out(list, range(2))  # the threads are there
        with monkeypatch.context() as patched:
            patched.setattr(Future, "exception", pressed)
            with pytest.raises(KeyboardInterrupt):
                share_out(work, range(50))
        interrupted.set()
        share_out(list, range(2))
    assert len(begun) <= 2


def test_threads_that_cannot_all_be_started_leave_nobody_waiting_and_the_setting_as_it_was() -> None:
    program = """
import threading, torch
from distill.teachers import cpu_crew
start, left = threading.Thread.start, iter(range(2))
def refuse(thread):
    if next(left, None) is None:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
torch.set_num_threads(3)
try:
    cpu_crew.share_out(list, range(9))
except RuntimeError as error:
    assert "new thread" in str(error)
    assert torch.get_num_threads() == 3
    print("refused")
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "refused\n"), found.stderr


def test_a_counter_of_operations_sees_every_piece() -> None:
    def work(pieces: Iterator[torch.Tensor]) -> None:
        for piece in pieces:
            torch.mm(piece, piece)

    with threads(2), FlopCounterMode(display=False) as counter:
        share_out(work, [torch.ones(4, 4)] * 10)
    assert counter.get_total_flops() == 10 * 2 * 4**3
