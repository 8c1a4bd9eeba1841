"""From prompted slices through the whole volume: where tracks stop and why, and whether they lead back."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill import round_trip
from distill.casework import CaseWork
from distill.engine import label_archive
from distill.label_store import measure
from distill.prompts.schedule import schedule_slices
from distill.propagation import lost_because
from distill.questions import AskSettings
from distill.round_trip import check_round_trips
from distill.teachers.base import Decoded, Embeddings, PromptBatch
from distill.wavefront import run_wavefront

ball_case = runpy.run_path(str(Path(__file__).with_name("ball_case.py")))["ball_case"]  # tests are no package
BrightTeacher = runpy.run_path(str(Path(__file__).with_name("test_wavefront.py")))["BrightTeacher"]


class GenerousTeacher(BrightTeacher):  # type: ignore[misc, valid-type]
    """Sees a pixel beyond the box, as real teachers do."""

    def decode(self, embeddings: Embeddings, prompts: PromptBatch, *, multimask: bool | None = None) -> Decoded:
        assert prompts.boxes_xyxy_px is not None
        wider = np.clip(prompts.boxes_xyxy_px + np.array([-1, -1, 1, 1]), 0, 64).astype(np.float32)
        return super().decode(embeddings, replace(prompts, boxes_xyxy_px=wider), multimask=bool(multimask))  # type: ignore[no-any-return]


small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))
GO = AskSettings(jitter=0.0, propagate=True)


def blob(x: int, side: int) -> np.ndarray:
    mask = np.zeros((30, 40), bool)
    mask[10 : 10 + side, x : x + side] = True
    return mask


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param(blob(10, 10), None, id="the same"),
        pytest.param(blob(11, 9), None, id="a little smaller beside it"),
        pytest.param(blob(10, 7), "area-ratio", id="half as large"),
        pytest.param(blob(10, 15), "area-ratio", id="twice as large"),
        pytest.param(blob(16, 10), "centroid-jump", id="somewhere else"),
        pytest.param(blob(14, 10), "iou-below-tau", id="too little shared"),
    ],
)
def test_a_track_is_lost_where_its_mask_jumps(now: np.ndarray, reason: str | None) -> None:
    assert lost_because(blob(10, 10), now, GO) == reason


def ball_from_the_middle() -> tuple[CaseWork, np.ndarray]:
    return ball_case("ball", 10, radius=7.0)


def test_one_prompted_slice_finds_a_whole_ball_and_the_way_leads_back() -> None:
    work, ball = ball_from_the_middle()
    run_wavefront(GenerousTeacher(), [work], GO)
    check_round_trips(GenerousTeacher(), [work], GO)
    target = work.classes[1]
    found = target.probability > 0.5
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.9
    assert target.round_trips.keys() == {"down", "up"}
    assert min(target.round_trips.values()) > 0.7
    assert measure(work)["round_trip_dice/1"] == min(target.round_trips.values())
    assert not target.unknown
    assert {stop.reason for stop in target.stops} <= {"organ-ended", "area-ratio"}
    assert len(target.stops) == 2


def half_gone() -> CaseWork:
    """Return the ball of which a part only goes on beyond slice 12."""
    work, _ = ball_from_the_middle()
    work.volume_czyx[0, 13:, :, 14:] = 0
    return work


def test_where_a_mask_loses_more_than_half_of_its_area_the_track_ends_and_says_so() -> None:
    work = half_gone()
    run_wavefront(GenerousTeacher(), [work], GO)
    assert ("area-ratio", 13) in {(stop.reason, stop.z) for stop in work.classes[1].stops}
    assert not (work.classes[1].probability[13:] > 0.5).any()
    assert {13, 14, 19} <= work.classes[1].absent


def test_slices_of_a_track_that_does_not_lead_back_are_unknown_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    work, _ = ball_from_the_middle()
    run_wavefront(GenerousTeacher(), [work], GO)
    own = round_trip.run_wavefront

    def lost(teacher: object, works: list[CaseWork], *rest: object, **options: object) -> None:
        own(teacher, works, *rest, **options)  # type: ignore[arg-type]
        upward = next(each for each in works if each.classes[1].plans[0].z > 10)
        upward.classes[1].probability[10] = np.roll(upward.classes[1].probability[10], 6, axis=1)

    monkeypatch.setattr(round_trip, "run_wavefront", lost)
    before = work.classes[1].probability.copy()
    check_round_trips(GenerousTeacher(), [work], GO)
    target = work.classes[1]
    assert target.round_trips["up"] < 0.7 < target.round_trips["down"]
    assert target.unknown == {z for z in target.summaries if z > 10}
    assert np.array_equal(target.probability, before)


def test_without_propagation_nothing_stops_but_the_organ() -> None:
    work = half_gone()
    run_wavefront(GenerousTeacher(), [work], AskSettings(jitter=0.0))
    assert {stop.reason for stop in work.classes[1].stops} <= {"organ-ended"}
    assert (work.classes[1].probability[13] > 0.5).any()
    assert not work.classes[1].round_trips


def test_a_prompted_slice_on_which_nothing_is_found_loses_no_track() -> None:
    work, _ = ball_from_the_middle()
    work.volume_czyx[:] = 0
    run_wavefront(GenerousTeacher(), [work], GO)
    check_round_trips(GenerousTeacher(), [work], GO)
    assert not (work.classes[1].probability > 0.5).any()


def test_every_slice_is_planned_when_propagating_and_the_archive_says_how_it_went(tmp_path: Path) -> None:
    checkpoint = small["write_checkpoint"](tmp_path)
    archive = small["archive_of"](tmp_path, 2, depth=12)
    ask = AskSettings(boxes=2, propagate=True, end_agreement=0.0, end_area_share=0.0, stop_area=(0, 99), stop_iou=0, stop_jump=99)
    summary = label_archive(archive, small["plan_for"](checkpoint, ask=ask))
    assert summary.done == 2
    for record in archive.cases():
        labels = archive[record.id].labels("teacher/r1")
        assert labels.history.parameters["propagate"] is True
        vote, doubt = labels.map("vote"), labels.map("mutual_information")
        assert vote is not None
        assert doubt is not None
        assert vote.shape == doubt.shape == record.shape_czyx[1:]
        reached = labels.scores["slices_asked/1"]
        assert reached == record.shape_czyx[1] or "stops/1" in labels.history.parameters
        agreement = labels.scores.get("round_trip_dice/1")
        unknown = labels.map("unknown")
        if agreement is not None and agreement < ask.least_round_trip:
            assert unknown is not None
            assert {0, 255} <= set(np.unique(unknown[...])) <= {0, 128, 255}
            assert not unknown[1].any()
        else:
            assert unknown is None or set(np.unique(unknown[...])) == {0, 128}
            assert (unknown is None) == ("unasked/1" not in labels.history.parameters)


def test_a_plan_reaches_the_ends_of_the_volume_only_when_propagating() -> None:
    hints = {plan.z: plan.hint for plan in ball_case("ball", 8, 12)[0].classes[1].plans if plan.hint is not None}
    assert {plan.z for plan in schedule_slices(hints, 20)} == set(range(5, 16))
    assert {plan.z for plan in schedule_slices(hints, 20, reach=20)} == set(range(20))


def test_a_mask_that_grows_in_small_steps_is_stopped_when_it_has_outgrown_its_beginning() -> None:
    work, _ = ball_case("cone", 4, radius=6.5)
    z, y, x = np.mgrid[:20, :24, :32]
    work.volume_czyx[0] = 200 * ((y - 12) ** 2 + (x - 15) ** 2 <= (1.5 + 0.7 * z) ** 2)
    run_wavefront(GenerousTeacher(), [work], GO)
    assert "outgrown" in {stop.reason for stop in work.classes[1].stops}
