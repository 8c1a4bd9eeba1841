"""When memory runs out, batches shrink and nothing that was computed is lost."""

from pathlib import Path

import pytest
import torch

from distill.teachers import batching
from distill.teachers.batching import BatchSize, Footprint, OutOfMemoryError, fit, footprint, free_memory, in_batches

REFUSALS = [
    pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), id="CUDA"),
    pytest.param(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), id="CPU"),
    pytest.param(MemoryError(), id="numpy"),
]


class Worker:
    """Squares numbers, refusing slices that are too long, and remembers what it was asked."""

    def __init__(self, fits: int, refusal: BaseException) -> None:
        self.fits, self.refusal = fits, refusal
        self.asked: list[tuple[int, int]] = []

    def __call__(self, some: slice) -> list[int]:
        self.asked.append((some.start, some.stop))
        if some.stop - some.start > self.fits:
            raise self.refusal
        return [n * n for n in range(some.start, some.stop)]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(refusal: BaseException) -> None:
    worker, batch = Worker(3, refusal), BatchSize(8)
    parts = in_batches(worker, 10, batch)
    assert [n for part in parts for n in part] == [n * n for n in range(10)]
    assert worker.asked[:4] == [(0, 8), (0, 4), (0, 2), (2, 4)]
    assert batch.size == 2


def test_what_was_computed_before_memory_ran_out_is_not_computed_again() -> None:
    class Tightening(Worker):
        def __call__(self, some: slice) -> list[int]:
            self.fits = 4 if some.start < 4 else 1
            return super().__call__(some)

    worker, batch = Tightening(4, MemoryError()), BatchSize(4)
    parts = in_batches(worker, 8, batch)
    assert [n for part in parts for n in part] == [n * n for n in range(8)]
    assert sum(asked == (0, 4) for asked in worker.asked) == 1
    assert batch.size == 1


def test_the_smaller_size_is_remembered_for_the_next_call() -> None:
    worker, batch = Worker(2, MemoryError()), BatchSize(8)
    in_batches(worker, 4, batch)
    worker.asked.clear()
    in_batches(worker, 4, batch)
    assert worker.asked == [(0, 2), (2, 4)]


def test_one_item_that_does_not_fit_is_an_error_with_a_way_out() -> None:
    with pytest.raises(OutOfMemoryError, match=r"one of the pictures at a time: CUDA out of memory.*precision bf16"):
        in_batches(Worker(0, torch.OutOfMemoryError("CUDA out of memory.")), 4, BatchSize(4, "pictures"))


def test_another_error_is_passed_on_at_once() -> None:
    worker = Worker(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        in_batches(worker, 4, BatchSize(4))
    assert len(worker.asked) == 1


def test_the_size_follows_free_memory_in_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda _: 1000)
    cpu = torch.device("cpu")

    def size(fixed: int, each: int, ceiling: int) -> int:
        return BatchSize.from_memory(Footprint(fixed_bytes=fixed, bytes_each=each), ceiling, cpu).size

    assert size(0, 100, 64) == 4  # 600 may be used: six fit
    assert size(250, 100, 64) == 2  # three fit beside what every call takes
    assert size(0, 100, 2) == 2
    assert size(0, 5000, 64) == 1
    assert size(700, 100, 64) == 1


class Gpu:
    """Stands in for what ``torch.cuda`` says of a GPU's memory: a call takes ``fixed + each * items``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fixed: int, each: int, size: int) -> None:
        self.fixed, self.each, self.size = fixed, each, size
        self.peak, self.asked = 0, list[int]()
        monkeypatch.setattr(batching, "free_memory", lambda _: size)
        stands_in = {
            "synchronize": lambda _: None,
            "reset_peak_memory_stats": lambda _: setattr(self, "peak", 77),
            "memory_allocated": lambda _: 77,
            "max_memory_allocated": lambda _: self.peak,
        }
        for name, call in stands_in.items():
            monkeypatch.setattr(torch.cuda, name, call)

    def compute(self, items: int) -> None:
        self.asked.append(items)
        needs = self.fixed + self.each * items
        if needs > self.size:
            message = "CUDA out of memory."
            raise torch.OutOfMemoryError(message)
        self.peak = max(self.peak, 77 + needs)


def test_what_an_item_costs_is_told_from_what_every_call_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, fixed=300, each=40, size=10**6)
    assert footprint(gpu.compute, torch.device("cuda")) == Footprint(fixed_bytes=300, bytes_each=40)


def test_a_gpu_gets_the_batch_that_its_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, fixed=300, each=40, size=2000)
    assert fit(gpu.compute, torch.device("cuda"), usual=8, most=64, what="pictures").size == 16  # (1200 - 300) / 40 = 22
    assert fit(gpu.compute, torch.device("cuda"), usual=8, most=4, what="pictures").size == 4


def test_a_gpu_on_which_not_even_a_few_fit_is_given_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, fixed=300, each=500, size=2000)
    assert fit(gpu.compute, torch.device("cuda"), usual=8, most=64, what="pictures").size == 1


def test_another_fault_of_the_measurement_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(monkeypatch, fixed=0, each=1, size=2000)

    def broken(_: int) -> None:
        message = "CUDA error: an illegal memory access was encountered"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        fit(broken, torch.device("cuda"), usual=8, most=64, what="pictures")


def test_a_cpu_gets_the_usual_batch_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, fixed=300, each=40, size=2000)
    assert fit(gpu.compute, torch.device("cpu"), usual=8, most=64, what="pictures").size == 8
    assert gpu.asked == []


def test_a_container_s_limit_counts_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CGROUP", tmp_path)
    unlimited = free_memory(torch.device("cpu"))
    assert unlimited > 2**20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_memory(torch.device("cpu")) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",  # of page-locked memory, which PyTorch's allocator does not count
    ],
)
def test_a_library_of_cuda_that_cannot_allocate_means_out_of_memory(text: str) -> None:
    assert batching.ran_out(RuntimeError(text))
