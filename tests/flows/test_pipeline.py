"""The flows: order, retries, and a rerun that does nothing. Stages are stand-ins; Prefect, archive and ledger are real."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from flows import pipeline, rounds
from flows.launch import launch
from flows.results import RunSummary, StageResult, merged

WriteRecipe = Callable[[str], Path]
SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"


class StandIns(Protocol):
    asked: list[str]
    quarantined: int


def _make_archive(recipe: Path) -> None:
    from storage import Archive

    Archive.create(str(recipe.parent / "archive.zarr"))


def _add_case(recipe: Path) -> None:
    import numpy as np

    from storage import Archive, CaseRecord, Geometry

    geometry = Geometry(spacing_zyx_mm=(1, 1, 1), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)))
    image = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    record = CaseRecord(id="new", patient="p", shape_czyx=(1, 2, 3, 4), dtype="int16", geometry=geometry)
    Archive.open(str(recipe.parent / "archive.zarr")).add_case(record, image)


def test_a_run_asks_the_stages_in_order_and_the_next_one_none(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(SMALLEST)
    first = launch(recipe)
    assert capsys.readouterr().err.startswith(f"{recipe.name}: ingest, label, refine, train, evaluate ...\n"), "before anything is loaded"
    assert stand_ins.asked == ["ingest", "label", "calibrate", "refine", "train", "evaluate"]
    assert (first.up_to_date, first.work, first.left) == (False, 10, 0)
    second = launch(recipe)
    assert second.up_to_date
    assert len(stand_ins.asked) == 6


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda recipe: recipe.write_text(SMALLEST + "refine: {risk: 0.2}\n"), id="a parameter"),
        pytest.param(lambda recipe: (recipe.parent / "results/students/compact/student.json").unlink(), id="the student is gone"),
        pytest.param(_add_case, id="a new case"),
    ],
)
def test_a_change_makes_a_run_look_again(
    change: Callable[[Path], Any], write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None
) -> None:
    recipe = write_recipe(SMALLEST)
    launch(recipe)
    change(recipe)
    assert not launch(recipe).up_to_date
    assert len(stand_ins.asked) == 12


def test_a_single_stage_runs_alone_however_often_it_is_asked(write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None) -> None:
    recipe = write_recipe(SMALLEST)
    _make_archive(recipe)
    launch(recipe, ("label",))
    launch(recipe, ("label",))
    assert stand_ins.asked == ["label", "label"]


def test_a_stage_takes_as_long_as_all_its_parts(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds, thresholds and second opinions are in the time of their stage, whatever they report themselves."""
    recipe, clock = write_recipe(SMALLEST + "rounds: {most: 2}\n"), iter(range(0, 10_000, 50))
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(rounds, "further_rounds", lambda _: StageResult(stage="train", seconds=3.0))
    assert [result.seconds for result in launch(recipe).stages] == [50] * 5


def test_quarantined_units_reach_the_summary(write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None) -> None:
    stand_ins.quarantined = 2
    assert launch(write_recipe(SMALLEST)).left == 2


def test_an_error_of_a_stage_arrives_as_it_was_raised(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import stages
    from flows.errors import StageError

    def broken(recipe: object, shard: object) -> StageResult:
        message = "no teacher"
        raise StageError(message)

    monkeypatch.setattr(stages, "label", broken)
    with pytest.raises(StageError, match="no teacher"):
        launch(write_recipe(SMALLEST))


def test_shards_add_up() -> None:
    parts = [
        StageResult(stage="label", done=2, seconds=1.0),
        StageResult(stage="label", done=1, skipped=3, quarantined=1, output="teacher/r1"),
    ]
    assert merged("label", parts) == StageResult(stage="label", done=3, skipped=3, quarantined=1, seconds=1.0, output="teacher/r1")


def test_cases_are_cut_into_shards_that_know_their_place() -> None:
    from flows.stages import _shards

    shards = _shards(["a", "b", "c"], 2)
    assert [(shard.name, shard.cases, shard.offset, shard.total) for shard in shards] == [("1/2", ("a", "b"), 0, 3), ("2/2", ("c",), 2, 3)]


def test_only_passing_faults_are_retried() -> None:
    from prefect.states import Failed

    from flows.errors import StageError
    from flows.pipeline import is_passing_fault

    def verdict(error: BaseException) -> bool:
        from typing import cast

        return is_passing_fault(cast("Any", None), cast("Any", None), Failed(data=error))

    assert verdict(OSError(28, "No space left on device"))
    assert verdict(ConnectionError("reset"))
    assert not verdict(FileNotFoundError("gone"))
    assert not verdict(StageError("no archive"))


def database_errors(folder: Path) -> dict[str, BaseException]:
    """Real faults of a real database, by what went wrong."""
    import sqlite3

    import sqlalchemy as sa

    path = folder / "catalog.sqlite"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("CREATE TABLE units (id INTEGER)")
    holder.execute("BEGIN EXCLUSIVE")
    tries = {
        "locked": (f"sqlite:///{path}?timeout=0", "INSERT INTO units VALUES (1)"),
        "read-only": (f"sqlite:///file:{path}?mode=ro&uri=true", "INSERT INTO units VALUES (1)"),
        "no table": ("sqlite://", "SELECT * FROM nowhere"),
        "no folder": (f"sqlite:///{folder}/nowhere/catalog.sqlite", "SELECT 1"),
    }
    found: dict[str, BaseException] = {}
    for name, (url, statement) in tries.items():
        if name == "read-only":
            holder.execute("ROLLBACK")
        engine = sa.create_engine(url)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(statement)
        except sa.exc.OperationalError as error:
            found[name] = error
        engine.dispose()
    holder.close()
    return found


def test_a_locked_database_or_a_lost_connection_is_a_passing_fault_and_a_wrong_statement_is_not(tmp_path: Path) -> None:
    from typing import cast

    from prefect.states import Failed
    from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError

    from flows.pipeline import is_passing_fault

    def verdict(error: BaseException) -> bool:
        return is_passing_fault(cast("Any", None), cast("Any", None), Failed(data=error))

    verdicts = {name: verdict(error) for name, error in database_errors(tmp_path).items()}
    assert verdicts == {"locked": True, "read-only": False, "no table": False, "no folder": False}
    assert verdict(OperationalError("SELECT 1", {}, ConnectionError("server closed the connection unexpectedly")))
    assert verdict(InterfaceError("SELECT 1", {}, Exception("connection already closed"), connection_invalidated=True))
    assert not verdict(InterfaceError("SELECT 1", {}, Exception("bad parameter")))
    assert not verdict(IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed")))


def test_nothing_is_refined_while_another_run_is_at_the_thresholds(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import stages

    held = StageResult(stage="calibrate", failed=1, note="another run is (process 7 on elsewhere) at it.")
    monkeypatch.setattr(stages, "calibrate", lambda recipe: held)
    recipe = write_recipe(SMALLEST)
    _make_archive(recipe)
    summary = launch(recipe, ("refine",))
    assert stand_ins.asked == []
    (refined,) = summary.stages
    assert replace(refined, seconds=0) == StageResult(stage="refine", failed=1, note=f"thresholds: {held.note}")
    assert summary.left == 1


def test_an_empty_summary_has_nothing_left() -> None:
    assert (RunSummary(stages=()).left, RunSummary(stages=()).work) == (0, 0)


def test_counts_of_all_shards_are_added_and_notes_are_said_once() -> None:
    parts = [
        StageResult(stage="refine", tally={"accept": 245, "review": 9, "reject": 2}, note="defaults stand"),
        StageResult(stage="refine", tally={"accept": 4}, note="defaults stand"),
        StageResult(stage="refine", note="and more"),
    ]
    total = merged("refine", parts)
    assert total.remark == "249 accept, 9 review, 2 reject; defaults stand; and more"


def test_whose_labels_go_and_what_calibration_has_to_say_stand_in_the_line_of_refine(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import stages

    monkeypatch.setattr(stages, "calibrate", lambda recipe: StageResult(stage="calibrate", done=1, note="2 gold patients, 3 needed"))
    monkeypatch.setattr(stages, "refine", lambda recipe, shard: StageResult(stage="refine", tally={"accept": 2}))
    monkeypatch.setattr(stages, "announce_refined", lambda recipe: StageResult(stage="refine", note="WARNING: 2 cases are refined anew"))
    recipe = write_recipe(SMALLEST)
    _make_archive(recipe)
    (refined,) = launch(recipe, ("refine",)).stages
    assert refined.remark == "2 accept; WARNING: 2 cases are refined anew; 2 gold patients, 3 needed"


def test_thresholds_that_were_given_up_are_a_unit_without_a_result(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import stages

    given_up = StageResult(stage="calibrate", quarantined=1, note="given up after 3 attempts: x")
    monkeypatch.setattr(stages, "calibrate", lambda recipe: given_up)
    recipe = write_recipe(SMALLEST)
    _make_archive(recipe)
    summary = launch(recipe, ("refine",))
    assert summary.left == 1
    assert summary.stages[0].note == "thresholds: given up after 3 attempts: x"


def test_a_run_with_units_given_up_is_not_up_to_date_when_it_is_to_retry_them(
    write_recipe: WriteRecipe, stand_ins: StandIns, prefect_backend: None
) -> None:
    from storage import Archive

    recipe = write_recipe(SMALLEST)
    ledger = Archive.create(str(recipe.parent / "archive.zarr")).ledger
    ledger.plan("calibrate", {"compact": "1"})
    for _ in range(3):
        ledger.claim("calibrate", "compact")
        ledger.fail("calibrate", "compact", ValueError("bad"))
    launch(recipe)
    assert launch(recipe).up_to_date
    assert not launch(recipe, retry=True).up_to_date
    assert launch(recipe, retry=True).up_to_date
