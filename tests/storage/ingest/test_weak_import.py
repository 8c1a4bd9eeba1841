"""Importing files of weak prompts, once and again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import Archive, Prompt
from storage.ingest import import_prompts, ingest

WritePrompts = Callable[..., Path]
BOX = {"case": "scan", "class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [2, 3, 6, 9]}


def only(archive: Archive, case: str = "scan") -> Prompt:
    (prompt,) = archive.catalog.prompts(case)
    return prompt


def test_importing_again_adds_nothing_and_a_corrected_file_clears_its_problems(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    path = write_prompts(tmp_path, [BOX, BOX | {"slice": 99}])
    import_prompts(scans, path)
    again = import_prompts(scans, path)
    assert (again.added, again.unchanged, again.problems) == (0, 1, 1)
    write_prompts(tmp_path, [BOX, BOX | {"slice": 4}])
    assert import_prompts(scans, path).added == 1
    assert scans.catalog.problems() == []


def test_a_corrected_file_replaces_its_own_prompts_and_no_others(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    (tmp_path / "other").mkdir()
    import_prompts(scans, write_prompts(tmp_path / "other", [BOX, BOX | {"slice": 1}]))
    path = write_prompts(tmp_path, [BOX, BOX | {"slice": 3}, BOX | {"slice": 4}])
    import_prompts(scans, path)
    import_prompts(scans, path, source="second")
    write_prompts(tmp_path, [BOX | {"slice": 3}, BOX | {"slice": 5}])
    summary = import_prompts(scans, path)
    assert (summary.added, summary.unchanged, summary.removed) == (1, 1, 1)
    assert [p.slice for p in scans.catalog.prompts("scan") if p.source == "weak"] == [1, 2, 3, 5]
    assert [p.slice for p in scans.catalog.prompts("scan") if p.source == "second"] == [2, 3, 4]
    assert import_prompts(scans, path).added == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(json.dumps([BOX])[:-9], id="cut off"),
        pytest.param(json.dumps([{"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "gone.png"}]), id="mask missing"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_takes_nothing_away(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, text: str
) -> None:
    import_prompts(scans, write_prompts(tmp_path, [BOX]))
    summary = import_prompts(scans, write_prompts(tmp_path, text))
    assert (summary.removed, summary.problems) == (0, 1)
    assert only(scans).slice == 2


@pytest.mark.parametrize(
    ("collection", "prompts"), [pytest.param("hippocampus", 865, id="volumes"), pytest.param("cardiac", 520, id="pictures")]
)
def test_the_real_files_import_as_they_are(archive: Archive, real_data: Path, collection: str, prompts: int) -> None:
    ingest(archive, real_data / collection / "images")
    summary = import_prompts(archive, real_data / collection / "weak_prompts.json")
    assert (summary.added, summary.problems) == (prompts, 0)
