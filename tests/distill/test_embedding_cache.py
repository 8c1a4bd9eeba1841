"""A cached embedding is the encoder's own, and whatever is torn is asked again."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import embedding_cache
from distill.embedding_cache import CachedTeacher
from distill.embedding_store import EmbeddingCache, EmbeddingCachePlan, Storage
from distill.teachers.base import CallSizes, Embeddings, PromptBatch, Teacher, TeacherProfile
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.sam import SamTeacher

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


class CountingStranger(Counting):
    """Does not say that it encodes each picture as if it were alone."""

    @property
    def call_sizes(self) -> CallSizes:
        return CallSizes()


@pytest.mark.parametrize(("kind", "calls"), [(Counting, [2, 1]), (CountingStranger, [2, 4])], ids=["ours", "a stranger"])
def test_missing_pictures_of_strangers_are_padded_to_the_size_of_the_call_so_that_bits_do_not_depend_on_the_cache(
    kind: type[Counting], calls: list[int], tmp_path: Path
) -> None:
    teacher = kind()
    cached = CachedTeacher(teacher, cache_in(tmp_path))
    cached.encode(pictures(1, 2))
    found = cached.encode(pictures(1, 5, 2, 5))
    assert teacher.calls == calls
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
