"""Several devices label one archive as one does, and one that breaks down takes nothing with it."""

import runpy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import appoint, label_pass
from distill.casework import CaseWork
from distill.devices import DeviceError
from distill.engine import label_archive
from distill.errors import PlanError
from distill.label_pass import LabelJob, Station
from distill.teachers.base import Embeddings
from distill.teachers.checkpoints import load_teacher
from distill.teachers.sam import SamTeacher
from storage import Archive

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_archive.py"))))  # tests are no package
archive_of, plan_for, STAGE = small.archive_of, small.plan_for, small.STAGE
BROKEN = "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress'"


def labels_of(archive: Archive) -> dict[str, tuple[bytes, ...]]:
    """Every array of every label set, and its scores."""
    found = {}
    for record in archive.cases(with_labels="teacher/r1"):
        labels = archive[record.id].labels("teacher/r1")
        arrays = [np.asarray(array).tobytes() for array in (labels.ids, labels.probability, labels.uncertainty)]
        found[record.id] = (*arrays, repr((sorted(labels.scores.items()), labels.history)).encode())
    return found


Encode = Callable[[list[np.ndarray]], Embeddings]


def teachers(monkeypatch: pytest.MonkeyPatch, *disturbed: Callable[[Encode], Encode] | None) -> list[SamTeacher]:
    """Have the engine's n-th teacher encode as the n-th of ``disturbed`` says; returns the teachers as they are loaded."""
    loaded: list[SamTeacher] = []

    def load(*arguments: object, **options: object) -> SamTeacher:
        teacher = load_teacher(*arguments, **options)  # type: ignore[arg-type]
        disturb = disturbed[len(loaded)] if len(loaded) < len(disturbed) else None
        if disturb is not None:
            monkeypatch.setattr(teacher, "encode", disturb(teacher.encode))  # type: ignore[arg-type]
        loaded.append(teacher)
        return teacher

    monkeypatch.setattr(appoint, "load_teacher", load)
    return loaded


def breaking(after: int) -> Callable[[Encode], Encode]:
    """Break down for good after so many calls."""

    def disturb(own: Encode) -> Encode:
        calls = iter(range(after))

        def encode(images: list[np.ndarray]) -> Embeddings:
            if next(calls, None) is None:
                raise RuntimeError(BROKEN)
            return own(images)

        return encode

    return disturb


def waiting_for(event: threading.Event) -> Callable[[Encode], Encode]:
    """Wait before every call until the other device has done its part."""

    def disturb(own: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            assert event.wait(60)
            return own(images)

        return encode

    return disturb


def telling(event: threading.Event) -> Callable[[Encode], Encode]:
    """Tell that a call has come."""

    def disturb(own: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            event.set()
            return own(images)

        return encode

    return disturb


def test_two_devices_write_what_one_writes_and_both_are_asked(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = archive_of(tmp_path / "alone", 6), archive_of(tmp_path / "together", 6)
    label_archive(alone, plan_for(checkpoint, window=2))
    second_is_asked = threading.Event()
    teachers(monkeypatch, waiting_for(second_is_asked), telling(second_is_asked))
    seen: list[tuple[int, int]] = []
    summary = label_archive(together, plan_for(checkpoint, window=2, device="cpu,cpu"), progress=lambda *counts: seen.append(counts))
    assert (summary.done, summary.unfinished, summary.quarantined) == (6, 0, ())
    assert seen == [(n, 6) for n in range(7)]
    assert labels_of(together) == labels_of(alone)
    assert len(labels_of(together)) == 6
    assert not small.left_behind()


def test_each_device_gets_a_teacher_of_its_own(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = teachers(monkeypatch)
    label_archive(archive_of(tmp_path, 1), plan_for(checkpoint, device=("cpu", "cpu", "cpu")))
    assert len({id(teacher) for teacher in loaded}) == 3


def test_a_poisoned_case_is_found_among_two_devices(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 5)  # case01 alone is 21 pixels high

    def poisoned(own: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            if any(image.shape[0] == 21 for image in images):
                message = "poisoned picture"
                raise RuntimeError(message)
            return own(images)

        return encode

    teachers(monkeypatch, poisoned, poisoned)
    summary = label_archive(archive, plan_for(checkpoint, window=3, device="cpu,cpu"))
    assert (summary.done, summary.quarantined) == (4, ("case01",))


@pytest.mark.parametrize("first_breaks", [True, False], ids=["the first breaks", "the second breaks"])
@pytest.mark.parametrize("after", [0, 3], ids=["at once", "in the middle of a window"])
def test_a_device_that_breaks_down_loses_nothing(
    first_breaks: bool, after: int, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone, together = archive_of(tmp_path / "alone", 5), archive_of(tmp_path / "together", 5)
    label_archive(alone, plan_for(checkpoint, window=2))
    has_begun = threading.Event()

    def breaks(own: Encode) -> Encode:
        return telling(has_begun)(breaking(after)(own))

    order = (breaks, waiting_for(has_begun)) if first_breaks else (waiting_for(has_begun), breaks)
    teachers(monkeypatch, *order)
    summary = label_archive(together, plan_for(checkpoint, window=2, device="cpu,cpu"))
    assert (summary.done, summary.unfinished, summary.quarantined) == (5, 0, ())
    assert labels_of(together) == labels_of(alone)
    assert together.ledger.counts(STAGE)["failed"] == 0
    (told,) = [record.getMessage() for record in caplog.records if record.name == "samdistill.labels"]
    assert "illegal memory access was encountered (while asked about case0" in told
    assert "cudaErrorIllegalAddress" not in told


def test_without_a_device_left_the_run_says_so_and_no_case_is_blamed(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 6)
    teachers(monkeypatch, breaking(30), breaking(0))
    with pytest.raises(
        DeviceError, match=r"no device is left to label on, with \d cases to go\. cpu: CUDA error.*run the same command again"
    ):
        label_archive(archive, plan_for(checkpoint, window=1, device="cpu,cpu"))
    counts = archive.ledger.counts(STAGE)
    assert (counts["claimed"], counts["failed"], counts["quarantined"]) == (0, 0, 0)
    assert counts["done"] > 0
    monkeypatch.setattr(appoint, "load_teacher", load_teacher)
    assert label_archive(archive, plan_for(checkpoint)).done == 6 - counts["done"]


def test_one_device_that_breaks_down_blames_no_case_either(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 3)
    teachers(monkeypatch, breaking(0))
    with pytest.raises(DeviceError, match="with 3 cases to go"):
        label_archive(archive, plan_for(checkpoint))
    assert archive.ledger.counts(STAGE)["pending"] == 3


def test_ctrl_c_stops_every_device_and_nothing_stays_claimed(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 8, depth=20)
    second_is_asked = threading.Event()
    counted: list[int] = []

    def interrupted(_: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            assert second_is_asked.wait(60)
            raise KeyboardInterrupt

        return encode

    def counting(own: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            counted.append(len(images))
            return own(images)

        return telling(second_is_asked)(encode)

    teachers(monkeypatch, interrupted, counting)
    with pytest.raises(KeyboardInterrupt):
        label_archive(archive, plan_for(checkpoint, window=4, device="cpu,cpu"))
    assert archive.ledger.counts(STAGE)["claimed"] == 0
    assert len(counted) < 10  # of the 40 and more that its window needs
    assert not small.left_behind()


def test_an_error_in_another_device_s_thread_that_is_nobody_s_case_is_raised(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 6)
    stopped = threading.Event()

    def exiting(_: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            stopped.set()
            raise SystemExit

        return encode

    teachers(monkeypatch, waiting_for(stopped), exiting)
    with pytest.raises(SystemExit):
        label_archive(archive, plan_for(checkpoint, window=2, device="cpu,cpu"))
    assert archive.ledger.counts(STAGE)["claimed"] == 0


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_at_most_three_windows_per_device_are_in_memory(
    devices: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, window = archive_of(tmp_path, 24, depth=6), 2
    lock, alive, most = threading.Lock(), [0], [0]
    own_prepare, own_finish = label_pass.prepare_case, LabelJob.finish

    def prepare(*arguments: object, **options: object) -> CaseWork:
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return own_prepare(*arguments, **options)  # type: ignore[arg-type]

    def finish(job: LabelJob, work: CaseWork, teacher: str) -> None:
        own_finish(job, work, teacher)
        with lock:
            alive[0] -= 1

    monkeypatch.setattr(label_pass, "prepare_case", prepare)
    monkeypatch.setattr(LabelJob, "finish", finish)
    assert label_archive(archive, plan_for(checkpoint, window=window, device=devices)).done == 24
    count = len(devices.split(","))
    assert most[0] <= 3 * window * count + 2  # one in the reader's hand, one in the writer's


class Big:
    """Says that it takes 20 pictures at once."""

    def __init__(self, teacher: SamTeacher) -> None:
        self.teacher = teacher
        self.call_sizes = SimpleNamespace(pictures=20)


def test_a_window_holds_enough_slices_to_fill_a_call(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 6, depth=8)  # 8, 9, 10, 8, 9, 10 slices
    job = LabelJob(archive=archive, plan=plan_for(checkpoint, window=1), stage=STAGE)
    one_pass = label_pass._Pass(job, [Station(device="cpu", teacher=load_teacher(checkpoint, device="cpu"))])
    prompts = archive.catalog.prompts_by_case([record.id for record in archive.cases()])
    works = [
        label_pass.prepare_case(archive, record, prompts[record.id], classes=[1], intensity=job.plan.intensity)
        for record in archive.cases()
    ]

    def windows(teacher: object) -> list[int]:
        one_pass.loaded.maxsize = 0
        for work in (*works, None):
            one_pass.loaded.put(work)
        return [len(window) for window in one_pass._windows(teacher)]  # type: ignore[arg-type]

    assert windows(one_pass.stations[0].teacher) == [1] * 6
    assert windows(Big(one_pass.stations[0].teacher)) == [3, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "said"),
    [("gpu", "device names 'gpu', which is no device"), ("cuda:7", "device cuda:7 is not here"), (["cpu", "auto"], "auto beside others")],
    ids=str,
)
def test_a_device_that_cannot_be_used_is_refused_before_anything_is_loaded(
    device: str | Sequence[str], said: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = teachers(monkeypatch)
    archive = archive_of(tmp_path, 1)
    with pytest.raises(PlanError, match=said):
        label_archive(archive, plan_for(checkpoint, device=device))
    assert loaded == []
    assert archive.ledger.counts(STAGE)["claimed"] == 0


def test_every_device_is_asked_with_as_many_threads_as_the_caller_has(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_asked = threading.Event()
    threads: list[int] = []

    def noting(own: Encode) -> Encode:
        def encode(images: list[np.ndarray]) -> Embeddings:
            threads.append(torch.get_num_threads())
            return own(images)

        return encode

    teachers(monkeypatch, lambda own: waiting_for(second_is_asked)(noting(own)), lambda own: noting(telling(second_is_asked)(own)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    another = threading.Thread(target=torch.set_num_threads, args=(1,))  # of a crew that is being made, or of the user's program
    another.start()
    another.join()
    try:
        label_archive(archive_of(tmp_path, 4), plan_for(checkpoint, window=2, device="cpu,cpu"))
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {2}
