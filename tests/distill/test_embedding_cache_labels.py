"""Labels are the same with a cache and without, and a cache that rounds says so in them."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distill.embedding_store import EmbeddingCache, EmbeddingCachePlan, Storage
from distill.engine import label_archive
from distill.wavefront import AskSettings
from storage import Archive

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_archive.py"))))  # tests are no package
archive_of = small.archive_of


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def label(archive: Archive, checkpoint: str, storage: Storage | None = None) -> int:
    folder = str(Path(checkpoint).with_name("embeddings"))
    cache = None if storage is None else EmbeddingCachePlan(folder=folder, budget_bytes=10**8, storage=storage)
    plan = small.plan_for(checkpoint, ask=AskSettings(boxes=1, planes="axial"), embedding_cache=cache)
    return label_archive(archive, plan).done


def test_labels_without_a_cache_with_an_empty_one_and_with_a_full_one_are_the_same(tmp_path: Path, checkpoint: str) -> None:
    without, filling, reading = (archive_of(tmp_path / name, 1) for name in ("without", "filling", "reading"))
    label(without, checkpoint)
    label(filling, checkpoint, "fp32")
    kept = EmbeddingCache(EmbeddingCachePlan(folder=str(tmp_path / "embeddings"), budget_bytes=10**8)).keys()
    assert kept
    label(reading, checkpoint, "fp32")
    found = [archive["case00"].labels("teacher/r1") for archive in (without, filling, reading)]
    assert found[0].history == found[1].history == found[2].history
    for each in found[1:]:
        assert np.array_equal(np.asarray(each.probability), np.asarray(found[0].probability))
    assert label(without, checkpoint, "fp32") == 0


def test_a_cache_that_rounds_makes_labels_of_its_own_and_their_history_says_so(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path / "archive", 1)
    label(archive, checkpoint)
    assert label(archive, checkpoint, "fp16") == 1
    assert archive["case00"].labels("teacher/r1").history.parameters["embedding_storage"] == "fp16"
    assert label(archive, checkpoint, "fp16") == 0


def test_a_full_disk_under_the_cache_quarantines_no_case(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path / "full", 1)
    monkeypatch.setattr(EmbeddingCache, "_write", _full_disk)
    label(archive, checkpoint, "fp32")
    assert archive.ledger.quarantined("label:teacher/r1") == []
    assert archive.ledger.counts("label:teacher/r1")["done"] == len(archive.cases())
