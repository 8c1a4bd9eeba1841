"""Run-length codes are COCO's, and undo themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import rle

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(mask=MASKS)
def test_decoding_undoes_encoding(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    assert np.array_equal(rle.decode(rle.encode(mask), size), mask)
    assert np.array_equal(rle.decode(rle.counts_of(mask), size), mask)


@given(counts=st.lists(st.integers(0, 10**7), max_size=30))
def test_the_string_keeps_every_count(counts: list[int]) -> None:
    assert rle.decompress(rle.compress(counts)) == counts


def test_runs_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    assert rle.counts_of(mask) == [0, 2, 1, 1, 2]


def test_a_known_string_of_the_coco_tools_reads_as_they_read_it() -> None:
    # pycocotools 2.0.11: mask.encode of a 9 x 10 image with ones in rows 2 to 4, columns 3 to 6
    mask = np.zeros((9, 10), dtype=bool)
    mask[2:5, 3:7] = True
    assert rle.encode(mask) == "m03600000i0"
    assert np.array_equal(rle.decode("m03600000i0", (9, 10)), mask)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        pytest.param([3, 4], "the runs cover 7 pixels", id="too few pixels"),
        pytest.param([-1, 13], "the runs cover", id="negative run"),
        pytest.param("\n", "no character of a run-length code", id="foreign character"),
        pytest.param("P", "ends in the middle", id="cut off"),
        pytest.param([10**30], "the runs cover far too many pixels", id="a run of more than 64 bits"),
        pytest.param([2**62, 2**62, 2**62, 2**62 + 12], "the runs cover far too many pixels", id="runs whose sum is right modulo 2 ** 64"),
        pytest.param([10**400], "the runs cover far too many pixels", id="a run beyond floats"),
        pytest.param("o" * 60 + "0", "a run that is longer than any image", id="a long run as text"),
    ],
)
def test_damaged_codes_are_refused(code: str | list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode(code, (3, 4))
