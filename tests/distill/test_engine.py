"""Labelling an archive: done once, in any order, with the bad cases set aside."""

import threading
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch

from distill import engine
from distill.engine import LabelPlan, label_archive
from distill.errors import PlanError
from distill.intensity import choose_window, to_rgb
from distill.teachers.base import TeacherProfile
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from distill.teachers.sam import SamTeacher
from distill.wavefront import AskSettings
from storage import Archive, CaseRecord, ClassInfo, Geometry, Prompt, heartbeat
from storage.database import Database
from storage.tables import UnitRow

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
A = ClassInfo(id=1, name="a")
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """Write a random small teacher to a file."""
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    write_teacher(path, build_conv_sam(SMALL), SMALL, PretrainPlan(data=tmp_path, out=path), 0)
    return str(path)


def archive_of(path: Path, count: int) -> Archive:
    archive = Archive.create(str(path / "a.zarr"))
    rng = np.random.default_rng(0)
    prompts = []
    for n in range(count):
        shape = (1, 8 + n % 3, 20 + n % 4, 26)
        record = CaseRecord(
            id=f"case{n:02}",
            patient=f"p{n}",
            shape_czyx=shape,
            dtype="int16",
            modality="MR",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY),
            fingerprint=f"f{n}",
        )
        archive.add_case(record, rng.integers(0, 900, shape, dtype=np.int16))
        prompts += [Prompt(case=record.id, class_id=1, kind="box", slice=z, box_xyxy_px=(5, 4, 18, 15)) for z in (1, 5)]
    archive.catalog.add_prompts(prompts)
    return archive


def plan_for(checkpoint: str, **changes: object) -> LabelPlan:
    return LabelPlan(**({"classes": (A,), "teacher": checkpoint, "device": "cpu", "ask": AskSettings(boxes=2)} | changes))  # type: ignore[arg-type]


def test_every_prompted_case_is_labelled_once_and_a_second_run_does_nothing(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 5)
    seen: list[tuple[int, int]] = []
    first = label_archive(archive, plan_for(checkpoint, window=2), progress=lambda done, total: seen.append((done, total)))
    assert (first.done, first.skipped, first.quarantined) == (5, 0, ())
    assert seen[-1] == (5, 5)
    labels = archive["case03"].labels("teacher/r1")
    assert labels.probability is not None
    assert labels.probability.shape == (1, *archive["case03"].record.shape_czyx[1:])
    assert labels.history.teacher
    again = label_archive(archive, plan_for(checkpoint))
    assert (again.done, again.skipped) == (0, 5)


def test_a_new_case_or_a_changed_prompt_is_all_that_a_later_run_does(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 3)
    label_archive(archive, plan_for(checkpoint))
    archive.catalog.add_prompts([Prompt(case="case01", class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15))])
    assert label_archive(archive, plan_for(checkpoint)).done == 1


def test_cases_that_nobody_prompted_are_reported_and_not_labelled_empty(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    record = CaseRecord(
        id="bare", patient="b", shape_czyx=(1, 4, 9, 9), dtype="int16", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    )
    archive.add_case(record, np.zeros((1, 4, 9, 9), np.int16))
    summary = label_archive(archive, plan_for(checkpoint))
    assert summary.without_prompts == ("bare",)
    assert archive["bare"].label_sets() == []


def not_here(case: str, z: int, class_id: int = 1) -> Prompt:
    return Prompt(case=case, class_id=class_id, kind="point", slice=z, points_xy_px=((9.0, 9.0),), positive=False)


def test_a_case_with_negative_points_alone_counts_as_one_that_nobody_prompted(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    archive.catalog.delete_prompts(source="weak")
    box = Prompt(case="case00", class_id=1, kind="box", slice=1, box_xyxy_px=(5, 4, 18, 15))
    archive.catalog.add_prompts([box, not_here("case01", 3)])
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.without_prompts) == (1, ("case01",))
    assert archive["case01"].label_sets() == []


def test_a_class_with_negative_points_alone_is_not_asked_about(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 1)
    archive.catalog.add_prompts([not_here("case00", 3, class_id=2)])
    label_archive(archive, plan_for(checkpoint, classes=(A, ClassInfo(id=2, name="b"))))
    scores = archive.catalog.scores("teacher/r1")["case00"]
    assert "slices_asked/1" in scores
    assert "slices_asked/2" not in scores


def test_a_prompt_that_cannot_be_asked_makes_no_work(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 1)
    label_archive(archive, plan_for(checkpoint))
    archive.catalog.add_prompts([not_here("case00", 3)])
    assert label_archive(archive, plan_for(checkpoint)).done == 0
    archive.catalog.add_prompts([not_here("case00", 5)])  # slice 5 has a box
    assert label_archive(archive, plan_for(checkpoint)).done == 1


def test_labels_do_not_depend_on_how_many_cases_are_asked_together(tmp_path: Path, checkpoint: str) -> None:
    answers = []
    for window in (1, 3):
        folder = tmp_path / str(window)
        folder.mkdir()
        archive = archive_of(folder, 4)
        label_archive(archive, plan_for(checkpoint, window=window))
        answers.append([np.asarray(archive[f"case{n:02}"].labels("teacher/r1").probability) for n in range(4)])
    assert all(np.array_equal(a, b) for a, b in zip(*answers, strict=True))


class PoisonedTeacher(SamTeacher):
    """Fails whenever a picture of one particular height is among those it is shown."""

    def encode(self, images: list[np.ndarray]) -> object:  # type: ignore[override]
        if any(image.shape[0] == 21 for image in images):
            message = "poisoned picture"
            raise RuntimeError(message)
        return super().encode(images)


def test_a_poisoned_case_is_quarantined_with_its_error_and_the_others_are_labelled(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 4)  # case01 alone is 21 pixels high
    torch.manual_seed(0)
    poisoned = PoisonedTeacher(build_conv_sam(SMALL), TeacherProfile(name="samdistill-conv", image_size=64), "x")
    monkeypatch.setattr(engine, "load_teacher", lambda *_, **__: poisoned)
    summary = label_archive(archive, plan_for(checkpoint, window=3))
    assert summary.quarantined == ("case01",)
    assert summary.done == 3
    assert "poisoned picture" in archive.ledger.quarantined("label:teacher/r1")[0].traceback


def test_a_plan_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="names no class"):
        label_archive(Archive.create(str(tmp_path / "a.zarr")), LabelPlan(classes=()))


def test_an_empty_archive_is_labelled_in_no_time_without_error(tmp_path: Path, checkpoint: str) -> None:
    summary = label_archive(Archive.create(str(tmp_path / "a.zarr")), plan_for(checkpoint))
    assert (summary.done, summary.skipped) == (0, 0)


@pytest.mark.parametrize(("modality", "rule"), [("CT", "ct-soft-tissue"), ("MR", "percentiles-of-non-zero")], ids=["CT", "MR"])
def test_the_window_follows_the_modality(modality: str, rule: str) -> None:
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    record = CaseRecord(id="c", patient="c", shape_czyx=(1, 4, 5, 6), dtype="float32", modality=modality, geometry=geometry)
    volume = np.linspace(-1000, 1_700_000, 120, dtype=np.float32).reshape(1, 4, 5, 6)
    window = choose_window(record, volume)
    assert window.rule == rule
    picture = to_rgb(volume[:, 3], window)
    assert picture.shape == (5, 6, 3)
    assert picture.dtype == np.uint8


def test_a_constant_volume_becomes_a_black_or_white_picture_and_no_error() -> None:
    record = CaseRecord(
        id="c", patient="c", shape_czyx=(1, 1, 5, 6), dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    )
    for value in (0, 7):
        volume = np.full((1, 1, 5, 6), value, np.uint8)
        assert len(np.unique(to_rgb(volume[:, 0], choose_window(record, volume)))) == 1


def test_a_catalog_that_can_no_longer_be_written_stops_the_run_with_its_error_and_no_claim_is_left(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 6)

    def broken(*_: object, **__: object) -> None:
        message = "database or disk is full"
        raise OSError(message)

    monkeypatch.setattr(archive.ledger, "done", broken)
    with pytest.raises(OSError, match="disk is full"):
        label_archive(archive, plan_for(checkpoint, window=1))
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0


def test_a_reader_that_fails_stops_the_run_with_its_error(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 3)

    def locked(*_: object, **__: object) -> bool:
        message = "database is locked"
        raise OSError(message)

    monkeypatch.setattr(archive.ledger, "claim", locked)
    with pytest.raises(OSError, match="database is locked"):
        label_archive(archive, plan_for(checkpoint))


def test_an_interrupted_run_leaves_nothing_claimed_and_the_next_one_in_the_same_process_finishes(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 5)
    with monkeypatch.context() as patched:
        patched.setattr(engine, "run_wavefront", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            label_archive(archive, plan_for(checkpoint, window=2))
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0
    assert label_archive(archive, plan_for(checkpoint)).done == 5


def test_cases_that_another_run_holds_are_reported_as_unfinished(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 3)
    claim = archive.ledger.claim
    monkeypatch.setattr(archive.ledger, "claim", lambda stage, unit: unit != "case01" and claim(stage, unit))
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.unfinished, summary.quarantined) == (2, 1, ())


def test_claims_are_renewed_while_a_slow_teacher_is_at_one_window(tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, 2)
    renewed, beat, wavefront = threading.Event(), archive.ledger.heartbeat, engine.run_wavefront
    outcomes: list[bool] = []

    def beaten() -> None:
        beat()
        renewed.set()

    def slow(*arguments: object) -> None:
        renewed.clear()
        outcomes.append(renewed.wait(20))
        wavefront(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(archive.ledger, "heartbeat", beaten)
    monkeypatch.setattr(engine, "run_wavefront", slow)
    assert label_archive(archive, plan_for(checkpoint, window=2)).done == 2
    assert outcomes == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samdistill")]


def test_a_run_whose_claims_cannot_be_renewed_for_a_whole_lease_stops_with_that_error(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 4)
    wavefront, asked = engine.run_wavefront, []

    def lost() -> None:
        message = "connection to the catalog lost"
        raise OSError(message)

    def slow(*arguments: object) -> None:
        asked.append(arguments)
        for thread in threading.enumerate():
            if thread.name == "samdistill-heartbeat":
                thread.join(20)
        wavefront(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(heartbeat, "BEAT_S", 0.01)
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.05)
    monkeypatch.setattr(archive.ledger, "heartbeat", lost)
    monkeypatch.setattr(engine, "run_wavefront", slow)
    with pytest.raises(OSError, match="connection to the catalog lost"):
        label_archive(archive, plan_for(checkpoint, window=1))
    assert len(asked) == 1
    assert archive.ledger.counts("label:teacher/r1")["claimed"] == 0


def test_a_case_whose_inputs_changed_while_another_live_run_is_at_it_stays_with_that_run(tmp_path: Path, checkpoint: str) -> None:
    archive = archive_of(tmp_path, 2)
    stage = "label:teacher/r1"
    archive.ledger.plan(stage, {"case01": "what it was"})
    archive.ledger.claim(stage, "case01")
    with Database(archive.catalog.url).writing() as connection:
        connection.execute(sa.update(UnitRow).values(host="elsewhere"))
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.skipped, summary.unfinished) == (1, 0, 1)
    assert archive.ledger.state(stage, "case01") == "claimed"
    assert archive["case01"].label_sets() == []


def test_a_case_that_was_given_up_does_not_count_as_one_that_had_these_labels(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(tmp_path, 2)

    def broken(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_wavefront", broken)
        label_archive(archive, plan_for(checkpoint), cases=["case00"])
    label_archive(archive, plan_for(checkpoint), cases=["case01"])
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.skipped, summary.quarantined) == (0, 1, ("case00",))


@pytest.mark.parametrize("fails", [False, True], ids=["labelled", "failed"])
def test_a_case_that_another_run_has_taken_meanwhile_is_left_to_it_and_the_others_are_labelled(
    fails: bool,
    tmp_path: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = archive_of(tmp_path, 3)
    wavefront = engine.run_wavefront

    def taken(teacher: object, works: list[engine.CaseWork], ask: AskSettings) -> None:
        if any(work.record.id == "case01" for work in works):
            with Database(archive.catalog.url).writing() as connection:
                connection.execute(sa.update(UnitRow).where(UnitRow.unit == "case01").values(host="elsewhere"))
            if fails:
                raise RuntimeError
        wavefront(teacher, works, ask)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(engine, "run_wavefront", taken)
    summary = label_archive(archive, plan_for(checkpoint))
    assert (summary.done, summary.unfinished, summary.quarantined) == (2, 1, ())
    assert archive.ledger.state("label:teacher/r1", "case01") == "claimed"
