"""A volume becomes disjoint pieces that keep their number from slice to slice."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.intensity import choose_window
from distill.prompts.everything_options import GridOptions
from distill.prompts.sources import Subject
from distill.supervoxels import disjoint, linked, supervoxels
from storage import CaseRecord, Geometry

PROMPTS = Path(__file__).parent / "prompts"
PointingTeacher = runpy.run_path(str(PROMPTS / "pointing_teacher.py"))["PointingTeacher"]
RAS = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def moving_squares() -> Subject:
    """Return a square that drifts by a pixel per slice, and one that is on the last slice only."""
    volume = np.full((1, 4, 40, 60), 10, np.uint8)
    for z in range(4):
        volume[0, z, 10:26, 5 + z : 21 + z] = 100
    volume[0, 3, 10:26, 40:56] = 200
    record = CaseRecord(
        id="c",
        patient="p",
        shape_czyx=volume.shape,
        dtype="uint8",
        modality="other",
        geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=RAS),
    )
    return Subject(record=record, volume_czyx=volume, window=choose_window(record, volume), classes=())


def test_a_drifting_object_keeps_its_number_and_a_new_one_gets_another() -> None:
    found = supervoxels(PointingTeacher(), moving_squares(), GridOptions())
    assert found.dtype == np.uint16
    drifting = [int(found[z, 18, 13]) for z in range(4)]
    assert len(set(drifting)) == 1
    assert drifting[0] > 0
    assert found[3, 18, 48] not in {0, drifting[0]}
    assert (found[:, 0] == 0).all()


def test_smaller_masks_lie_on_larger_ones() -> None:
    from distill.automatic import Candidate

    def square(low: int, high: int) -> Candidate:
        mask = np.zeros((20, 30), bool)
        mask[low:high, low:high] = True
        return Candidate(
            mask=mask,
            box_xyxy_px=(low, low, high, high),
            area_px=int(mask.sum()),
            predicted_iou=1.0,
            stability=1.0,
            point_xy_px=(0.0, 0.0),
            crop_xyxy_px=(0, 0, 30, 20),
        )

    painted = disjoint([square(5, 8), square(2, 15)], (20, 30))
    assert (painted[6, 6], painted[3, 3], painted[0, 0]) == (2, 1, 0)


@pytest.mark.parametrize(("shift", "same"), [pytest.param(2, True, id="overlapping"), pytest.param(9, False, id="elsewhere")])
def test_pieces_go_on_where_they_share_half_of_their_union(shift: int, same: bool) -> None:
    before = np.zeros((12, 40), np.uint32)
    before[2:10, 4:14] = 7
    here = (np.roll(before, shift, axis=1) > 0).astype(np.uint32)
    numbers, last = linked(before, here, 7)
    assert int(numbers.max()) == (7 if same else 8)
    assert last == (7 if same else 8)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_linking_renames_pieces_and_never_joins_or_splits_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, here = (disjoint_numbers(rng.integers(0, 5, (9, 11))) for _ in range(2))
    numbers, last = linked(before, here, int(before.max()))
    pairs = {(int(a), int(b)) for a, b in zip(here.reshape(-1), numbers.reshape(-1), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert numbers.max() <= last
    assert ((numbers == 0) == (here == 0)).all()


def disjoint_numbers(labels: np.ndarray) -> np.ndarray:
    """Number the values that occur from 1 on; 0 stays."""
    names = {value: n for n, value in enumerate(sorted(set(labels[labels > 0].tolist())), start=1)}
    return np.vectorize(lambda value: names.get(value, 0), otypes=[np.uint32])(labels)
