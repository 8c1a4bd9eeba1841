"""Time several programs for the same work in turns, each in a process of its own with a known state of the memory allocator.

Half of the original's time on a CPU can be page faults, so a ratio means little without that state. ``default`` is an untouched
process, as people run the original. ``kept`` keeps all freed memory and lets waiting threads sleep, as
this package does (``distill.teachers.memory``); here glibc is told from outside, since what it takes at run time ends at 2 GiB of free
memory, and the original frees more. Each arm lives in one process; only one of them works at a time, and each round goes once through all of them.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch

State = Literal["default", "kept"]
KEEP = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}" for name in (f"mmap_threshold={2**34}", f"trim_threshold={2**34}", f"top_pad={2**28}", "hugetlb=1")
    ),
}
"""What ``kept`` adds to the environment."""
Call = Callable[[], tuple[torch.Tensor, ...]]
"""One piece of work, ready to be timed."""
Found = dict[str, Any]
"""What a benchmark measured, ready for JSON."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One program: how it is called, in which state it runs, and what builds it (a function that can be pickled)."""

    name: str
    state: State
    build: Callable[..., Call]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call."""

    wall_s: float
    cpu_s: float
    faults: int


class _Worker:
    """A process that holds one arm."""

    def __init__(self, arm: Arm, threads: int, device: str) -> None:
        self.arm = arm
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with _environment(arm.state, threads):
            self.process = context.Process(target=_serve, args=(arm, threads, device, theirs), daemon=True)
            self.process.start()
        theirs.close()

    def ask(self, what: str) -> Any:
        self.pipe.send(what)
        try:
            answer = self.pipe.recv()
        except EOFError:
            message = f"the process of {self.arm.name} ({self.arm.state}) died; it probably ran out of memory."
            raise RuntimeError(message) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(timeout=30)


@contextmanager
def _environment(state: State, threads: int) -> Iterator[None]:
    """Set what a process reads when it starts."""
    wanted = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    unwanted = ["GLIBC_TUNABLES", "OMP_WAIT_POLICY"]
    before = dict(os.environ)
    for name in unwanted:
        os.environ.pop(name, None)
    os.environ.update(wanted | (KEEP if state == "kept" else {}))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(arm: Arm, threads: int, device: str, pipe: Connection) -> None:
    from distill.teachers.memory import keep_freed_memory

    try:
        if arm.state == "kept":
            keep_freed_memory()
        torch.set_num_threads(threads)
        with torch.inference_mode():
            call = arm.build(device=device, **arm.options)
            _loop(call, device, pipe)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        pipe.send(RuntimeError(f"{arm.name} ({arm.state}): {type(error).__name__}: {error}"))


def _loop(call: Call, device: str, pipe: Connection) -> None:
    while True:
        match pipe.recv():
            case "answer":
                pipe.send(tuple(part.float().cpu().numpy() for part in call()))
            case "cost":
                pipe.send(_cost(call, device))


def _cost(call: Call, device: str) -> Cost:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    faults, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time(), time.perf_counter()
    call()
    wait()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)


def run_paired(
    arms: Sequence[Arm], *, rounds: int, threads: int, device: str
) -> tuple[dict[tuple[str, State], list[Cost]], dict[tuple[str, State], tuple[np.ndarray, ...]]]:
    """Build all arms, take each one's answer (which also warms it up), then time them in turns.

    Returns:
        Costs of each round, and answers, by (name, state).
    """
    workers = [_Worker(arm, threads, device) for arm in arms]
    try:
        answers = {(w.arm.name, w.arm.state): w.ask("answer") for w in workers}
        costs: dict[tuple[str, State], list[Cost]] = {key: [] for key in answers}
        for _ in range(rounds):
            for worker in workers:
                costs[worker.arm.name, worker.arm.state].append(worker.ask("cost"))
    finally:
        for worker in workers:
            worker.stop()
    return costs, answers


def ratio(costs: dict[tuple[str, State], list[Cost]], slow: tuple[str, State], fast: tuple[str, State]) -> float:
    """Return how many times faster one arm is: the median over rounds of the ratio within a round."""
    return median(a.wall_s / b.wall_s for a, b in zip(costs[slow], costs[fast], strict=True))


def device_name(device: str) -> str:
    """Name the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in fields.get("flags", "").split()]
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.processor())} ({family}; {', '.join(flags)}), {os.cpu_count()} cores"


def peak_flops(dtype: torch.dtype, device: str, seconds: float = 1.0) -> float:
    """Return the best rate of a large product, in FLOP/s: the roof that everything stands under."""
    from distill.teachers.cpu_products import PackedLinear

    side = 8192 if device == "cuda" else 1536
    x, weight = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = PackedLinear(weight, None, side) if device == "cpu" else None
    best, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends or best == float("inf"):
        for call in [lambda: x @ weight.T] + ([lambda: product(x)] if product else []):
            best = min(best, _cost(lambda call=call: (call(),), device).wall_s)  # type: ignore[misc]
    return 2 * side**3 / best


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def mask_iou(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean IoU of ``(P, M, h, w)`` logits' masks, over masks that are not empty on both sides."""
    one, two = found > 0, expected > 0
    union = (one | two).sum(axis=(2, 3))
    return float(((one & two).sum(axis=(2, 3))[union > 0] / union[union > 0]).mean())


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Add the options that every paired benchmark has: threads, rounds, device."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")


def add_switches(parser: argparse.ArgumentParser, *, compiled: str, quick: str) -> None:
    """Add the switches that every paired benchmark has; the texts say what is compiled, and what ``--quick`` runs."""
    parser.add_argument("--compile", action="store_true", help=f"torch.compile for {compiled}")
    parser.add_argument("--quick", action="store_true", help=f"{quick}: does it run")
    parser.add_argument("--json", action="store_true")


def run_program(
    parser: argparse.ArgumentParser,
    quick: dict[str, int],
    measure: Callable[[argparse.Namespace], Found],
    show: Callable[[Found], None],
) -> None:
    """Read the command line, measure, print; ``quick`` is what that switch sets."""
    args = parser.parse_args()
    if args.quick:
        vars(args).update(quick)
    found = measure(args)
    if args.json:
        print(json.dumps(found))
    else:
        show(found)


def usual_arms(
    args: argparse.Namespace,
    options: dict[str, Any],
    *,
    original: Callable[..., Call],
    fast: Callable[..., Call],
    ours: Callable[..., Call],
) -> list[Arm]:
    """Say what is compared, each built with ``options``. On a GPU the CPU's allocator hardly matters: one state."""
    states: tuple[State, ...] = ("default", "kept") if args.device == "cpu" else ("kept",)
    compiled = {"compiled": args.compile}
    arms = []
    for state in states:
        arms.append(Arm("original", state, original, options))
        arms.append(Arm("fast-style", state, fast, options | compiled))
    return [*arms, *(Arm(f"ours {name}", "kept", ours, options | {"bf16": name == "bf16"}) for name in ("fp32", "bf16"))]


def measure_arms(
    args: argparse.Namespace,
    arms: Sequence[Arm],
    *,
    flops: float,
    judge: Callable[[np.ndarray], Callable[[np.ndarray], dict[str, float]]],
    pieces: int = 1,
    rates: Callable[[float], dict[str, float]] | None = None,
) -> Found:
    """Run all arms and gather the figures.

    Args:
        args: The command line; it goes into the answer.
        arms: What is compared; ``original`` among them, ``kept``, whose answer is the reference.
        flops: Of one piece.
        judge: Takes the reference, and returns what compares another arm's answer with it.
        pieces: What one call does; times are per piece.
        rates: More figures that follow from the seconds of one piece.
    """
    torch.set_num_threads(args.threads)
    costs, answers = run_paired(arms, rounds=args.rounds, threads=args.threads, device=args.device)
    judged = judge(answers["original", "kept"][0])
    peaks = {name: peak_flops(dtype, args.device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    as_run: tuple[str, State] = ("original", "default" if args.device == "cpu" else "kept")
    rows = []
    for (name, state), spent in costs.items():
        seconds = median(cost.wall_s for cost in spent) / pieces
        rows.append(
            {
                "arm": name,
                "allocator": state,
                "seconds": seconds,
                "cpu_seconds": median(cost.cpu_s for cost in spent) / pieces,
                "faults": median(cost.faults for cost in spent) / pieces,
                **(rates(seconds) if rates else {}),
                "as_run": ratio(costs, as_run, (name, state)),
                "equal": ratio(costs, ("original", state), (name, state)),
                "share_of_peak": flops / seconds / peaks["bf16" if name in ("fast-style", "ours bf16") else "fp32"],
                **judged(answers[name, state][0]),
                "rounds": [asdict(cost) for cost in spent],
            }
        )
    told = {**vars(args), "device": device_name(args.device), "torch": torch.__version__}
    return {**told, "flops": flops, "peak_flops": peaks, "rows": rows}


def show_table(found: Found, *, work: str, counted: str, what: str, piece: str, rates: Sequence[tuple[str, str]] = ()) -> None:
    """Print the figures of ``measure_arms``.

    Args:
        found: The figures.
        work: What was done, in words.
        counted: Whose FLOPs were counted, such as ``per picture``.
        what: What the arms are, such as ``encoder``.
        piece: What a time is of.
        rates: Heading and name of more figures.
    """
    print(f"{work}, {found['threads']} threads; {found['device']}; torch {found['torch']}")
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found["peak_flops"].items())
    print(f"{found['flops'] / 1e9:.0f} GFLOP {counted}; measured peak of a product: {peaks}\n")
    more = "".join(f" {heading} |" for heading, _ in rates)
    print(f"| {what} | allocator | s/{piece} | cpu-s | page faults |{more} x as run | x equal allocator | of peak | rel. L2 | mask IoU |")
    print("| --- " * (10 + len(rates)) + "|")
    for row in found["rows"]:
        own = "".join(f" {row[name]:.1f} |" for _, name in rates)
        print(
            f"| {row['arm']} | {row['allocator']} | {row['seconds']:.3f} | {row['cpu_seconds']:.2f} | {row['faults']:,.0f} |{own} "
            f"{row['as_run']:.2f} | {row['equal']:.2f} | {row['share_of_peak']:.0%} | {row['relative_l2']:.1e} | {row['mask_iou']:.4f} |"
        )
