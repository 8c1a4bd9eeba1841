"""What the filter's page says beside its figures: of which masks they are, from how many patients, and what a rejected mask looked like."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.audit import audit
from distill.audit_masks import AuditPlan
from distill.audit_records import FilterReport, RingRow
from distill.subgroups import Removal, share_removed
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory
from students.filter_page import GOLD_RGB, IGNORE_RGB, REJECTED_RGB, write_filter_page
from students.pictures import tint

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="organ"),)
SHAPE = (1, 40, 50)
FEW = "patients: too narrow to trust"


def box(columns: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 12:28, columns] = 1
    return mask


def add(archive: Archive, name: str, *, verdict: str = "accept", part: str = "test") -> None:
    """One case: drawn in columns 10 to 30, cut by refinement to 14 to 34; gold is between, and of a rejected one everything is ignored."""
    record = CaseRecord(
        id=name,
        patient=name,
        shape_czyx=(1, *SHAPE),
        dtype="uint8",
        geometry=Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY),
        part=part,  # type: ignore[arg-type]
    )
    archive.add_case(record, np.zeros((1, *SHAPE), np.uint8))
    cut = box(slice(14, 34))
    told = {"verdict/1": verdict, "reason/1": "because", "threshold/1": 0.5}
    for label_set, ids, parameters in (
        ("teacher/r1", box(slice(10, 30)), {}),
        ("pseudo/r1", cut if verdict == "accept" else np.full(SHAPE, IGNORE, np.uint8), told),
    ):
        history = LabelHistory(label_set=label_set, classes=CLASSES, made_by="test", parameters=parameters, fingerprint=name)
        scores = {"pairwise_dice/1": 0.9, "volume_mm3/1": 320.0}
        archive[name].write_labels(history, ids, probability_kzyx=cut[None] * np.uint8(255), scores=scores)
    archive[name].write_labels(LabelHistory(label_set="gold", classes=CLASSES, made_by="test", fingerprint=name), box(slice(12, 32)))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(str(tmp_path / "a.zarr"))


def page_of(archive: Archive, folder: Path) -> str:
    page = write_filter_page(audit(archive, AuditPlan(classes=CLASSES)), archive, folder / "filter.html")
    return page.read_text(encoding="utf-8")


def pictures_of(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_the_outline_of_a_rejected_mask_is_seen_over_surroundings_that_are_all_ignored(archive: Archive, tmp_path: Path) -> None:
    add(archive, "a", verdict="reject", part="archive")
    page = page_of(archive, tmp_path)
    picture = pictures_of(page)[0]
    rejected = (picture == REJECTED_RGB).all(axis=-1)
    columns = np.flatnonzero(rejected.any(axis=0))
    gold = np.flatnonzero((picture == GOLD_RGB).all(axis=-1).any(axis=0))
    assert columns.max() > gold.max(), "the mask as refinement cut it reaches further than gold, and is not what the teacher drew"
    black = (picture == 0).all(axis=-1).mean()
    assert black > 0.4, "what is ignored is hatched, and the image is seen between the lines"
    assert f"rgb{REJECTED_RGB}" in page, "it is in the legend"


def test_a_small_part_is_tinted_whole_and_a_large_one_along_lines() -> None:
    small, large = np.zeros((60, 60), bool), np.ones((60, 60), bool)
    small[10:20, 10:20] = True
    for mask, least, most in ((small, 1.0, 1.0), (large, 0.1, 0.4)):
        canvas = np.zeros((60, 60, 3), np.uint8)
        tint(canvas, mask, IGNORE_RGB, strength=0.5)
        assert least <= canvas[mask].any(axis=-1).mean() <= most
        assert not canvas[~mask].any()


def test_the_page_says_which_masks_its_dice_is_of(archive: Archive, tmp_path: Path) -> None:
    add(archive, "a")
    page = page_of(archive, tmp_path)
    assert "those that refinement made, cut at a probability of 0.500 and cleaned, before doubtful voxels were ignored" in page
    assert "is of the masks as the teacher drew them, so its figures are others" in page


@pytest.mark.parametrize(("patients", "said"), [(3, True), (4, True), (5, False)])
def test_an_interval_from_fewer_than_five_patients_is_called_too_narrow(
    patients: int, said: bool, archive: Archive, tmp_path: Path
) -> None:
    for n in range(patients):
        add(archive, f"case{n}")
    page = page_of(archive, tmp_path)
    assert (f"only {patients} {FEW}" in page) == said
    assert (FEW in page) == said


@pytest.mark.parametrize(("judged", "said"), [pytest.param(0.333, True, id="a part"), pytest.param(0.999, False, id="the whole")])
def test_a_dice_of_a_part_of_the_object_says_so_beside_it(judged: float, said: bool, archive: Archive, tmp_path: Path) -> None:
    add(archive, "a")
    report = audit(archive, AuditPlan(classes=CLASSES))
    organ = report.classes[0]
    parts = tuple(row.model_copy(update={"judged": judged, "ignored": 0.42}) for row in organ.parts)
    page = written(report.model_copy(update={"classes": (organ.model_copy(update={"parts": parts}),)}), archive, tmp_path)
    assert (f"of {100 * judged:.1f} % of what experts drew" in page) == said
    assert f"<td>{100 * judged:.1f} %</td><td>42.0 %</td>" in page


def test_a_share_says_how_many_patients_were_drawn_for_its_interval_unless_it_is_wilsons() -> None:
    several = [Removal(patient=f"p{n % 3}", removed=n < 4) for n in range(12)]
    one_each = [Removal(patient=f"p{n}", removed=n < 4) for n in range(12)]
    assert (share_removed(several).patients, share_removed(one_each).patients) == (3, None)


def test_the_page_says_how_far_from_its_edge_a_mask_is_to_be_believed(archive: Archive, tmp_path: Path) -> None:
    add(archive, "a")
    report = audit(archive, AuditPlan(classes=CLASSES))
    row = RingRow(level=0.1, patients=24, needed=19, outer=2.5, inner=1.25, unit="mm", coverage=0.9, statement="In full.")
    pages = [written(with_ring(report, each), archive, tmp_path) for each in (row, row.model_copy(update={"outer": None}), None)]
    assert "<td>0.10</td><td>24</td><td>2.50 mm</td><td>1.25 mm</td>" in pages[0]
    assert "grown by the outer distance covers 90&nbsp;% of the object" in pages[0]
    assert "with a probability of at least 0.90" in pages[0]
    assert "<dt>ring around the edge</dt><dd>In full.</dd>" in pages[1]
    assert "ring around the edge" not in pages[2]


def with_ring(report: FilterReport, row: RingRow | None) -> FilterReport:
    organ = report.classes[0]
    return report.model_copy(
        update={"classes": (organ.model_copy(update={"thresholds": organ.thresholds.model_copy(update={"ring": row})}),)}
    )


def written(report: FilterReport, archive: Archive, folder: Path) -> str:
    return write_filter_page(report, archive, folder / "filter.html").read_text(encoding="utf-8")


def test_dots_of_a_predicted_dice_carry_its_error_bars_and_the_page_says_how_many_hold_the_true_one(
    archive: Archive, tmp_path: Path
) -> None:
    for name, low in (("a", 0.7), ("b", 0.95)):
        add(archive, name)
        scores = {"predicted_dice/1": 0.96, "predicted_dice_low/1": low, "predicted_dice_high/1": 0.99}
        archive.catalog.add_scores(name, "teacher/r1", scores)
    report = audit(archive, AuditPlan(classes=CLASSES))
    assert [(dot.low, dot.predicted, dot.high) for dot in report.classes[0].dots] == [(0.7, 0.96, 0.99), (0.95, 0.96, 0.99)]
    page = written(report, archive, tmp_path)
    assert page.count('class="bar accept"') == 2
    assert "predicted_dice 0.960 (0.70 to 0.99), Dice 0.900" in page
    assert "nominally 90 %: 1 of 2 hold the true one." in page
    for name in ("a", "b"):
        archive.catalog.add_scores(name, "teacher/r1", {"predicted_dice_low/1": 0.0, "predicted_dice_high/1": 1.0})
    page = page_of(archive, tmp_path)
    assert 'class="bar accept"' not in page
    assert "Error bars are from 0 to 1: there were too few gold patients to know more." in page
    assert "error bar" not in page_of(other_archive(tmp_path), tmp_path).lower()


def other_archive(folder: Path) -> Archive:
    other = Archive.create(str(folder / "other.zarr"))
    add(other, "a")
    return other
