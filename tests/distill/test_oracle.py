"""The teacher with gold boxes: one question about each piece, nothing beyond the object, and nothing of it stored as a prompt."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill import oracle
from distill.casework import CaseWork
from distill.prompts.choice import chosen_prompts
from storage import IGNORE, Archive, LabelHistory

small = runpy.run_path(str(Path(__file__).with_name("small_archive.py")))  # tests are no package


def two_pieces(shape: tuple[int, ...]) -> np.ndarray:
    gold = np.zeros(shape, np.uint8)
    gold[2:4, 3:9, 4:11] = 1
    gold[3, 12:16, 15:22] = 1
    gold[6] = IGNORE
    return gold


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made: Archive = small["archive_of"](tmp_path / "work", 2)
    for record in made.cases():
        ids = two_pieces(record.shape_czyx[1:])
        made[record.id].write_labels(LabelHistory(label_set="gold", classes=(small["A"],), made_by="test", fingerprint="g"), ids)
    return made


def test_every_piece_on_every_slice_gets_its_tight_box_and_ignored_voxels_none(archive: Archive) -> None:
    record = archive["case00"].record
    boxes = oracle.gold_boxes(record, two_pieces(record.shape_czyx[1:]), [1])
    assert [(box.slice, box.box_xyxy_px) for box in boxes] == [
        (2, (4, 3, 11, 9)),
        (3, (4, 3, 11, 9)),
        (3, (15, 12, 22, 16)),
    ]


def test_classes_made_up_of_several_ids_of_gold_are_one_object(archive: Archive) -> None:
    record = archive["case00"].record
    gold = np.zeros(record.shape_czyx[1:], np.uint8)
    gold[0, 2:4, 2:4], gold[0, 2:4, 4:6] = 1, 2
    assert len(oracle.gold_boxes(record, gold, [1], {1: (1, 2)})) == 1
    assert oracle.gold_boxes(record, gold, [1], {1: (1, 2)})[0].box_xyxy_px == (2, 2, 6, 4)


def test_the_teacher_answers_on_golds_slices_only_and_once_for_the_same_boxes(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = oracle.run_wavefront

    def counting(teacher: object, works: list[CaseWork], settings: object) -> None:
        asked.extend(len(work.classes[1].plans) for work in works)
        ask(teacher, works, settings)  # type: ignore[arg-type]

    monkeypatch.setattr(oracle, "run_wavefront", counting)
    plan = small["plan_for"](small["write_checkpoint"](tmp_path))
    before = archive.catalog.prompts("case00")
    assert oracle.draw_in_gold_boxes(archive, plan, ["case00", "case01"]) == 2
    assert asked == [3, 3], "three pieces on slices of gold, and none beyond"
    labels = archive["case00"].labels(oracle.LABEL_SET)
    assert not np.flatnonzero(np.asarray(labels.read()).any(axis=(1, 2))).tolist() or set(
        np.flatnonzero(np.asarray(labels.read()).any(axis=(1, 2)))
    ) <= {2, 3}
    assert labels.history.prompt_source == "gold"
    assert labels.history.parameters["boxes"] == 1
    assert archive.catalog.prompts("case00") == before, "gold is never stored as a prompt"
    assert not [prompt for prompt in chosen_prompts(before, ["weak"]) if prompt.source == oracle.SOURCE]
    assert oracle.draw_in_gold_boxes(archive, plan, ["case00", "case01"]) == 0


def test_changed_gold_is_asked_about_anew_and_another_ensemble_of_the_recipe_is_not(archive: Archive, tmp_path: Path) -> None:
    plan = small["plan_for"](small["write_checkpoint"](tmp_path))
    oracle.draw_in_gold_boxes(archive, plan, ["case00"])
    assert oracle.draw_in_gold_boxes(archive, replace(plan, ask=replace(plan.ask, boxes=7), sources=("exemplar",)), ["case00"]) == 0
    ids = two_pieces(archive["case00"].record.shape_czyx[1:])
    ids[5, 3:9, 4:11] = 1
    archive["case00"].write_labels(LabelHistory(label_set="gold", classes=(small["A"],), made_by="test", fingerprint="h"), ids)
    assert oracle.draw_in_gold_boxes(archive, plan, ["case00"]) == 1


def test_a_case_without_the_object_is_drawn_empty(archive: Archive, tmp_path: Path) -> None:
    plan = small["plan_for"](small["write_checkpoint"](tmp_path))
    nothing = np.zeros(archive["case00"].record.shape_czyx[1:], np.uint8)
    archive["case00"].write_labels(LabelHistory(label_set="gold", classes=(small["A"],), made_by="test", fingerprint="n"), nothing)
    oracle.draw_in_gold_boxes(archive, plan, ["case00"])
    assert not archive["case00"].labels(oracle.LABEL_SET).read().any()
