"""Cases whose labels change most from round to round are found and left out."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.instability import INSTABILITY, add_instability, changed_share, instability, most_changed
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory

CLASSES = (ClassInfo(id=1, name="organ"), ClassInfo(id=2, name="other"))
SHAPE = (2, 5, 7)


def block(size: int, class_id: int = 1) -> np.ndarray:
    ids = np.zeros(SHAPE, np.uint8)
    ids.ravel()[:size] = class_id
    return ids


def test_the_change_is_counted_in_objects_as_they_are_afterwards() -> None:
    assert changed_share(block(10), block(20)) == pytest.approx(10 / 20)
    assert changed_share(block(20), block(10)) == pytest.approx(10 / 10)
    assert changed_share(block(10), block(10, class_id=2)) == pytest.approx(1.0)


def test_the_measure_of_three_rounds_is_the_mean_of_both_changes() -> None:
    y1, y2, y3 = block(10), block(20), block(16)
    assert instability([y1, y2, y3]) == pytest.approx((10 / 20 + 4 / 16) / 2)


def test_voxels_that_were_left_open_say_nothing() -> None:
    open_ = np.where(block(5) > 0, IGNORE, block(10)).astype(np.uint8)
    assert changed_share(open_, block(10)) == 0
    assert changed_share(block(10), open_) == 0
    assert math.isnan(changed_share(np.full(SHAPE, IGNORE, np.uint8), block(10)))


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 2) | st.just(math.nan)), st.floats(0, 0.99))
def test_no_more_than_the_share_is_left_out_and_nobody_left_in_changed_more(scores: dict[str, float], share: float) -> None:
    out = most_changed(scores, share)
    known = {case: value for case, value in scores.items() if not math.isnan(value)}
    assert len(out) <= share * len(known) + 1e-6
    assert all(known[case] > 0 for case in out)
    assert not out or min(known[case] for case in out) >= max((value for case, value in known.items() if case not in out), default=0.0)


def test_a_case_that_did_not_change_is_never_left_out() -> None:
    assert most_changed({"a": 0.0, "b": 0.0}, 0.9) == ()


def small_archive(folder: Path) -> Archive:
    archive = Archive.create(str(folder / "a.zarr"))
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    for n in range(4):
        record = CaseRecord(id=f"c{n}", patient=f"p{n}", shape_czyx=(1, *SHAPE), dtype="int16", geometry=geometry, part="archive")
        archive.add_case(record, np.zeros((1, *SHAPE), np.int16))
        write(archive, f"c{n}", "pseudo/r1", block(10))
        write(archive, f"c{n}", "pseudo/r2", block(30 if n == 2 else 11))
    return archive


def write(archive: Archive, case: str, label_set: str, ids: np.ndarray) -> None:
    archive[case].write_labels(
        LabelHistory(label_set=label_set, classes=CLASSES, made_by="test", fingerprint=f"{label_set}{ids.sum()}"), ids
    )


def test_the_planted_unstable_case_is_the_one_that_is_dropped(tmp_path: Path) -> None:
    archive = small_archive(tmp_path)
    cases = [record.id for record in archive.cases()]
    add_instability(archive, ("pseudo/r1", "pseudo/r2"), cases, into="pseudo/r2")
    scores = {case: known[INSTABILITY] for case, known in archive.catalog.scores("pseudo/r2").items()}
    assert scores["c2"] == pytest.approx(20 / 30)
    assert most_changed(scores, 0.25) == ("c2",)


def test_labels_are_compared_once_and_anew_after_they_changed(tmp_path: Path) -> None:
    archive = small_archive(tmp_path)
    sets, cases = ("pseudo/r1", "pseudo/r2"), [record.id for record in archive.cases()]
    assert len(add_instability(archive, sets, cases, into="pseudo/r2").done) == 4
    assert len(add_instability(archive, sets, cases, into="pseudo/r2").done) == 0
    write(archive, "c1", "pseudo/r2", block(20))
    assert add_instability(archive, sets, cases, into="pseudo/r2").done == {"c1": pytest.approx(0.5)}


def test_a_score_that_went_with_labels_written_anew_from_the_same_inputs_is_made_again(tmp_path: Path) -> None:
    archive = small_archive(tmp_path)
    sets, cases = ("pseudo/r1", "pseudo/r2"), [record.id for record in archive.cases()]
    add_instability(archive, sets, cases, into="pseudo/r2")
    write(archive, "c2", "pseudo/r2", block(30))
    assert INSTABILITY not in archive.catalog.scores("pseudo/r2").get("c2", {})
    assert list(add_instability(archive, sets, cases, into="pseudo/r2").done) == ["c2"]
    assert archive.catalog.scores("pseudo/r2")["c2"][INSTABILITY] == pytest.approx(20 / 30)


def test_what_is_disputed_counts_where_labels_from_before_the_dispute_are_compared(tmp_path: Path) -> None:
    archive = small_archive(tmp_path)
    agreed = block(30)
    agreed[agreed > 0] = np.where(np.arange(30) < 10, 1, IGNORE)
    write(archive, "c2", "both/r2", agreed)
    add_instability(archive, ("pseudo/r1", "pseudo/r2"), ["c2"], into="both/r2")
    assert archive.catalog.scores("both/r2")["c2"][INSTABILITY] == pytest.approx(20 / 30)
    assert changed_share(block(10), agreed) == 0
