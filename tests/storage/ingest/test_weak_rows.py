"""What a row of weak prompts becomes; a bad one is named by file, row and reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage import Archive, Prompt, rle
from storage.ingest import import_prompts
from storage.ingest.polygon import fill_polygons

WritePrompts = Callable[..., Path]
BOX = {"case": "scan", "class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [2, 3, 6, 9]}


def only(archive: Archive, case: str = "scan") -> Prompt:
    (prompt,) = archive.catalog.prompts(case)
    return prompt


def test_a_box_in_array_indices_is_x_for_i_and_y_for_j(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    row = {"case": "scan", "class_id": 1, "kind": "box", "slice_axis": "k", "slice": 5, "box_ij": [1.5, 2.5, 8.25, 9]}
    import_prompts(scans, write_prompts(tmp_path, [row]))
    found = only(scans)
    assert (found.axis, found.slice, found.box_xyxy_px) == ("z", 5, (1.5, 2.5, 8.25, 9))


def test_every_kind_of_row_goes_in(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 3:7] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    common = {"case": "scan", "class_id": 1, "slice": 3}
    rows = [
        common | {"kind": "point", "point_xy": [3.5, 4.5]},
        common | {"kind": "point", "points_xy": [[3, 4], [5, 6]], "positive": False},
        common | {"kind": "scribble", "points_ij": [[3, 4], [5, 6], [7, 7]]},
        common | {"kind": "extreme", "extreme_points_xy": [[3, 4], [5, 2], [8, 5], [6, 7]]},
        common | {"kind": "recist", "recist_xy": [[3, 4], [9, 5], [6, 2], [5, 7]]},
        common | {"kind": "mask", "rle": rle.encode(mask), "confidence": 0.5},
        common | {"kind": "mask", "rle": rle.counts_of(mask), "size_yx": [10, 12], "slice": 4},
        common | {"kind": "mask", "polygons_xy": [[3, 2, 7, 2, 7, 5, 3, 5]], "slice": 5},
        common | {"kind": "mask", "path": "mask.png", "slice": 6},
        {"case": "scan", "class_id": 1, "kind": "box3d", "box_ijk": [1, 2, 3, 4, 5, 6]},
        {"case": "scan", "class_id": 1, "kind": "box3d", "box_zyxzyx": [3, 2, 1, 6, 5, 5]},
    ]
    assert import_prompts(scans, write_prompts(tmp_path, rows)).added == len(rows)
    found = scans.catalog.prompts("scan")
    masks = [p for p in found if p.kind == "mask"]
    assert [p.slice for p in masks] == [3, 4, 5, 6]
    assert {p.mask_rle for p in masks} == {rle.encode(mask)}
    assert {p.mask_size_yx for p in masks} == {(10, 12)}
    assert {p.box_zyxzyx_px for p in found if p.kind == "box3d"} == {(3, 2, 1, 6, 5, 4), (3, 2, 1, 6, 5, 5)}


def test_other_axes_have_their_own_columns_and_rows(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    # across y a slice has 12 columns (x) and 8 rows (z); across x 10 columns (y) and 8 rows (z)
    rows = [
        BOX | {"slice_axis": "j", "slice": 9, "box_xyxy": [0, 0, 12, 8]},
        BOX | {"slice_axis": "x", "slice": 11, "box_xyxy": [0, 0, 10, 8]},
    ]
    assert import_prompts(scans, write_prompts(tmp_path, rows)).problems == 0
    assert [(p.axis, p.slice) for p in scans.catalog.prompts("scan")] == [("x", 11), ("y", 9)]


def test_a_picture_needs_no_slice_and_may_be_named_by_its_file(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    row = {
        "image": "picture.png",
        "subject": "S1",
        "class_id": 1,
        "class_name": "spot",
        "kind": "point",
        "point_xy": [29.5, 3],
        "positive": True,
    }
    import_prompts(scans, write_prompts(tmp_path, [row]))
    assert only(scans, "picture").slice == 0


def test_a_box_slightly_outside_is_clipped(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    import_prompts(scans, write_prompts(tmp_path, [BOX | {"box_xyxy": [-0.7, 3, 6, 10.4]}]))
    assert only(scans).box_xyxy_px == (0, 3, 6, 10)


def test_rows_with_more_points_than_are_asked_are_counted_once(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    line = {"case": "scan", "class_id": 1, "kind": "scribble", "slice": 1}
    rows = [line | {"points_xy": [[n, 2] for n in range(size)]} for size in (4, 5, 9)]
    summary = import_prompts(scans, write_prompts(tmp_path, rows))
    assert summary.problems == 0
    assert [note for note in summary.notes if "points" in note] == [
        "2 rows have more than 4 points, of which the 4 that cover them best are asked; for more, write several rows"
    ]


SIX = [[1, 4, 3], [9, 5, 3.5], [4, 1, 4], [5, 8, 4.5], [5, 5, 2], [5, 4, 6]]


def test_six_extreme_points_are_a_box_in_the_volume_and_points_inside_it_on_their_slices(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    row = {"case": "scan", "class_id": 1, "kind": "extreme", "extreme_points_ijk": SIX}
    assert import_prompts(scans, write_prompts(tmp_path, [row])).problems == 0
    (box,) = [prompt for prompt in scans.catalog.prompts("scan") if prompt.kind == "box3d"]
    assert box.box_zyxzyx_px == (2, 1, 1, 6, 8, 9)
    points = {(prompt.slice, *prompt.points_xy_px[0]) for prompt in scans.catalog.prompts("scan") if prompt.kind == "point"}
    assert sorted(z for z, _, _ in points) == [2, 3, 3, 4, 4, 5]
    assert all(1 < x < 9 and 1 < y < 8 for _, x, y in points)
    for wrong in ({"slice": 3}, {"extreme_points_xy": [[1, 4], [9, 5], [4, 1], [5, 8]]}, {"extreme_points_ijk": SIX[:5]}):
        assert import_prompts(scans, write_prompts(tmp_path, [row | wrong])).reasons == {"malformed-row": 1}


BAD_ROWS = [
    pytest.param(BOX | {"case": "scam"}, "unknown-case", id="unknown case"),
    pytest.param(BOX | {"class_id": 0}, "unknown-class", id="background is no class"),
    pytest.param(BOX | {"class_id": 255}, "unknown-class", id="ignore is no class"),
    pytest.param(BOX | {"slice": 8}, "slice-out-of-range", id="slice behind the last"),
    pytest.param(BOX | {"slice": -1}, "slice-out-of-range", id="negative slice"),
    pytest.param(BOX | {"slice": None}, "slice-missing", id="no slice in a volume"),
    pytest.param(
        {"image": "picture.png", "class_id": 1, "kind": "box", "slice": 3, "slice_axis": "j", "box_xyxy": [0, 0, 9, 1]},
        "slice-axis",
        id="a single picture across another axis",
    ),
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
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "rle": [10**13], "size_yx": [10**7, 10**6]},
        "bad-mask",
        id="a mask of ten terabytes",
    ),
    pytest.param(
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "polygons_xy": [[1, 2, 3, float("inf"), 5, 6]]},
        "bad-mask",
        id="infinity in a polygon",
    ),
    pytest.param(
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "C:\\in\\picture.png"}, "bad-mask", id="path to another drive"
    ),
    pytest.param(BOX | {"case": "sc\udcffn"}, "unknown-case", id="half a letter in a name"),
    pytest.param(
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "../in/picture.png"}, "bad-mask", id="path out of the folder"
    ),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "none.png"}, "mask-file", id="mask file missing"),
    pytest.param({"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "polygons_xy": [[1, 2, 3, 4]]}, "bad-mask", id="two corners"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_good_ones_beside_it_go_in(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, row: object, reason: str
) -> None:
    path = write_prompts(tmp_path, [BOX, row, BOX | {"slice": 3}])
    summary = import_prompts(scans, path)
    assert (summary.added, summary.reasons) == (2, {reason: 1})
    (problem,) = scans.catalog.problems()
    assert (problem.source, problem.row, problem.reason) == (str(path), "2", reason)
    assert "prompts.json, row 2" in problem.message


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
def test_a_malformed_row_is_explained_in_the_words_of_the_documentation(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, row: object, said: str
) -> None:
    assert import_prompts(scans, write_prompts(tmp_path, [row])).reasons == {"malformed-row": 1}
    (problem,) = scans.catalog.problems()
    assert said in problem.message
    for leak in ("Input", "valid", "tag", "Value error", "type="):
        assert leak not in problem.message


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
def test_a_bad_box_is_shown_in_the_order_and_names_of_its_row(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, row: dict[str, object], said: str
) -> None:
    import_prompts(scans, write_prompts(tmp_path, [{k: v for k, v in BOX.items() if k != "box_xyxy"} | row]))
    assert said in scans.catalog.problems()[0].message


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    assert np.argwhere(fill_polygons([[1.0, 1.0, 3.0, 1.0, 3.0, 2.0, 1.0, 2.0]], (4, 5))).tolist() == [[1, 1], [1, 2]]
    assert not fill_polygons([[-9.0, -9.0, -5.0, -9.0, -5.0, -5.0]], (4, 5)).any()
    assert fill_polygons([[-9.0, -9.0, 99.0, -9.0, 99.0, 99.0, -9.0, 99.0]], (4, 5)).all()


def test_paths_in_rows_may_have_been_written_on_windows(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[2:5, 3:7] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "m.png")
    rows = [
        {"image": "D:\\study\\picture.png", "class_id": 1, "kind": "box", "box_xyxy": [1, 1, 5, 5]},
        {"case": "scan", "class_id": 1, "kind": "mask", "slice": 1, "path": "masks\\m.png"},
    ]
    assert import_prompts(scans, write_prompts(tmp_path, rows)).added == 2
    assert only(scans, "picture").kind == "box"


def test_a_file_about_other_cases_does_not_look_for_names_like_each_of_them(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[str] = []
    similar = scans.catalog.similar_ids

    def watched(case_id: str) -> list[str]:
        looked_for.append(case_id)
        return similar(case_id)

    monkeypatch.setattr(scans.catalog, "similar_ids", watched)
    summary = import_prompts(scans, write_prompts(tmp_path, [BOX | {"case": f"scam{n}"} for n in range(80)]))
    assert (summary.reasons, len(looked_for)) == ({"unknown-case": 80}, 50)
    assert "Did you mean 'scan'?" in summary.first_problem
    assert len(scans.catalog.problems()) == 80


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        pytest.param({"kind": "extreme", "extreme_points_xy": [[3, 4], [5, 2], [8, 5]]}, "malformed-row", "four pairs", id="three points"),
        pytest.param(
            {"kind": "recist", "recist_xy": [[3, 4], [9, 4], [6, 4], [5, 4]]}, "malformed-row", "enclose nothing", id="a flat lesion"
        ),
        pytest.param(
            {"kind": "recist", "recist_xy": [[3, 4], [50, 5], [6, 2], [5, 7]]}, "point-outside-image", "50", id="an end outside the slice"
        ),
        pytest.param({"kind": "recist", "extreme_points_xy": [[3, 4]] * 4}, "malformed-row", "recist_xy", id="the field of another kind"),
    ],
)
def test_a_bad_row_of_four_points_says_what_is_wrong(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts, row: dict[str, object], reason: str, words: str
) -> None:
    path = write_prompts(tmp_path, [{"case": "scan", "class_id": 1, "slice": 3} | row])
    assert import_prompts(scans, path).reasons == {reason: 1}
    assert words in scans.catalog.problems()[0].message


def test_four_points_are_lists_of_pairs_in_a_table_too(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    text = "case,class_id,kind,slice,recist_xy\nscan,1,recist,3,3 4; 9 5; 6 2; 5 7\n"
    assert import_prompts(scans, write_prompts(tmp_path, text, "prompts.csv")).added == 1
    assert only(scans).points_xy_px == ((3, 4), (9, 5), (6, 2), (5, 7))
