"""The folder of embeddings holds its budget, shares well, and forgets what is torn."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import zarr
from zarr.storage import LocalStore

from distill.embedding_store import EmbeddingCache, EmbeddingCachePlan, Entry, Storage
from distill.errors import PlanError

ENTRY_BYTES = 32 * 8 * 8 * 4
"""fp32 features (32, 8, 8) of the small teacher."""


def cache_in(folder: Path, entries: int = 100, storage: Storage = "fp32") -> EmbeddingCache:
    return EmbeddingCache(EmbeddingCachePlan(folder=str(folder), budget_bytes=entries * ENTRY_BYTES, storage=storage))


def entry(value: float) -> Entry:
    facts = {"sizes_px": (5, 7), "input_sizes_px": (46, 64), "dtype": "float32", "channels_last": False}
    return Entry(torch.full((32, 8, 8), float(value)), facts)


def key(n: int) -> str:
    return f"{n:032x}"


def folder_of(cache: EmbeddingCache, n: int) -> Path:
    return cache._place(key(n))


def test_what_was_not_used_for_longest_goes_first_and_the_budget_holds(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, entries=3)
    for n in (1, 2, 3):
        cache.put({key(n): entry(n)})
    cache.get([key(1)])
    cache.put({key(4): entry(4)})
    assert cache.keys() == [key(3), key(1), key(4)]
    assert cache.size_bytes() == 3 * ENTRY_BYTES
    assert not folder_of(cache, 2).exists()
    cache.put({key(n): entry(n) for n in range(5, 12)})
    assert cache.size_bytes() <= cache.plan.budget_bytes
    assert sum(f.stat().st_size for f in tmp_path.rglob("c/*/*/*")) <= cache.plan.budget_bytes + 3 * 4  # a checksum each


def test_an_array_without_its_row_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(cache, "_index", lambda: (_ for _ in ()).throw(KeyboardInterrupt))  # killed between array and row
        with pytest.raises(KeyboardInterrupt):
            cache.put({key(1): entry(1)})
    assert folder_of(cache, 1).exists()
    assert cache.get([key(1)]) == {}
    cache.put({key(1): entry(1)})
    assert torch.equal(cache.get([key(1)])[key(1)].features, entry(1).features)


def test_what_killed_processes_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put({key(1): entry(1)})
    old, young, rowless = tmp_path / "new-old", tmp_path / "new-young", tmp_path / "00" / key(2)
    for stray in (old, young, rowless):
        stray.mkdir()
    for aged in (old, rowless, folder_of(cache, 1)):
        os.utime(aged, (time.time() - 3600,) * 2)
    again = cache_in(tmp_path)
    assert not old.exists()
    assert not rowless.exists()
    assert young.exists()
    assert list(again.get([key(1)])) == [key(1)]


FILL = """
import sys, torch
from distill.embedding_store import EmbeddingCache, EmbeddingCachePlan, Entry
folder, first, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = EmbeddingCache(EmbeddingCachePlan(folder=folder, budget_bytes=6 * size))
facts = {"sizes_px": (5, 7), "input_sizes_px": (46, 64), "dtype": "float32", "channels_last": False}
for n in range(first, first + 20):
    cache.put({f"{n:032x}": Entry(torch.full((32, 8, 8), float(n)), facts)})
    for name, kept in cache.get([f"{n:032x}", f"{n - 1:032x}", f"{n + 2:032x}"]).items():
        assert float(kept.features[0, 0, 0]) == int(name, 16), name
"""


def test_several_processes_share_one_budget_and_never_read_each_others_values(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    workers = [
        subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path), str(first), str(ENTRY_BYTES)], env=environment) for first in (1, 4)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    cache = cache_in(tmp_path, entries=6)
    assert 0 < cache.size_bytes() <= 6 * ENTRY_BYTES
    assert all(float(kept.features[0, 0, 0]) == int(name, 16) for name, kept in cache.get(cache.keys()).items())


@pytest.mark.parametrize("wrong", [{"budget_bytes": 0}, {"budget_bytes": 5, "storage": "int8"}])
def test_a_plan_that_holds_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="needs a budget above zero"):
        EmbeddingCachePlan(folder="x", **wrong)  # type: ignore[arg-type]


def test_a_write_that_fails_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(tmp_path)

    def half_written(store: LocalStore, **_: object) -> None:
        Path(store.root).mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr, "create_array", half_written)
    with pytest.raises(OSError, match="No space left"):
        cache.put({key(1): entry(1)})
    assert not list(tmp_path.glob("new-*"))
