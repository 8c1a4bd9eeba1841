""" "Nothing here" is an answer: it is stored, believed where the one who says so is sure, and then background and not ignore."""

import runpy
from pathlib import Path

import pytest

from distill.engine import label_archive
from distill.refine import RefinePlan, accepted_cases, refine_archive
from storage import IGNORE, Archive, ClassInfo, Prompt

SMALL = runpy.run_path(str(Path(__file__).parents[1] / "small_archive.py"))
A, B = SMALL["A"], ClassInfo(id=2, name="b")


def labelled(folder: Path, *, confidence: float) -> Archive:
    """Label two cases: class 1 is said to be absent from the first, and drawn in the second."""
    archive: Archive = SMALL["archive_of"](folder, 2)
    archive.catalog.replace_prompts([], file="", source="weak")
    archive.catalog.delete_prompts(source="weak")
    archive.catalog.add_prompts(
        [
            Prompt(case="case00", class_id=1, kind="absent", confidence=confidence),
            Prompt(case="case01", class_id=1, kind="box", slice=2, box_xyxy_px=(5, 4, 18, 15)),
        ]
    )
    label_archive(archive, SMALL["plan_for"](SMALL["write_checkpoint"](folder)))
    return archive


def test_a_case_without_the_class_is_labelled_with_background_and_says_how_sure_that_is(tmp_path: Path) -> None:
    labels = labelled(tmp_path, confidence=0.9)["case00"].labels("teacher/r1")
    assert not labels.read().any()
    assert labels.scores == {"absent/1": 0.9}


@pytest.mark.parametrize(("confidence", "verdict"), [(0.9, "accept"), (0.6, "review")], ids=["sure", "unsure"])
def test_absence_is_believed_where_it_is_sure_and_never_ignored(tmp_path: Path, confidence: float, verdict: str) -> None:
    archive = labelled(tmp_path, confidence=confidence)
    refine_archive(archive, RefinePlan(classes=(A,)))
    labels = archive["case00"].labels("pseudo/r1")
    assert not labels.read().any()
    assert labels.history.parameters["verdict/1"] == verdict
    assert ("case00" in accepted_cases(archive, "pseudo/r1")) == (verdict == "accept")


def test_a_class_of_which_nobody_said_anything_is_still_ignored_beside_one_that_is_absent(tmp_path: Path) -> None:
    archive = labelled(tmp_path, confidence=0.9)
    refine_archive(archive, RefinePlan(classes=(A, B)))
    assert (archive["case00"].labels("pseudo/r1").read() == IGNORE).all()
