"""What a training step of a compact student costs beside its network: against a bare torch loop, and with batches from Zarr.

    python benchmarks/compact_step.py ARCHIVE [ARCHIVE ...] [--rounds 5] [--seconds 3] [--large 2] [--net small] [--threads 1]

Arms take turns in one process, on the network, patch and precision that the archive's cases get by default, each for about ``--seconds`` a round:

    bare          a torch loop with one batch in memory: forward, cross-entropy + Dice in three lines, backward, AdamW
    kept          students/train.py as it runs: patches of volumes that are kept in memory, augmentation, loss, clipped step, average
    cold          the same while every case is read from Zarr for the first time; the system's own cache of those files is dropped before
    patchwise     the same when no volume may be kept, so that every patch is read from Zarr
    large ...     patchwise and cold on volumes of 128 x 256 x 256 voxels, so many as ``--large`` says (0: none)

Prints the wall time of a step and the CPU time of the training thread, both as medians of the rounds' ratios to the bare loop of the same round with their range; what
the loading thread computed per step; and the share of the time that the network was busy (forward, backward, optimiser). Other work on the machine
stretches wall times; the busy share by CPU time takes the slower of both threads for the pace instead. Checkpoints are measured apart
and spread over ``checkpoint_seconds``, as a round is shorter than that. Validation is no part of a step.
"""
# ruff: noqa: SLF001 - what is timed are parts of a step, from inside

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students import compact
from students.batches import Batch
from students.data import PatchSource
from students.devices import half_precision_pays
from students.learnt_cases import FoundCases
from students.nets import build_network
from students.spec import NetworkPlan, StudentSpec
from students.train import Training

P = ParamSpec("P")
R = TypeVar("R")
CPU = torch.device("cpu")
_SKIPPED = 2
"""Steps before the clock starts: the first ones prepare oneDNN's products."""
_LARGE_ZYX = (128, 256, 256)
_LABELS = "pseudo/r1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Seconds per step."""

    wall: float
    cpu: float
    """Of the thread that trains."""
    loading: float
    """CPU time of the thread that reads and augments."""
    net_wall: float
    net_cpu: float

    @property
    def busy_wall(self) -> float:
        """Share of the wall time."""
        return self.net_wall / self.wall

    @property
    def busy_cpu(self) -> float:
        """Share of the pace that the slower thread would set on a core of its own."""
        return self.net_cpu / max(self.cpu, self.loading)


class Clock:
    """Adds up wall and CPU time of calls in the thread that makes them."""

    def __init__(self) -> None:
        self.spent: list[tuple[float, float]] = []

    def timed(self, call: Callable[P, R]) -> Callable[P, R]:
        """Return the same call, with its time kept."""

        def measured(*args: P.args, **named: P.kwargs) -> R:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **named)
            finally:
                self.spent.append((time.perf_counter() - wall, time.thread_time() - cpu))

        return measured

    def total(self, calls: int) -> tuple[float, float]:
        """Return wall and CPU time of the last so many calls."""
        chosen = self.spent[-calls:]
        return sum(wall for wall, _ in chosen), sum(cpu for _, cpu in chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained on what."""

    archive: Archive
    cases: list[str]
    classes: tuple[ClassInfo, ...]
    plan: NetworkPlan
    spec: StudentSpec

    def source(self, cache_bytes: int) -> PatchSource:
        """Return patches that no one has asked for yet."""
        return PatchSource(self.archive, cases=self.cases, label_set=_LABELS, classes=self.classes, plan=self.plan, cache_bytes=cache_bytes)


def setting(archive: Archive, spec: StudentSpec, plan: NetworkPlan | None = None) -> Setting:
    """Return what `students.compact.train` would train on this archive."""
    records = list(archive.cases(part="archive", with_labels=_LABELS))
    classes = archive[records[0].id].labels(_LABELS).history.classes
    found = FoundCases(labeled=records, gold=[], unlabeled=[])
    own = compact._prepare(archive, found, _LABELS, classes, spec, {})[0]
    return Setting(archive=archive, cases=[record.id for record in records], classes=classes, plan=plan or own, spec=spec)


def bare_step(given: Setting, batch: Batch) -> Callable[[], None]:
    """Return a step of the plainest loop there is."""
    flat = given.plan.dimensions == "2d"
    image, ids = (batch.image.squeeze(2), batch.ids.squeeze(1).long()) if flat else (batch.image, batch.ids.long())
    torch.manual_seed(0)
    network = build_network(given.plan).to(CPU)
    optimiser = torch.optim.AdamW(network.parameters(), lr=given.spec.lr, weight_decay=given.spec.weight_decay)
    known = (ids != IGNORE)[:, None]
    hot = functional.one_hot(ids.where(ids != IGNORE, 0), given.plan.outputs).movedim(-1, 1) * known

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half_precision_pays(CPU)):
            logits = network(image)
        p = torch.softmax(logits.float(), 1) * known
        dice = 2 * (p * hot)[:, 1:].sum() / (p[:, 1:].sum() + hot[:, 1:].sum())
        loss = functional.cross_entropy(logits.float(), ids, ignore_index=IGNORE) + 1 - dice
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def bare_round(step: Callable[[], None], steps: int) -> Round:
    """Time the plain loop."""
    clock = Clock()
    step()
    timed = clock.timed(step)
    for _ in range(steps):
        timed()
    wall, cpu = clock.total(steps)
    return Round(wall=wall / steps, cpu=cpu / steps, loading=0, net_wall=wall / steps, net_cpu=cpu / steps)


@contextmanager
def watched(training: Training) -> Iterator[tuple[Clock, Clock, list[tuple[float, float]]]]:
    """Time what the network does, what reading does, and when each step begins."""
    net, reading, begins = Clock(), Clock(), []
    learn = training._learn

    def marked(batch: Batch) -> float:
        begins.append((time.perf_counter(), time.thread_time()))
        return learn(batch)

    optimiser = training._optimiser
    with (
        patch.object(training.network, "forward", net.timed(training.network.forward)),
        patch.object(Tensor, "backward", net.timed(Tensor.backward)),
        patch.object(optimiser, "step", net.timed(optimiser.step)),
        patch.object(training, "_drawn", reading.timed(training._drawn)),
        patch.object(training, "_learn", marked),
    ):
        yield net, reading, begins


def our_round(given: Setting, source: PatchSource, steps: int, folder: Path) -> Round:
    """Time the product's own loop; ends are marked where a step begins, so that all between two steps counts."""
    spec = given.spec.model_copy(update={"steps": steps + _SKIPPED + 1, "checkpoint_seconds": 1e6})
    training = Training(spec, given.plan, source=source, held_out=None, folder=folder, fingerprint="")
    with watched(training) as (net, reading, begins):
        training.run()
    (first_wall, first_cpu), (last_wall, last_cpu) = begins[_SKIPPED], begins[-1]
    per_step = len(net.spent) // (steps + _SKIPPED + 1)
    chosen = net.spent[per_step * _SKIPPED : -per_step]
    return Round(
        wall=(last_wall - first_wall) / steps,
        cpu=(last_cpu - first_cpu) / steps,
        loading=sum(cpu for _, cpu in reading.spent[_SKIPPED:]) / len(reading.spent[_SKIPPED:]),
        net_wall=sum(wall for wall, _ in chosen) / steps,
        net_cpu=sum(cpu for _, cpu in chosen) / steps,
    )


def forget_files(url: str) -> None:
    """Drop the system's own copies of an archive's files; they are read from disk then."""
    for path in Path(url).rglob("*"):
        if path.is_file():
            with path.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def checkpoint_seconds(given: Setting, folder: Path) -> float:
    """Return the CPU time of writing a checkpoint."""
    training = Training(given.spec, given.plan, source=given.source(0), held_out=None, folder=folder, fingerprint="")
    training._optimiser.zero_grad()
    for weight in training.network.parameters():
        weight.grad = torch.zeros_like(weight)
    training._optimiser.step()
    clock = Clock()
    for _ in range(3):
        clock.timed(training._course.save)()
    return min(cpu for _, cpu in clock.spent)


def large_archive(like: Setting, folder: Path, count: int) -> Archive:
    """Return an archive of cases that are enlarged ones of another archive, with their labels."""
    archive = Archive.create(str(folder / "large.zarr"))
    for case in like.cases[:count]:
        stored = like.archive[case]
        image, ids = stored.read().astype(np.float32), stored.labels(_LABELS).read()
        picks = np.ix_(*[np.linspace(0, have - 1, want).round().astype(int) for want, have in zip(_LARGE_ZYX, ids.shape, strict=True)])
        grown = np.stack([channel[picks] for channel in image])
        record = CaseRecord(
            id=case,
            patient=case,
            shape_czyx=(len(image), *_LARGE_ZYX),
            dtype="int16",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=tuple(tuple(map(float, row)) for row in np.eye(4))),  # type: ignore[arg-type]
            modality="MR",
            part="archive",
            fingerprint=case,
        )
        span = max(float(np.abs(grown).max()), 1e-6)
        added = archive.add_case(record, (grown / span * 3000 + np.random.default_rng(0).normal(0, 20, grown.shape)).astype(np.int16))
        added.write_labels(LabelHistory(label_set=_LABELS, classes=like.classes, made_by="benchmark", fingerprint=case), ids[picks])
    return archive


def measure(given: Setting, asked: argparse.Namespace, folder: Path) -> dict[str, list[Round]]:
    """Let all arms take turns."""
    kept = given.source(1 << 40)
    places = kept.draw(np.random.default_rng(0), 6 * len(given.cases))
    step = bare_step(given, kept.cut(places[: given.plan.batch]))
    step()
    steps = max(6, round(asked.seconds / bare_round(step, 2).wall))
    arms: dict[str, Callable[[], Round]] = {
        "bare": lambda: bare_round(step, steps),
        "kept": lambda: our_round(given, kept, steps, folder),
        "cold": lambda: our_round(given, given.source(1 << 40), steps, folder),
        "patchwise": lambda: our_round(given, given.source(0), steps, folder),
    }
    if asked.large and given.plan.dimensions == "3d":
        large = setting(large_archive(given, folder, asked.large), given.spec, given.plan)
        patchwise = large.source(0)
        patchwise.draw(np.random.default_rng(0), 4 * asked.large)
        arms["large, patchwise"] = lambda: our_round(large, patchwise, steps, folder)
        arms["large, cold"] = lambda: our_round(large, large.source(1 << 40), steps, folder)
    found: dict[str, list[Round]] = {name: [] for name in arms}
    for _ in range(asked.rounds):
        for name, arm in arms.items():
            if name == "cold":
                forget_files(given.archive.url)
            found[name].append(arm())
    return found


def show(found: dict[str, list[Round]], saving: float, given: Setting) -> None:
    """Print one table."""
    share = saving / given.spec.checkpoint_seconds
    print(f"a checkpoint takes {saving * 1e3:.0f} cpu-ms every {given.spec.checkpoint_seconds:.0f} s: {share:.2%}, in no figure below\n")
    print("| arm | ms/step | cpu-ms | loading, cpu-ms | x bare, wall | x bare, cpu | net busy, wall | net busy, cpu |")
    print("| --- " * 8 + "|")
    for name, rounds in found.items():
        pairs = list(zip(rounds, found["bare"], strict=True))
        walls, cpus = [a.wall / b.wall for a, b in pairs], [a.cpu / b.cpu for a, b in pairs]
        spent = " | ".join(f"{1e3 * median(getattr(each, what) for each in rounds):.0f}" for what in ("wall", "cpu", "loading"))
        busy = " | ".join(f"{median(getattr(each, what) for each in rounds):.1%}" for what in ("busy_wall", "busy_cpu"))
        print(f"| {name} | {spent} | {spread(walls)} | {spread(cpus)} | {busy} |")
    print()


def spread(ratios: list[float]) -> str:
    """Return median, least and largest."""
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def main() -> None:
    """Measure and print one table for each archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", metavar="ARCHIVE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one arm in one round")
    parser.add_argument("--large", type=int, default=6, help="how many large volumes to make; 0: none")
    parser.add_argument("--net", choices=["standard", "small", "medium", "large"], default="standard")
    parser.add_argument("--threads", type=int, default=1, help="that compute; another one reads")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for url in asked.archives:
        spec = StudentSpec(budget_seconds=None, threads=asked.threads, device="cpu", size=asked.net)
        given = setting(Archive.open(url, mode="r"), spec)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            plan, half = given.plan, "bf16" if half_precision_pays(CPU) else "float32"
            print(
                f"{Path(url).parent.name}: {len(given.cases)} cases, {plan.batch} patches of {plan.patch_zyx}, filters {plan.filters}, {half}"
            )
            saving = checkpoint_seconds(given, folder)
            show(measure(given, asked, folder), saving, given)


if __name__ == "__main__":
    main()
