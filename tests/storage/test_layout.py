"""How arrays are cut."""

from math import ceil, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.layout import SHARD_ZYX, SINGLE_CHUNK_BYTES, choose_layout

sizes = st.integers(1, 3000)


def test_a_clinical_ct_is_cut_as_measured() -> None:
    layout = choose_layout((1, 192, 512, 512), np.dtype("int16"))
    assert layout.chunks == (1, 2, 128, 128)
    assert layout.shards == (1, 64, 512, 512)


def test_a_small_crop_is_one_chunk_without_an_index() -> None:
    layout = choose_layout((1, 35, 51, 35), np.dtype("int16"))
    assert layout.chunks == (1, 35, 51, 35)
    assert layout.shards is None


@given(zyx=st.tuples(sizes, sizes, sizes), channels=st.integers(1, 4), dtype=st.sampled_from(["uint8", "int16", "float32"]))
def test_shards_are_whole_chunks_and_little_is_padding(zyx: tuple[int, int, int], channels: int, dtype: str) -> None:
    layout = choose_layout((channels, *zyx), np.dtype(dtype))
    if layout.shards is None:
        assert prod(zyx) * np.dtype(dtype).itemsize <= SINGLE_CHUNK_BYTES
        return
    for size, chunk, shard, largest in zip(zyx, layout.chunks[1:], layout.shards[1:], SHARD_ZYX, strict=True):
        assert shard % chunk == 0
        assert chunk <= size
        assert shard < largest + chunk
        padding = ceil(size / chunk) * chunk - size
        assert padding < ceil(size / chunk)


@pytest.mark.parametrize("size", [127, 129, 130, 191])
def test_a_size_just_beside_the_aim_is_not_cut_into_a_sliver(size: int) -> None:
    assert choose_layout((1, 100, size, 512), np.dtype("int16")).chunks[2] == size
