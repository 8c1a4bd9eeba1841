"""Good rows of a file of weak prompts go in; bad ones are named by file, row and reason."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage import Archive, ClassInfo, Prompt, rle
from storage.ingest import import_prompts, ingest
from storage.ingest.polygon import fill_polygons
from storage.ingest.weak_convert import Converter

WriteNifti = Callable[..., Path]
SHAPE_IJK = (12, 10, 8)
BOX = {"case": "scan", "class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [2, 3, 6, 9]}


@pytest.fixture
def scans(archive: Archive, tmp_path: Path, write_nifti: WriteNifti) -> Archive:
    """A volume of 8 slices, 10 rows and 12 columns, and a picture of 20 rows and 30 columns."""
    write_nifti(tmp_path / "in" / "scan.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE_IJK).astype(np.int16))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)).save(tmp_path / "in" / "picture.png")
    ingest(archive, tmp_path / "in")
    return archive


def write(folder: Path, rows: object, name: str = "prompts.json") -> Path:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def only(archive: Archive, case: str = "scan") -> Prompt:
    (prompt,) = archive.catalog.prompts(case)
    return prompt


def test_a_box_in_array_indices_is_x_for_i_and_y_for_j(scans: Archive, tmp_path: Path) -> None:
    row = {"case": "scan", "class_id": 1, "kind": "box", "slice_axis": "k", "slice": 5, "box_ij": [1.5, 2.5, 8.25, 9]}
    import_prompts(scans, write(tmp_path, [row]))
    found = only(scans)
    assert (found.axis, found.slice, found.box_xyxy_px) == ("z", 5, (1.5, 2.5, 8.25, 9))


def test_every_kind_of_row_goes_in(scans: Archive, tmp_path: Path) -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 3:7] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    common = {"case": "scan", "class_id": 1, "slice": 3}
    rows = [
        common | {"kind": "point", "point_xy": [3.5, 4.5]},
        common | {"kind": "point", "points_xy": [[3, 4], [5, 6]], "positive": False},
        common | {"kind": "scribble", "points_ij": [[3, 4], [5, 6], [7, 7]]},
        common | {"kind": "mask", "rle": rle.encode(mask), "confidence": 0.5},
        common | {"kind": "mask", "rle": rle.counts_of(mask), "size_yx": [10, 12], "slice": 4},
        common | {"kind": "mask", "polygons_xy": [[3, 2, 7, 2, 7, 5, 3, 5]], "slice": 5},
        common | {"kind": "mask", "path": "mask.png", "slice": 6},
        {"case": "scan", "class_id": 1, "kind": "box3d", "box_ijk": [1, 2, 3, 4, 5, 6]},
        {"case": "scan", "class_id": 1, "kind": "box3d", "box_zyxzyx": [3, 2, 1, 6, 5, 5]},
    ]
    assert import_prompts(scans, write(tmp_path, rows)).added == len(rows)
    found = scans.catalog.prompts("scan")
    masks = [p for p in found if p.kind == "mask"]
    assert [p.slice for p in masks] == [3, 4, 5, 6]
    assert {p.mask_rle for p in masks} == {rle.encode(mask)}
    assert {p.mask_size_yx for p in masks} == {(10, 12)}
    assert {p.box_zyxzyx_px for p in found if p.kind == "box3d"} == {(3, 2, 1, 6, 5, 4), (3, 2, 1, 6, 5, 5)}


def test_other_axes_have_their_own_columns_and_rows(scans: Archive, tmp_path: Path) -> None:
    # across y a slice has 12 columns (x) and 8 rows (z); across x 10 columns (y) and 8 rows (z)
    rows = [
        BOX | {"slice_axis": "j", "slice": 9, "box_xyxy": [0, 0, 12, 8]},
        BOX | {"slice_axis": "x", "slice": 11, "box_xyxy": [0, 0, 10, 8]},
    ]
    assert import_prompts(scans, write(tmp_path, rows)).problems == 0
    assert [(p.axis, p.slice) for p in scans.catalog.prompts("scan")] == [("x", 11), ("y", 9)]


def test_a_picture_needs_no_slice_and_may_be_named_by_its_file(scans: Archive, tmp_path: Path) -> None:
    row = {
        "image": "picture.png",
        "subject": "S1",
        "class_id": 1,
        "class_name": "spot",
        "kind": "point",
        "point_xy": [29.5, 3],
        "positive": True,
    }
    import_prompts(scans, write(tmp_path, [row]))
    assert only(scans, "picture").slice == 0


def test_a_box_slightly_outside_is_clipped(scans: Archive, tmp_path: Path) -> None:
    import_prompts(scans, write(tmp_path, [BOX | {"box_xyxy": [-0.7, 3, 6, 10.4]}]))
    assert only(scans).box_xyxy_px == (0, 3, 6, 10)


BAD_ROWS = [
    pytest.param(BOX | {"case": "scam"}, "unknown-case", id="unknown case"),
    pytest.param(BOX | {"class_id": 0}, "unknown-class", id="background is no class"),
    pytest.param(BOX | {"class_id": 255}, "unknown-class", id="ignore is no class"),
    pytest.param(BOX | {"slice": 8}, "slice-out-of-range", id="slice behind the last"),
    pytest.param(BOX | {"slice": -1}, "slice-out-of-range", id="negative slice"),
    pytest.param(BOX | {"slice": None}, "slice-missing", id="no slice in a volume"),
    pytest.param(BOX | {"box_xyxy": [6, 3, 2, 9]}, "inverted-box", id="inverted box"),
    pytest.param(BOX | {"box_xyxy": [2, 3, 2, 9]}, "inverted-box", id="empty box"),
    pytest.param(BOX | {"box_xyxy": [2, 3, float("nan"), 9]}, "not-finite", id="NaN in a box"),
    pytest.param(BOX | {"box_xyxy": [20, 30, 26, 39]}, "box-outside-image", id="box elsewhere"),
    pytest.param(BOX | {"box_xyxy": [9, 3, 19, 9]}, "box-outside-image", id="box mostly outside"),
    pytest.param(BOX | {"box_xyxy": [1, 2, 3]}, "malformed-row", id="three corners"),
    pytest.param(BOX | {"box_xyxy": "wide"}, "malformed-row", id="words for numbers"),
    pytest.param(BOX | {"colour": "red"}, "malformed-row", id="unknown field"),
    pytest.param(BOX | {"kind": "circle"}, "malformed-row", id="unknown kind"),
    pytest.param(BOX | {"box_ij": [1, 2, 3, 4]}, "malformed-row", id="two boxes"),
    pytest.param({k: v for k, v in BOX.items() if k != "class_id"}, "malformed-row", id="no class"),
    pytest.param("scan", "malformed-row", id="not an object"),
    pytest.param(BOX | {"kind": "point", "point_xy": [13, 2], "box_xyxy": None}, "malformed-row", id="fields of another kind"),
    pytest.param(
        {"case": "scan", "class_id": 1, "kind": "point", "slice": 1, "point_xy": [13, 2]}, "point-outside-image", id="point outside"
    ),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "rle": [3, 4]}, "bad-mask", id="runs of another size"),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "rle": [120]}, "empty-mask", id="empty mask"),
    pytest.param(
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "../in/picture.png"}, "bad-mask", id="path out of the folder"
    ),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "none.png"}, "mask-file", id="mask file missing"),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "polygons_xy": [[1, 2, 3, 4]]}, "bad-mask", id="two corners"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_good_ones_beside_it_go_in(scans: Archive, tmp_path: Path, row: object, reason: str) -> None:
    path = write(tmp_path, [BOX, row, BOX | {"slice": 3}])
    summary = import_prompts(scans, path)
    assert (summary.added, summary.reasons) == (2, {reason: 1})
    (problem,) = scans.catalog.problems()
    assert (problem.source, problem.row, problem.reason) == (str(path), "2", reason)
    assert "prompts.json, row 2" in problem.message


def test_classes_of_the_recipe_are_the_only_ones_and_have_names(scans: Archive, tmp_path: Path) -> None:
    classes = (ClassInfo(id=3, name="organ"),)
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "organ"}
    summary = import_prompts(scans, write(tmp_path, [named, BOX]), classes=classes)
    assert (summary.added, summary.reasons) == (1, {"unknown-class": 1})
    assert only(scans).class_id == 3


def test_rows_around_broken_json_are_saved(scans: Archive, tmp_path: Path) -> None:
    good = [json.dumps(BOX | {"slice": n}) for n in range(3)]
    summary = import_prompts(scans, write(tmp_path, f'[{good[0]}, {{"case": "scan", "class_id": }}, {good[1]},\n{good[2]}, {{"case": "sc'))
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
def test_a_file_that_is_no_list_is_one_problem(scans: Archive, tmp_path: Path, text: str, reason: str) -> None:
    assert import_prompts(scans, write(tmp_path, text)).reasons == {reason: 1}


def test_importing_again_adds_nothing_and_a_corrected_file_clears_its_problems(scans: Archive, tmp_path: Path) -> None:
    path = write(tmp_path, [BOX, BOX | {"slice": 99}])
    import_prompts(scans, path)
    again = import_prompts(scans, path)
    assert (again.added, again.unchanged, again.problems) == (0, 1, 1)
    write(tmp_path, [BOX, BOX | {"slice": 4}])
    assert import_prompts(scans, path).added == 1
    assert scans.catalog.problems() == []


def test_a_corrected_file_replaces_its_own_prompts_and_no_others(scans: Archive, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    import_prompts(scans, write(tmp_path / "other", [BOX, BOX | {"slice": 1}]))
    path = write(tmp_path, [BOX, BOX | {"slice": 3}, BOX | {"slice": 4}])
    import_prompts(scans, path)
    import_prompts(scans, path, source="second")
    write(tmp_path, [BOX | {"slice": 3}, BOX | {"slice": 5}])
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
def test_a_file_that_cannot_be_read_to_its_end_takes_nothing_away(scans: Archive, tmp_path: Path, text: str) -> None:
    import_prompts(scans, write(tmp_path, [BOX]))
    summary = import_prompts(scans, write(tmp_path, text))
    assert (summary.removed, summary.problems) == (0, 1)
    assert only(scans).slice == 2


def test_names_stand_for_ids_where_a_row_has_none_and_forbid_no_other_id(scans: Archive, tmp_path: Path) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"}
    rows = [named | {"class_name": "organ"}, BOX | {"class_id": 9, "class_name": "tube"}, named | {"class_name": "orgn"}]
    summary = import_prompts(scans, write(tmp_path, rows), names={"organ": 3})
    assert (summary.added, summary.reasons) == (2, {"unknown-class": 1})
    assert [p.class_id for p in scans.catalog.prompts("scan")] == [3, 9]
    assert "no class 'orgn'. Known: 1 to 254, 3 organ." in scans.catalog.problems()[0].message


def test_csv_has_the_same_columns_and_short_forms(scans: Archive, tmp_path: Path) -> None:
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
    summary = import_prompts(scans, write(tmp_path, text, "prompts.csv"))
    assert summary.added == 6
    assert [(p.row, p.reason) for p in scans.catalog.problems()] == [("8", "not-finite"), ("9", "malformed-row")]
    assert {p.positive for p in scans.catalog.prompts("scan") if p.kind == "point"} == {False}


def test_json_lines_name_the_line(scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, json.dumps(BOX) + "\n\n{broken\n", "prompts.jsonl"))
    assert (summary.added, scans.catalog.problems()[0].row) == (1, "3")


def test_coco_boxes_polygons_and_runs_become_prompts(scans: Archive, tmp_path: Path) -> None:
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
    summary = import_prompts(scans, write(tmp_path, document))
    assert (summary.added, summary.reasons) == (3, {"malformed-row": 2, "unknown-class": 1})
    assert [p.row for p in scans.catalog.problems()] == ["3", "4", "5"]
    box, mask = sorted(scans.catalog.prompts("picture"), key=lambda p: p.kind)
    assert box.box_xyxy_px == (3, 4, 8, 10)
    assert rle.decode(mask.mask_rle, (20, 30)).sum() == 30
    assert only(scans).slice == 4


def test_sparse_labels_become_masks_and_tight_boxes_of_the_drawn_slices(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[3:7, 2:9, 1] = 1
    labels[4:6, 3:5, 6] = 2
    write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels)
    write_nifti(tmp_path / "sparse" / "stranger.nii.gz", labels)
    summary = import_prompts(scans, tmp_path / "sparse")
    assert (summary.added, summary.reasons) == (4, {"unknown-case": 1})
    boxes = {(p.class_id, p.slice): p.box_xyxy_px for p in scans.catalog.prompts("scan") if p.kind == "box"}
    assert boxes == {(1, 1): (3, 2, 7, 9), (2, 6): (4, 3, 6, 5)}
    masks = {p.class_id: rle.decode(p.mask_rle, (10, 12)) for p in scans.catalog.prompts("scan") if p.kind == "mask"}
    assert np.array_equal(masks[1], labels[:, :, 1].T == 1)


def test_sparse_labels_drawn_across_another_axis_are_read_across_it(scans: Archive, tmp_path: Path, write_nifti: WriteNifti) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[5, 2:9, 1:7] = 1
    import_prompts(scans, write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels))
    assert {(p.axis, p.slice) for p in scans.catalog.prompts("scan")} == {("x", 5)}


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    assert np.argwhere(fill_polygons([[1.0, 1.0, 3.0, 1.0, 3.0, 2.0, 1.0, 2.0]], (4, 5))).tolist() == [[1, 1], [1, 2]]
    assert not fill_polygons([[-9.0, -9.0, -5.0, -9.0, -5.0, -5.0]], (4, 5)).any()
    assert fill_polygons([[-9.0, -9.0, 99.0, -9.0, 99.0, 99.0, -9.0, 99.0]], (4, 5)).all()


@pytest.mark.parametrize(
    ("collection", "prompts"), [pytest.param("hippocampus", 865, id="volumes"), pytest.param("cardiac", 520, id="pictures")]
)
def test_the_real_files_import_as_they_are(archive: Archive, real_data: Path, collection: str, prompts: int) -> None:
    ingest(archive, real_data / collection / "images")
    summary = import_prompts(archive, real_data / collection / "weak_prompts.json")
    assert (summary.added, summary.problems) == (prompts, 0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param(BOX | {"kind": "boks"}, "there is no kind 'boks'. Did you mean 'box'?", id="misspelt kind"),
        pytest.param({k: v for k, v in BOX.items() if k != "kind"}, "the field 'kind' is missing", id="no kind"),
        pytest.param(BOX | {"box_xyxi": [1, 2, 3, 4]}, "a box has no field 'box_xyxi'. Did you mean 'box_xyxy'?", id="misspelt field"),
        pytest.param(BOX | {"box_xyxy": [1, 2, 3]}, "'box_xyxy' must be four numbers, but is [1, 2, 3]", id="three corners"),
        pytest.param(BOX | {"box_xyxy": "wide"}, "'box_xyxy' must be four numbers, but is 'wide'", id="words for numbers"),
        pytest.param(BOX | {"slice": 2.5}, "'slice' must be a whole number from 0, but is 2.5", id="half a slice"),
        pytest.param(BOX | {"confidence": 7}, "'confidence' must be a number from 0 to 1, but is 7", id="too confident"),
        pytest.param(BOX | {"slice_axis": "up"}, "'slice_axis' must be k, j, i, z, y or x, but is 'up'", id="no axis"),
        pytest.param(BOX | {"box_ij": [1, 2, 3, 4]}, "give exactly one of box_xyxy, box_ij, box_xywh", id="two boxes"),
        pytest.param("scan", "a row is an object such as {'case': 'P01', ...}, but this one is 'scan'", id="not an object"),
        pytest.param(
            {"case": "scan", "class_id": 1, "kind": "point", "slice": 1, "point_xy": [133, None]},
            "'point_xy' must be two numbers, but is [133, None]",
            id="a coordinate missing",
        ),
    ],
)
def test_a_malformed_row_is_explained_in_the_words_of_the_documentation(scans: Archive, tmp_path: Path, row: object, said: str) -> None:
    assert import_prompts(scans, write(tmp_path, [row])).reasons == {"malformed-row": 1}
    (problem,) = scans.catalog.problems()
    assert said in problem.message
    for leak in ("Input", "valid", "tag", "Value error", "type="):
        assert leak not in problem.message


def test_a_list_that_is_cut_off_is_malformed_json_with_its_line(scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, '[{"image": "a"'))
    assert summary.reasons == {"malformed-json": 1}
    assert "not JSON from line 1 on" in scans.catalog.problems()[0].message


def test_a_broken_line_of_json_lines_is_malformed_json(scans: Archive, tmp_path: Path) -> None:
    assert import_prompts(scans, write(tmp_path, "{broken\n", "prompts.jsonl")).reasons == {"malformed-json": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param({"box_xyxy": [6, 3, 2, 9]}, "box_xyxy [6, 3, 2, 9] is inverted or empty: x goes from 6 to 2.", id="xyxy"),
        pytest.param({"box_ij": [1, 9, 6, 3]}, "box_ij [1, 9, 6, 3] is inverted or empty: j goes from 9 to 3.", id="ij"),
        pytest.param({"box_xywh": [1, 2, 0, 3]}, "box_xywh [1, 2, 0, 3] is inverted or empty: x goes from 1 to 1.", id="xywh"),
        pytest.param({"box_xyxy": [2, 3, float("nan"), 9]}, "box_xyxy [2, 3, nan, 9] holds a value that is no number", id="NaN"),
        pytest.param(
            {"box_xyxy": [20, 3, 26, 9]},
            "only 0% of box_xyxy [20, 3, 26, 9] lies inside the image, whose x goes from 0 to 12 and y goes from 0 to 10.",
            id="outside",
        ),
        pytest.param(
            {"kind": "box3d", "slice": None, "box_ijk": [1, 2, 5, 4, 5, 3]},
            "box_ijk [1, 2, 5, 4, 5, 3] is inverted or empty: k goes from 5 to 3.",
            id="ijk",
        ),
        pytest.param(
            {"kind": "box3d", "slice": None, "box_zyxzyx": [50, 2, 1, 60, 5, 4]},
            "whose z goes from 0 to 8 and y goes from 0 to 10 and x goes from 0 to 12.",
            id="zyx outside",
        ),
    ],
)
def test_a_bad_box_is_shown_in_the_order_and_names_of_its_row(scans: Archive, tmp_path: Path, row: dict[str, object], said: str) -> None:
    import_prompts(scans, write(tmp_path, [{k: v for k, v in BOX.items() if k != "box_xyxy"} | row]))
    assert said in scans.catalog.problems()[0].message


def test_a_class_name_without_a_recipe_says_what_resolves_names(scans: Archive, tmp_path: Path) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "left-ventricle"}
    import_prompts(scans, write(tmp_path, [named]))
    said = scans.catalog.problems()[0].message
    assert "class_name 'left-ventricle' needs a recipe that names its classes: run 'samdistill run RECIPE', or give class_id" in said


def test_a_name_may_have_blanks_and_capitals_where_the_recipe_has_dashes(scans: Archive, tmp_path: Path) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "Left ventricle_cavity"}
    summary = import_prompts(scans, write(tmp_path, [named]), names={"left-ventricle-cavity": 4})
    assert (summary.added, summary.notes) == (1, ())
    assert only(scans).class_id == 4


def test_a_name_that_the_recipe_does_not_know_beside_a_good_id_is_reported(scans: Archive, tmp_path: Path) -> None:
    rows = [BOX | {"class_name": "heart"}, BOX | {"class_name": "heart", "slice": 3}]
    summary = import_prompts(scans, write(tmp_path, rows), names={"liver": 1})
    assert summary.added == 2
    assert summary.notes == ("class 1 is 'liver' in the recipe and 'heart' in 2 rows, taken by number",)


def test_an_id_and_a_name_of_two_classes_are_refused(scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, [BOX | {"class_name": "spleen"}]), names={"liver": 1, "spleen": 2})
    assert (summary.added, summary.reasons) == (0, {"unknown-class": 1})
    assert "class_id 1 and class_name 'spleen' are not one class: 1 liver, 2 spleen" in summary.first_problem


def coco(number: int, name: str) -> dict[str, object]:
    return {
        "images": [{"id": 7, "file_name": "picture.png"}],
        "categories": [{"id": number, "name": name}],
        "annotations": [{"image_id": 7, "category_id": number, "bbox": [3, 4, 5, 6]}],
    }


def test_the_name_of_a_coco_category_decides_where_the_recipe_knows_it_and_another_number_is_told(scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, coco(3, "Liver")), names={"liver": 1, "spleen": 2})
    assert [prompt.class_id for prompt in scans.catalog.prompts("picture")] == [1]
    assert summary.notes == ("category 3 'Liver' is class 1 in the recipe, taken by name",)


def test_a_coco_category_of_the_recipes_own_number_needs_no_word(scans: Archive, tmp_path: Path) -> None:
    assert import_prompts(scans, write(tmp_path, coco(2, "spleen")), names={"liver": 1, "spleen": 2}).notes == ()
    assert [prompt.class_id for prompt in scans.catalog.prompts("picture")] == [2]


def test_a_row_whose_name_belongs_to_another_id_is_refused_also_where_no_class_has_its_id(scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, [BOX | {"class_id": 3, "class_name": "liver"}]), names={"liver": 1})
    assert (summary.added, summary.reasons) == (0, {"unknown-class": 1})
    assert "class_id 3 and class_name 'liver' are not one class" in summary.first_problem


@pytest.mark.parametrize("annotations", [None, {"id": 1}], ids=["null", "an object"])
def test_a_coco_file_whose_annotations_are_no_list_is_refused_in_words(annotations: object, scans: Archive, tmp_path: Path) -> None:
    summary = import_prompts(scans, write(tmp_path, {"images": [], "annotations": annotations}))
    assert summary.reasons == {"malformed-json": 1}
    assert "'annotations' must be a list" in summary.first_problem


def test_a_line_of_csv_with_more_cells_than_columns_is_refused_and_the_others_go_in(scans: Archive, tmp_path: Path) -> None:
    lines = ["case,class_id,kind,slice,points_xy", "scan,1,point,2,3 4", "scan,1,point,3,3,4,5,6", 'scan,1,point,4,"3,4,5,6",']
    summary = import_prompts(scans, write(tmp_path, "\n".join(lines), "prompts.csv"))
    assert (summary.added, summary.reasons) == (2, {"malformed-row": 1})
    assert "row 3: there are more cells than the 5 columns (left over: 4, 5, 6)" in summary.first_problem


def test_a_folder_of_sparse_labels_passes_on_what_a_person_should_know(
    scans: Archive, tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.zeros(SHAPE_IJK, np.uint8)
    labels[2:5, 3:6, 4] = 1
    write_nifti(tmp_path / "sparse" / "scan.nii.gz", labels)
    monkeypatch.setattr(Converter, "notes", lambda _self: ("a word",))
    summary = import_prompts(scans, tmp_path / "sparse")
    assert (summary.added, summary.notes) == (2, ("a word",))
