"""What is set on calibration cases is of the archive's only if both were prompted alike; sources and kinds of prompts tell."""

import runpy
from pathlib import Path

import pytest

from distill.calibration import ClassCalibration, calibrate
from distill.prompt_mix import PromptMix, prompt_mixes
from storage import Archive, Prompt

BALLS = runpy.run_path(str(Path(__file__).with_name("test_calibration.py")))  # tests are no package
A = BALLS["A"]


def say(archive: Archive, case: str, source: str = "weak", *, kind: str = "box", class_id: int = 1, positive: bool = True) -> None:
    where = {
        "box": {"slice": 4, "box_xyxy_px": (1.0, 1.0, 5.0, 5.0)},
        "point": {"slice": 4, "points_xy_px": ((3.0, 3.0),)},
        "absent": {},
    }
    said = Prompt(case=case, class_id=class_id, kind=kind, source=source, positive=positive, **where[kind])  # type: ignore[arg-type]
    archive.catalog.add_prompts([said])


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive.create(str(tmp_path / "a.zarr"))
    for n in range(12):
        BALLS["add"](archive, f"c{n:02}", "calibration", gold_radius=3.0, fade_at=3.0, agreement=0.9 + 0.005 * n)
        say(archive, f"c{n:02}")
    for n in range(4):
        BALLS["add"](archive, f"a{n}", "archive", gold_radius=3.0, fade_at=3.0, agreement=0.9)
    return archive


def mixed(archive: Archive, *sources: str) -> PromptMix:
    return prompt_mixes(archive, [1], sources or ("weak", "exemplar"), "teacher/r1")[1]


def calibrated(archive: Archive, guarantee: str = "mask") -> ClassCalibration:
    found: ClassCalibration = calibrate(
        archive,
        (A,),
        smoothing_mm=(0.0,),
        guarantee=guarantee,  # type: ignore[arg-type]
        prompted={1: mixed(archive)},
    )[1]
    return found


def test_prompts_of_one_source_and_kind_leave_nothing_to_say(archive: Archive) -> None:
    for n in range(4):
        say(archive, f"a{n}", source="another file")
    assert mixed(archive) == PromptMix(calibration={"weak box": 12}, archive={"weak box": 4})
    found = calibrated(archive)
    assert (found.guaranteed, found.warning) == (True, "")


def test_where_no_source_prompted_both_parts_nothing_is_guaranteed(archive: Archive) -> None:
    for n in range(4):
        say(archive, f"a{n}", "proposed/exemplar")
    found = calibrated(archive)
    assert (found.guaranteed, found.guarantees, found.ring) == (False, (), None)
    assert found.warning == (
        "no guarantee: no source of prompts is that of both: 4 of 4 archive cases were prompted by exemplar box, as no calibration case was; "
        "12 of 12 calibration cases were prompted by weak box, as no archive case was: thresholds and guarantees are about masks that were prompted alike"
    )
    assert found.remedy == "prompt calibration cases as those of the archive, or leave refine.guarantee out"
    assert calibrated(archive, "none").warning.startswith("4 of 4 archive cases were prompted by exemplar box")


def test_cases_that_were_prompted_in_a_way_of_their_own_are_counted_beside_the_guarantee(archive: Archive) -> None:
    for n in range(3):
        say(archive, f"a{n}")
    say(archive, "a3", kind="point")
    found = calibrated(archive)
    assert found.guaranteed
    assert found.warning == (
        "1 of 4 archive cases were prompted by weak point, as no calibration case was: thresholds and guarantees are about masks that were prompted alike"
    )


def test_only_the_source_that_was_asked_counts_and_neither_absences_nor_reviewers_do(archive: Archive) -> None:
    for n in range(4):
        say(archive, f"a{n}")
        say(archive, f"a{n}", "proposed/exemplar")
        say(archive, f"a{n}", kind="absent")
    say(archive, "a3", "review", kind="point")
    assert mixed(archive).archive == {"weak box": 3}
    assert mixed(archive, "exemplar", "weak").archive == {"exemplar box": 3}


def test_a_source_that_only_says_where_the_object_is_not_leaves_the_word_to_the_next_one(archive: Archive) -> None:
    for n in range(4):
        say(archive, f"a{n}", kind="point", positive=False)
        say(archive, f"a{n}", "proposed/threshold")
    assert mixed(archive, "weak", "threshold").archive == {"threshold box": 4}
    say(archive, "a0")
    assert mixed(archive, "weak", "threshold").archive == {"weak box+point": 1, "threshold box": 3}


def test_a_class_that_is_said_to_be_absent_was_asked_by_nobody_whatever_later_sources_propose(archive: Archive) -> None:
    for n in range(4):
        say(archive, f"a{n}", kind="absent")
        say(archive, f"a{n}", "proposed/threshold")
    say(archive, "a0", kind="point", positive=False)
    assert mixed(archive, "weak", "threshold").archive == {}
    assert mixed(archive, "threshold", "weak").archive == {"threshold box": 4}


def test_a_twentieth_of_the_cases_may_differ() -> None:
    known = {"weak box": 95}
    assert PromptMix(calibration=known, archive={"weak box": 19, "weak point": 1}).in_words() == ""
    assert PromptMix(calibration=known, archive={"weak box": 18, "weak point": 2}).in_words() != ""
    assert PromptMix(calibration=known).in_words() == "", "nothing is known of an archive without prompts"
    assert not PromptMix(calibration=known).shares_no_source
