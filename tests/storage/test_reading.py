"""Parts of sharded arrays are read by the fast codecs, whatever is asked for."""

from pathlib import Path

import numpy as np
import pytest
from zarr.core.codec_pipeline import BatchedCodecPipeline

from storage import Archive, Case, CaseRecord, Geometry

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SHAPE = (2, 70, 130, 140)
"""Two channels, and more slices than a shard holds: four shards."""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    record = CaseRecord(
        id="c", patient="p", shape_czyx=SHAPE, dtype="int16", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    )
    return archive.add_case(record, pixels())


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)


def test_slices_blocks_and_patches_over_several_shards_never_fall_back_to_slow_codecs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        pytest.fail("zarr-python's own codecs were asked")

    monkeypatch.setattr(BatchedCodecPipeline, "read", slow)
    assert np.array_equal(case.read_slice(66), pixels()[:, 66])
    assert np.array_equal(case.read_block(60, 68), pixels()[:, 60:68])
    assert np.array_equal(case.image[0:1, 3:69, 5:133, 7:135], pixels()[0:1, 3:69, 5:133, 7:135])
    assert np.array_equal(case.read(), pixels())


def test_slices_count_from_either_end_and_there_are_no_others(case: Case) -> None:
    assert np.array_equal(case.read_slice(-1), pixels()[:, 69])
    for z in (70, -71):
        with pytest.raises(IndexError):
            case.read_slice(z)
