"""Two label sets are believed where they say the same."""

from pathlib import Path

import numpy as np

from distill.concord import agreed_labels
from storage import IGNORE, Archive, CaseRecord, ClassInfo, Geometry, LabelHistory

CLASSES = (ClassInfo(id=1, name="organ"),)


def archive_with(folder: Path, **labels: list[int]) -> Archive:
    archive = Archive.create(str(folder / "a.zarr"))
    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    archive.add_case(
        CaseRecord(id="a", patient="p", shape_czyx=(1, 1, 1, 4), dtype="int16", geometry=geometry), np.zeros((1, 1, 1, 4), np.int16)
    )
    for name, ids in labels.items():
        history = LabelHistory(
            label_set=f"{name}/r2", classes=CLASSES, made_by="test", fingerprint=f"{ids}", parameters={"made_of": "x"}, round=2
        )
        archive["a"].write_labels(history, np.array(ids, np.uint8).reshape(1, 1, 4), scores={"accepted": 1.0})
    return archive


def test_what_they_differ_about_is_open_and_what_one_left_open_stays_so(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, refined=[0, 1, 1, IGNORE], folds=[0, 1, 0, 1])
    agreed_labels(archive, ["a"], of="refined/r2", with_="folds/r2", into="pseudo/r2")
    labels = archive["a"].labels("pseudo/r2")
    assert labels.read().ravel().tolist() == [0, 1, IGNORE, IGNORE]
    assert labels.scores == {"accepted": 1.0}
    assert labels.history.parents == ("refined/r2", "folds/r2")
    assert archive.catalog.made_of("pseudo/r2") == {"a": "x"}


def test_a_case_that_the_other_says_nothing_about_is_taken_as_it_is(tmp_path: Path) -> None:
    archive = archive_with(tmp_path, refined=[0, 1, 1, IGNORE])
    agreed_labels(archive, ["a"], of="refined/r2", with_="folds/r2", into="pseudo/r2")
    assert archive["a"].labels("pseudo/r2").read().ravel().tolist() == [0, 1, 1, IGNORE]
    assert not agreed_labels(archive, ["a"], of="refined/r2", with_="folds/r2", into="pseudo/r2").done
