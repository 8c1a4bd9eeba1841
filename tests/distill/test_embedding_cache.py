"""A cached embedding is the encoder's own, the budget holds, and whatever is torn is asked again."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import LocalStore

from distill import embedding_cache
from distill.embedding_cache import CachedTeacher, EmbeddingCache, EmbeddingCachePlan, Entry, Storage
from distill.engine import LabelPlan, label_archive
from distill.errors import PlanError
from distill.teachers.base import Embeddings, PromptBatch, Teacher, TeacherProfile
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from distill.teachers.sam import SamTeacher
from distill.wavefront import AskSettings
from storage import Archive, CaseRecord, ClassInfo, Geometry, Prompt

SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)
ENTRY_BYTES = 32 * 8 * 8 * 4
"""fp32 features (32, 8, 8) of the small teacher."""


class Counting(SamTeacher):
    """Remembers how many pictures each call of the encoder got."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(build_conv_sam(SMALL), TeacherProfile(name="samdistill-conv", image_size=64), f"random-{seed}", device="cpu")
        self.calls: list[int] = []

    def encode(self, images: Sequence[np.ndarray]) -> Embeddings:
        self.calls.append(len(images))
        return super().encode(images)


def pictures(*seeds: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (40 + seed, 60, 3), dtype=np.uint8) for seed in seeds]


def cache_in(folder: Path, entries: int = 100, storage: Storage = "fp32") -> EmbeddingCache:
    return EmbeddingCache(EmbeddingCachePlan(folder=str(folder), budget_bytes=entries * ENTRY_BYTES, storage=storage))


def entry(value: float) -> Entry:
    facts = {"sizes_px": (5, 7), "input_sizes_px": (46, 64), "dtype": "float32", "channels_last": False}
    return Entry(torch.full((32, 8, 8), float(value)), facts)


def key(n: int) -> str:
    return f"{n:032x}"


def folder_of(cache: EmbeddingCache, n: int) -> Path:
    return cache._place(key(n))


def test_a_hit_equals_a_miss_bit_for_bit_and_both_equal_the_teacher(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    own = teacher.encode(pictures(1, 2, 3))
    miss, hit = cached.encode(pictures(1, 2, 3)), cached.encode(pictures(1, 2, 3))
    assert teacher.calls == [3, 3]
    assert (cached.hits, cached.misses) == (3, 3)
    for found in (miss, hit):
        assert torch.equal(found.features, own.features)
        assert found.features.stride() == own.features.stride()
        assert (found.sizes_px, found.input_sizes_px) == (own.sizes_px, own.input_sizes_px)


def test_another_process_finds_what_this_one_kept(tmp_path: Path) -> None:
    first = CachedTeacher(Counting(), cache_in(tmp_path)).encode(pictures(1))
    teacher = Counting()
    assert torch.equal(CachedTeacher(teacher, cache_in(tmp_path)).encode(pictures(1)).features, first.features)
    assert teacher.calls == []


def test_missing_pictures_are_padded_to_the_size_of_the_call_so_that_bits_do_not_depend_on_the_cache(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    cached.encode(pictures(1, 2))
    found = cached.encode(pictures(1, 5, 2, 5))
    assert teacher.calls == [2, 4]
    assert torch.equal(found.features[1], found.features[3])
    assert found.sizes_px == ((41, 60), (45, 60), (42, 60), (45, 60))


def test_the_decoder_answers_as_without_a_cache(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    cached.encode(pictures(1))
    batch = PromptBatch(image_index=np.array([0]), boxes_xyxy_px=np.array([[5, 6, 30, 31]], np.float32))
    ours, own = cached.decode(cached.encode(pictures(1)), batch), teacher.decode(teacher.encode(pictures(1)), batch)
    assert torch.equal(ours.low_res_logits, own.low_res_logits)
    assert np.array_equal(
        cached.predict(pictures(1)[0], boxes=[[5, 6, 30, 31]]).logits, teacher.predict(pictures(1)[0], boxes=[[5, 6, 30, 31]]).logits
    )
    assert np.array_equal(cached.mask_prompt(np.eye(41, 60), (44, 64)), teacher.mask_prompt(np.eye(41, 60), (44, 64)))


def test_it_is_a_teacher_and_shows_what_else_the_one_inside_has(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    assert isinstance(cached, Teacher)
    assert cached.fingerprint == "random-0"
    assert cached.sam is teacher.sam
    with pytest.raises(AttributeError):
        cached.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize(("storage", "digits"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_a_storage_that_rounds_rounds_misses_like_hits_and_by_no_more_than_its_digits(
    tmp_path: Path, storage: Storage, digits: float
) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path, storage=storage))
    miss, hit, own = cached.encode(pictures(1)), cached.encode(pictures(1)), teacher.encode(pictures(1))
    assert torch.equal(miss.features, hit.features)
    assert hit.features.dtype == own.features.dtype
    assert not torch.equal(hit.features, own.features)
    assert torch.allclose(hit.features, own.features, rtol=digits, atol=1e-6)
    assert cached.cache.size_bytes() == ENTRY_BYTES // 2


def test_two_teachers_and_two_storages_do_not_mix(tmp_path: Path) -> None:
    first, second = Counting(0), Counting(1)
    cache = cache_in(tmp_path)
    CachedTeacher(first, cache).encode(pictures(1))
    found = CachedTeacher(second, cache).encode(pictures(1))
    assert second.calls == [1]
    assert torch.equal(found.features, second.encode(pictures(1)).features)
    third = Counting(0)
    CachedTeacher(third, cache_in(tmp_path, storage="fp16")).encode(pictures(1))
    assert third.calls == [1]
    assert len(cache.keys()) == 3


def test_another_version_of_the_encoder_s_code_does_not_find_older_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Counting(), Counting()
    CachedTeacher(first, cache_in(tmp_path)).encode(pictures(1))
    monkeypatch.setattr(embedding_cache, "ENCODING", embedding_cache.ENCODING + 1)
    CachedTeacher(second, cache_in(tmp_path)).encode(pictures(1))
    assert second.calls == [1]


def test_a_precision_of_its_own_has_entries_of_its_own(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    first.precision, second.precision = "fp32", "bf16"
    CachedTeacher(first, cache_in(tmp_path)).encode(pictures(1))
    CachedTeacher(second, cache_in(tmp_path)).encode(pictures(1))
    assert second.calls == [1]


def test_one_pixel_makes_another_picture(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    (picture,) = pictures(1)
    cached.encode([picture])
    changed = picture.copy()
    changed[0, 0, 0] ^= 1
    cached.encode([changed])
    assert teacher.calls == [1, 1]


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


def test_an_entry_that_is_larger_than_the_budget_is_not_kept_and_still_answers(tmp_path: Path) -> None:
    teacher = Counting()
    cache = EmbeddingCache(EmbeddingCachePlan(folder=str(tmp_path), budget_bytes=ENTRY_BYTES - 1))
    found = CachedTeacher(teacher, cache).encode(pictures(1))
    assert cache.keys() == []
    assert torch.equal(found.features, teacher.encode(pictures(1)).features)


def _no_chunk(place: Path) -> None:
    shutil.rmtree(place / "c")


def _half_a_chunk(place: Path) -> None:
    (chunk,) = [found for found in (place / "c").rglob("*") if found.is_file()]
    os.truncate(chunk, chunk.stat().st_size // 2)


def _a_flipped_bit(place: Path) -> None:
    (chunk,) = [found for found in (place / "c").rglob("*") if found.is_file()]
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)


def _no_metadata(place: Path) -> None:
    (place / "zarr.json").unlink()


def _half_the_metadata(place: Path) -> None:
    os.truncate(place / "zarr.json", 50)


@pytest.mark.parametrize("damage", [shutil.rmtree, _no_chunk, _half_a_chunk, _a_flipped_bit, _no_metadata, _half_the_metadata])
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_a_torn_entry_is_a_miss_and_is_written_again(tmp_path: Path, damage: object, storage: Storage) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path, storage=storage))
    whole = cached.encode(pictures(1))
    (kept,) = cached.cache.keys()
    damage(cached.cache._place(kept))  # type: ignore[operator]
    assert torch.equal(cached.encode(pictures(1)).features, whole.features)
    assert teacher.calls == [1, 1]
    cached.encode(pictures(1))
    assert teacher.calls == [1, 1]


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
from distill.embedding_cache import EmbeddingCache, EmbeddingCachePlan, Entry
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


# Through the engine


def archive_in(folder: Path) -> Archive:
    folder.mkdir()
    made = Archive.create(str(folder / "a.zarr"))
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    shape = (1, 6, 20, 26)
    record = CaseRecord(
        id="one",
        patient="p",
        shape_czyx=shape,
        dtype="int16",
        modality="MR",
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=affine),
    )
    made.add_case(record, np.random.default_rng(0).integers(0, 900, shape, dtype=np.int16))
    made.catalog.add_prompts([Prompt(case="one", class_id=1, kind="box", slice=2, box_xyxy_px=(5, 4, 18, 15))])
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    write_teacher(path, build_conv_sam(SMALL), SMALL, PretrainPlan(data=tmp_path, out=path), 0)
    return str(path)


def label(archive: Archive, checkpoint: str, storage: Storage | None = None) -> int:
    folder = str(Path(checkpoint).with_name("embeddings"))
    cache = None if storage is None else EmbeddingCachePlan(folder=folder, budget_bytes=10**8, storage=storage)
    plan = LabelPlan(
        classes=(ClassInfo(id=1, name="a"),),
        teacher=checkpoint,
        device="cpu",
        ask=AskSettings(boxes=1, planes="axial"),
        embedding_cache=cache,
    )
    return label_archive(archive, plan).done


def test_labels_without_a_cache_with_an_empty_one_and_with_a_full_one_are_the_same(tmp_path: Path, checkpoint: str) -> None:
    without, filling, reading = (archive_in(tmp_path / name) for name in ("without", "filling", "reading"))
    label(without, checkpoint)
    label(filling, checkpoint, "fp32")
    kept = EmbeddingCache(EmbeddingCachePlan(folder=str(tmp_path / "embeddings"), budget_bytes=10**8)).keys()
    assert kept
    label(reading, checkpoint, "fp32")
    found = [archive["one"].labels("teacher/r1") for archive in (without, filling, reading)]
    assert found[0].history == found[1].history == found[2].history
    for each in found[1:]:
        assert np.array_equal(np.asarray(each.probability), np.asarray(found[0].probability))
    assert label(without, checkpoint, "fp32") == 0


def test_a_cache_that_rounds_makes_labels_of_its_own_and_their_history_says_so(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_in(tmp_path / "archive")
    label(archive, checkpoint)
    assert label(archive, checkpoint, "fp16") == 1
    assert archive["one"].labels("teacher/r1").history.parameters["embedding_storage"] == "fp16"
    assert label(archive, checkpoint, "fp16") == 0


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def _damaged_index(*_: object, **__: object) -> None:
    message = "database disk image is malformed"
    raise sqlite3.DatabaseError(message)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        pytest.param("put", _full_disk, id="a full disk"),
        pytest.param("get", _damaged_index, id="a damaged index"),
        pytest.param("put", _damaged_index, id="an index that cannot be written"),
    ],
)
def test_a_cache_that_fails_is_told_once_and_the_teacher_goes_on_without_it(
    where: str, fault: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    monkeypatch.setattr(cached.cache, where, fault)
    own = teacher.encode(pictures(1, 2))
    for _ in range(2):
        assert torch.equal(cached.encode(pictures(1, 2)).features, own.features)
    assert teacher.calls == [2, 2, 2]
    (told,) = [record.getMessage() for record in caplog.records if record.name == "samdistill.embeddings"]
    assert str(tmp_path) in told
    assert "Make room there" in told


def test_a_write_that_fails_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_in(tmp_path)

    def half_written(store: LocalStore, **_: object) -> None:
        Path(store.root).mkdir(parents=True)
        _full_disk()

    monkeypatch.setattr(zarr, "create_array", half_written)
    with pytest.raises(OSError, match="No space left"):
        cache.put({key(1): entry(1)})
    assert not list(tmp_path.glob("new-*"))


def test_a_full_disk_under_the_cache_quarantines_no_case(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_in(tmp_path / "full")
    monkeypatch.setattr(EmbeddingCache, "_write", _full_disk)
    label(archive, checkpoint, "fp32")
    assert archive.ledger.quarantined("label:teacher/r1") == []
    assert archive.ledger.counts("label:teacher/r1")["done"] == len(archive.cases())
