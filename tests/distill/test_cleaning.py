"""Which pieces of a mask stay, which holes are filled, and what intensity says about an edge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from distill.cleaning import ClassRule, clean_mask, filled, mend_edges, part, rectify_edges, weigh_edges

SHAPE = (5, 12, 14)
TWO_MM = (2.0, 2.0, 2.0)


def pieces() -> np.ndarray:
    """A piece of 48 voxels, one of 12, and one of a single voxel."""
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 1:5, 1:5] = True
    mask[1:4, 8:10, 8:10] = True
    mask[0, 11, 13] = True
    return mask


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        pytest.param(ClassRule(), 48, id="the largest"),
        pytest.param(ClassRule(piece_gap_mm=30), 48, id="the largest, as the next one is further away than half of its own width"),
        pytest.param(ClassRule(components=2), 60, id="the two largest"),
        pytest.param(ClassRule(largest_component=False), 61, id="all"),
        pytest.param(ClassRule(largest_component=False, least_px=2), 60, id="all of at least two voxels"),
        pytest.param(ClassRule(largest_component=False, least_mm3=100), 48, id="all of at least 100 mm3, 8 to a voxel"),
        pytest.param(ClassRule(components=2, least_mm3=500), 0, id="none is large enough"),
    ],
)
def test_pieces_stay_by_size_and_number(rule: ClassRule, kept: int) -> None:
    assert clean_mask(pieces(), rule, TWO_MM).sum() == kept


def broken(gap: int, piece: int = 12) -> np.ndarray:
    """A rod of 5 x 5 voxels, 24 long, a gap, another of ``piece`` voxels' length, and a speck in line with them."""
    mask = np.zeros((5, 7, 60), bool)
    mask[:, 1:6, :24] = True
    mask[:, 1:6, 24 + gap : 24 + gap + piece] = True
    mask[2, 3, 59] = True
    return mask


@pytest.mark.parametrize(
    ("gap", "piece", "spacing", "stays"),
    [
        pytest.param(3, 12, (1.0, 1.0, 1.0), True, id="4 mm between centres"),
        pytest.param(4, 12, (1.0, 1.0, 1.0), False, id="5 mm, and half the width of a cube as large is less"),
        pytest.param(1, 12, (1.0, 1.0, 8.0), True, id="one lost slice of 8 mm"),
        pytest.param(2, 12, (1.0, 1.0, 8.0), False, id="two lost slices of 8 mm"),
        pytest.param(3, 1, (1.0, 1.0, 1.0), False, id="a small piece"),
        pytest.param(3, 12, None, False, id="no spacing is known"),
    ],
)
def test_a_large_piece_near_the_largest_was_broken_off_it_and_stays(
    gap: int, piece: int, spacing: tuple[float, float, float] | None, stays: bool
) -> None:
    rule = ClassRule()
    cleaned, found = clean_mask(broken(gap, piece), rule, spacing), part(broken(gap, piece), rule, spacing)
    assert cleaned[2, 3, 24 + gap] == stays
    assert not cleaned[2, 3, 59], "the speck goes"
    assert found.dropped.sum() == (0 if stays or piece == 1 else 25 * piece)
    between = np.zeros_like(found.gaps)
    between[:, 1:6, 24 : 24 + gap] = stays
    assert (found.gaps & between).sum() == between.sum(), "where the rod broke nobody knows what is"
    assert not found.gaps[:, :, :20].any()
    assert not found.gaps[:, :, 24 + gap + piece :].any()
    without = ClassRule(piece_gap_mm=0)
    assert clean_mask(broken(gap, piece), without, spacing).sum() == 600
    assert clean_mask(broken(gap, piece), ClassRule(largest_component=False), spacing)[2, 3, 59]


def test_parts_of_a_long_object_hang_on_the_one_before() -> None:
    mask = np.zeros((8, 8, 40), bool)
    for start in (0, 14, 28):
        mask[:, :, start : start + 11] = True
    assert np.array_equal(clean_mask(mask, ClassRule(), (1.0, 1.0, 1.0)), mask)
    assert part(mask, ClassRule(piece_gap_mm=2), (1.0, 1.0, 1.0)).dropped[0, 0, [0, 14, 28]].sum() == 2


def lattice(count: int, side: int = 6, gap: int = 2) -> np.ndarray:
    """``count`` x ``count`` cubes side by side."""
    mask = np.zeros((side, count * (side + gap), count * (side + gap)), bool)
    for y in range(count):
        for x in range(count):
            mask[:, y * (side + gap) :, x * (side + gap) :][:, :side, :side] = True
    return mask


def test_each_piece_is_measured_once_around_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    whole = ndimage.distance_transform_edt

    def counting(mask: np.ndarray, **given_options: object) -> np.ndarray:
        measured.append(mask.size)
        return np.asarray(whole(mask, **given_options))

    monkeypatch.setattr(ndimage, "distance_transform_edt", counting)
    mask = lattice(8)
    found = part(mask, ClassRule(), (1.0, 1.0, 1.0))
    assert np.array_equal(found.kept, mask)
    assert len(measured) == 64
    assert sum(measured) < 64 * 6 * (6 + 2 * 5) ** 2, "and not the whole crop for each"


def rejoined_slowly(mask: np.ndarray, gap_mm: float, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Measure the whole mask for each piece that joins the largest."""
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    kept = clean_mask(mask, ClassRule(piece_gap_mm=0, holes="none"), spacing)
    sizes = np.bincount(pieces.ravel())[1:]
    wide = [mm for mm, at in zip(spacing, np.nonzero(mask), strict=True) if np.ptp(at) > 0]
    reach = min(gap_mm, float(sizes.max() * np.prod(wide)) ** (1 / max(len(wide), 1)) / 2)
    left = [n + 1 for n in range(count) if sizes[n] >= 0.1 * sizes.max() and not kept[pieces == n + 1].any()]
    gaps = np.zeros(mask.shape, bool)
    while left:
        away = ndimage.distance_transform_edt(~kept, sampling=spacing)
        mm, nearest = min((float(away[pieces == n].min()), n) for n in left)
        if mm > reach * (1 + 1e-6):
            break
        left.remove(nearest)
        gaps |= away + ndimage.distance_transform_edt(pieces != nearest, sampling=spacing) <= mm + min(spacing)
        kept = kept | (pieces == nearest)
    around = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(mask))
    inside = np.zeros(mask.shape, bool)
    inside[around] = True
    return kept, gaps & ~kept & inside


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**30), st.floats(0.6, 0.95), st.sampled_from([2.0, 5.0, 9.0]), st.sampled_from([(1.0, 1.0, 1.0), (1.5, 0.9, 1.0)]))
def test_what_rejoins_is_what_measuring_everything_finds(
    seed: int, share: float, gap_mm: float, spacing: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(seed)
    grey = ndimage.gaussian_filter(rng.normal(size=(8, 17, 21)), 1.0)
    mask = grey > np.quantile(grey, share)
    found = part(mask, ClassRule(piece_gap_mm=gap_mm), spacing)
    kept, gaps = rejoined_slowly(mask, gap_mm, spacing)
    assert np.array_equal(found.kept, kept)
    assert np.array_equal(found.gaps, gaps)


@pytest.mark.parametrize(
    ("spacing", "side"),
    [
        pytest.param((8.0, 8.0, 8.0), 3, id="16 mm apart, one voxel of 8 mm between"),
        pytest.param((4.0, 4.0, 4.0), 4, id="two lesions in PET, 8 mm apart"),
        pytest.param((8.0, 4.0, 4.0), 4, id="8 mm apart in thick slices"),
    ],
)
def test_a_lost_voxel_in_plane_is_as_far_as_it_is(spacing: tuple[float, float, float], side: int) -> None:
    mask = np.zeros((9, 9, 12), bool)
    mask[2 : 2 + side, 2 : 2 + side, 1 : 1 + side] = True
    mask[2 : 2 + side, 2 : 2 + side, 2 + side : 2 + 2 * side] = True
    assert part(mask, ClassRule(), spacing).kept.sum() == side**3


def test_what_is_measured_of_pieces_serves_mask_and_doubt() -> None:
    """``filled`` goes on where ``part`` ended."""
    mask, rule = lattice(2), ClassRule()
    assert np.array_equal(filled(part(mask, rule, TWO_MM).kept, rule, TWO_MM), clean_mask(mask, rule, TWO_MM))


@settings(deadline=None)
@given(arrays.arrays(bool, (4, 6, 7)), st.sampled_from([0.0, 2.0, 5.0]), st.integers(1, 3))
def test_what_is_dropped_was_drawn_and_does_not_stay(mask: np.ndarray, gap_mm: float, components: int) -> None:
    rule = ClassRule(holes="none", piece_gap_mm=gap_mm, components=components)
    found = part(mask, rule, (2.0, 1.0, 1.0))
    kept = clean_mask(mask, rule, (2.0, 1.0, 1.0))
    assert np.array_equal(kept, found.kept)
    assert not (kept & found.dropped).any()
    assert not ((kept | found.dropped) & ~mask).any()
    assert not (kept & found.gaps).any()
    least = clean_mask(mask, ClassRule(holes="none", piece_gap_mm=0, components=components), (2.0, 1.0, 1.0))
    assert not (least & ~kept).any(), "the largest pieces stay in any case"


def test_rules_in_mm3_do_not_apply_where_the_spacing_is_not_known() -> None:
    rule = ClassRule(largest_component=False, least_mm3=100, holes_to_mm3=0.0)
    assert clean_mask(pieces(), rule).sum() == 61


@pytest.mark.parametrize(
    ("rule", "filled"),
    [
        pytest.param(ClassRule(), True, id="closed in its slice"),
        pytest.param(ClassRule(holes="3d"), False, id="open to the next slice"),
        pytest.param(ClassRule(holes="none"), False, id="no holes are filled"),
        pytest.param(ClassRule(holes_to_px=3), False, id="too large in voxels"),
        pytest.param(ClassRule(holes_to_px=4), True, id="just small enough"),
        pytest.param(ClassRule(holes_to_mm3=32.0), True, id="just small enough in mm3"),
        pytest.param(ClassRule(holes_to_mm3=31.0), False, id="too large in mm3"),
    ],
)
def test_a_tunnel_is_a_hole_of_a_slice_and_none_of_the_volume(rule: ClassRule, filled: bool) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 2:8, 2:8] = True
    mask[:, 4:6, 4:6] = False
    assert clean_mask(mask, rule, TWO_MM)[2, 4, 4] == filled


def test_a_cavity_closed_on_all_sides_is_a_hole_of_the_volume() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 2:8, 2:8] = True
    mask[2, 4, 4] = False
    assert clean_mask(mask, ClassRule(holes="3d"))[2, 4, 4]


@settings(max_examples=40, deadline=None)
@given(mask=arrays.arrays(bool, SHAPE))
def test_cleaning_what_is_clean_changes_nothing(mask: np.ndarray) -> None:
    once = clean_mask(mask, ClassRule())
    assert np.array_equal(clean_mask(once, ClassRule()), once)


@settings(max_examples=40, deadline=None)
@given(mask=arrays.arrays(bool, SHAPE), least=st.integers(0, 9))
def test_without_filling_holes_cleaning_only_takes_away(mask: np.ndarray, least: int) -> None:
    rule = ClassRule(largest_component=False, least_px=least, holes="none")
    assert not (clean_mask(mask, rule) & ~mask).any()


def test_intensity_decides_about_the_edge_and_about_nothing_else() -> None:
    probability = np.zeros(SHAPE, np.float32)
    probability[:, 2:8, 2:8] = 0.95
    probability[:, 2:8, 8:10] = 0.6
    grey = np.where(np.arange(14) < 9, 0.8, 0.1) * np.ones(SHAPE)  # the object ends within the edge
    mended = rectify_edges(probability, grey)
    assert (mended[:, 2:8, 8] == np.float32(0.8)).all()
    assert (mended[:, 2:8, 9] == np.float32(0.2)).all()
    assert np.array_equal(mended[:, :, :8], probability[:, :, :8])


def test_an_object_of_which_too_little_is_certain_keeps_its_edge() -> None:
    probability = np.full(SHAPE, 0.6, np.float32)
    assert rectify_edges(probability, np.zeros(SHAPE)) is probability


def test_a_doubtful_voxel_joins_what_it_looks_like_and_what_is_far_away_stays() -> None:
    probability = np.zeros(SHAPE, np.float32)
    probability[:, 2:8, 2:8] = 0.9
    probability[:, 2:8, 8] = 0.45
    probability[:, 2:8, 7] = 0.55
    grey = np.full(SHAPE, 0.1)
    grey[:, 2:8, [2, 3, 4, 5, 6, 8]] = 0.8  # column 8 looks like the object, and column 7, which the teacher takes for it, does not
    weighed = weigh_edges(probability, grey, 1.5)
    assert (weighed[:, 3:7, 8] > 0.7).all()
    assert (weighed[:, 3:7, 7] < 0.3).all()
    assert np.array_equal(weighed[:, :, 12:], probability[:, :, 12:])
    assert mend_edges(probability, grey, ClassRule()) is probability
    assert np.array_equal(mend_edges(probability, grey, ClassRule(rectify_edges=1.5)), weighed)
    assert np.array_equal(mend_edges(probability, grey, ClassRule(rectify_edges=True)), rectify_edges(probability, grey))


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32)), st.floats(0.1, 2), st.floats(-500, 500))
def test_the_scale_of_intensities_changes_nothing_about_edges(grey: np.ndarray, factor: float, shift: float) -> None:
    probability = np.clip(1.2 - 0.2 * np.abs(np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) // 2).max(0), 0, 1).astype(np.float32)
    weighed = weigh_edges(probability, grey.astype(np.float64), 1.0)
    assert ((weighed >= 0) & (weighed <= 1)).all()
    assert np.mean(np.abs(weighed - weigh_edges(probability, grey.astype(np.float64) * factor + shift, 1.0)) > 0.05) < 0.05


@pytest.mark.parametrize("rule", [ClassRule(components=1), ClassRule(largest_component=False, least_px=2)], ids=["largest", "specks"])
def test_a_slice_of_lone_pixels_is_cleaned_too(rule: ClassRule) -> None:
    """cc3d gives up on such a slice of bool ("maximum length exception")."""
    mask = np.zeros((1, 9, 9), bool)
    mask[0, ::2, ::2] = True
    assert clean_mask(mask, rule).sum() == rule.components * rule.largest_component
