"""Files of weak prompts: JSON, JSON Lines, CSV and COCO, whole or damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import Archive, Prompt, rle
from storage.ingest import import_prompts

WritePrompts = Callable[..., Path]
BOX = {"case": "scan", "class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [2, 3, 6, 9]}


def only(archive: Archive, case: str = "scan") -> Prompt:
    (prompt,) = archive.catalog.prompts(case)
    return prompt


def test_rows_around_broken_json_are_saved(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    good = [json.dumps(BOX | {"slice": n}) for n in range(3)]
    summary = import_prompts(
        scans, write_prompts(tmp_path, f'[{good[0]}, {{"case": "scan", "class_id": }}, {good[1]},\n{good[2]}, {{"case": "sc')
    )
    assert (summary.added, summary.reasons) == (3, {"malformed-json": 2})
    assert [p.row for p in scans.catalog.problems()] == ["2", "5"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "zero-bytes", id="empty"),
        pytest.param("hello", "malformed-json", id="no JSON"),
        pytest.param("3", "malformed-json", id="a number"),
    ],
)
def test_a_file_that_is_no_list_is_one_problem(scans: Archive, tmp_path: Path, write_prompts: WritePrompts, text: str, reason: str) -> None:
    assert import_prompts(scans, write_prompts(tmp_path, text)).reasons == {reason: 1}


def test_a_list_that_is_cut_off_is_malformed_json_with_its_line(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, '[{"image": "a"'))
    assert summary.reasons == {"malformed-json": 1}
    assert "not JSON from line 1 on" in scans.catalog.problems()[0].message


def test_json_lines_name_the_line(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, json.dumps(BOX) + "\n\n{broken\n", "prompts.jsonl"))
    assert (summary.added, scans.catalog.problems()[0].row) == (1, "3")


def test_a_broken_line_of_json_lines_is_malformed_json(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    assert import_prompts(scans, write_prompts(tmp_path, "{broken\n", "prompts.jsonl")).reasons == {"malformed-json": 1}


def test_csv_has_the_same_columns_and_short_forms(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    text = """case,class_id,kind,slice,slice_axis,x0,y0,x1,y1,x,y,positive,points_xy,polygons_xy,box_ij,rle
scan,1,box,2,,2,3,6,9,,,,,,,
scan,1,point,2,k,,,,,3.5,4.5,false,,,,
scan,1,scribble,2,,,,,,,,,3 4; 5 6,,,
scan,1,mask,2,,,,,,,,,,3 2 7 2 7 5 3 5|8 8 10 8 10 9 8 9,,
scan,1,box,3,,,,,,,,,,,"1,2,6,7",
scan,1,mask,3,,,,,,,,,,,,"[22, 3, 95]"
scan,1,box,2,,6,3,nan,9,,,,,,,
scan,1,box,,,,,,,,,,,,,
"""
    summary = import_prompts(scans, write_prompts(tmp_path, text, "prompts.csv"))
    assert summary.added == 6
    assert [(p.row, p.reason) for p in scans.catalog.problems()] == [("8", "not-finite"), ("9", "malformed-row")]
    assert {p.positive for p in scans.catalog.prompts("scan") if p.kind == "point"} == {False}


def test_a_line_of_csv_with_more_cells_than_columns_is_refused_and_the_others_go_in(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    lines = ["case,class_id,kind,slice,points_xy", "scan,1,point,2,3 4", "scan,1,point,3,3,4,5,6", 'scan,1,point,4,"3,4,5,6",']
    summary = import_prompts(scans, write_prompts(tmp_path, "\n".join(lines), "prompts.csv"))
    assert (summary.added, summary.reasons) == (2, {"malformed-row": 1})
    assert "row 3: there are more cells than the 5 columns (left over: 4, 5, 6)" in summary.first_problem


def test_coco_boxes_polygons_and_runs_become_prompts(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    document = {
        "info": {"year": 2026},
        "images": [
            {"id": 7, "file_name": "picture.png", "width": 30, "height": 20},
            {"id": 8, "file_name": "x", "case": "scan", "slice": 4},
        ],
        "categories": [{"id": 2, "name": "spot", "supercategory": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 2,
                "bbox": [3, 4, 5, 6],
                "segmentation": [[3, 4, 8, 4, 8, 10, 3, 10]],
                "area": 30,
                "iscrowd": 0,
            },
            {"id": 2, "image_id": 8, "category_id": 2, "segmentation": {"counts": [22, 3, 95], "size": [10, 12]}, "iscrowd": 1},
            {"id": 3, "image_id": 99, "category_id": 2, "bbox": [3, 4, 5, 6]},
            {"id": 4, "image_id": 7, "category_id": 2},
            {"id": 5, "image_id": 7, "category_id": 0, "bbox": [3, 4, 5, 6]},
        ],
    }
    summary = import_prompts(scans, write_prompts(tmp_path, document))
    assert (summary.added, summary.reasons) == (3, {"malformed-row": 2, "unknown-class": 1})
    assert [p.row for p in scans.catalog.problems()] == ["3", "4", "5"]
    box, mask = sorted(scans.catalog.prompts("picture"), key=lambda p: p.kind)
    assert box.box_xyxy_px == (3, 4, 8, 10)
    assert rle.decode(mask.mask_rle, (20, 30)).sum() == 30
    assert only(scans).slice == 4


@pytest.mark.parametrize("annotations", [None, {"id": 1}], ids=["null", "an object"])
def test_a_coco_file_whose_annotations_are_no_list_is_refused_in_words(
    annotations: object, scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, {"images": [], "annotations": annotations}))
    assert summary.reasons == {"malformed-json": 1}
    assert "'annotations' must be a list" in summary.first_problem


def test_separators_of_unicode_end_no_line_of_json_lines_or_csv(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    lines = "\r\n".join(json.dumps(BOX | {"slice": n, "class_name": "a\u2028b\x85"}, ensure_ascii=False) for n in range(2))
    assert import_prompts(scans, write_prompts(tmp_path, lines, "prompts.jsonl")).added == 2
    text = 'case,class_id,kind,slice,box_xyxy,class_name\nscan,1,box,4,1 1 3 3,"a\u2028b"\nscan,1,box,5,1 1 3 3,"two\nlines"\nscan,1,box,6,1 1,\n'
    summary = import_prompts(scans, write_prompts(tmp_path, text, "prompts.csv"))
    assert (summary.added, summary.problems) == (2, 1)
    assert "prompts.csv, row 5" in summary.first_problem


def test_a_quote_that_is_never_closed_is_a_problem_and_takes_nothing_away(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    head = "case,class_id,kind,slice,box_xyxy\nscan,1,box,1,1 1 3 3\n"
    import_prompts(scans, write_prompts(tmp_path, f"{head}scan,1,box,2,1 1 3 3\n", "prompts.csv"))
    summary = import_prompts(scans, write_prompts(tmp_path, f'{head}scan,1,box,2,"1 1 3 3\n{"scan,1,box,3,1 1 3 3" * 9000}', "prompts.csv"))
    assert (summary.unchanged, summary.removed, summary.reasons) == (1, 0, {"malformed-row": 1})
    assert "not readable from here on" in summary.first_problem
    assert [prompt.slice for prompt in scans.catalog.prompts("scan")] == [1, 2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param('[{"case": "scan", "class_id": ' + "9" * 5000 + "}]", "prompts.json", id="a number of 5000 digits"),
        pytest.param("[" * 100_000, "prompts.json", id="lists in lists"),
        pytest.param('{"class_id": ' + "9" * 5000 + "}", "prompts.jsonl", id="a line with a number of 5000 digits"),
    ],
)
def test_what_python_refuses_to_read_is_malformed_json(
    text: str, name: str, scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    assert import_prompts(scans, write_prompts(tmp_path, text, name)).reasons == {"malformed-json": 1}
