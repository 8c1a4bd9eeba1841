"""Which class a row of weak prompts means, by number or by name."""

from collections.abc import Callable
from pathlib import Path

from storage import Archive, ClassInfo, Prompt
from storage.ingest import import_prompts

WritePrompts = Callable[..., Path]
BOX = {"case": "scan", "class_id": 1, "kind": "box", "slice": 2, "box_xyxy": [2, 3, 6, 9]}


def only(archive: Archive, case: str = "scan") -> Prompt:
    (prompt,) = archive.catalog.prompts(case)
    return prompt


def test_classes_of_the_recipe_are_the_only_ones_and_have_names(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    classes = (ClassInfo(id=3, name="organ"),)
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "organ"}
    summary = import_prompts(scans, write_prompts(tmp_path, [named, BOX]), classes=classes)
    assert (summary.added, summary.reasons) == (1, {"unknown-class": 1})
    assert only(scans).class_id == 3


def test_names_stand_for_ids_where_a_row_has_none_and_forbid_no_other_id(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"}
    rows = [named | {"class_name": "organ"}, BOX | {"class_id": 9, "class_name": "tube"}, named | {"class_name": "orgn"}]
    summary = import_prompts(scans, write_prompts(tmp_path, rows), names={"organ": 3})
    assert (summary.added, summary.reasons) == (2, {"unknown-class": 1})
    assert [p.class_id for p in scans.catalog.prompts("scan")] == [3, 9]
    assert "no class 'orgn'. Known: 1 to 254, 3 organ." in scans.catalog.problems()[0].message


def test_a_class_name_without_a_recipe_says_what_resolves_names(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "left-ventricle"}
    import_prompts(scans, write_prompts(tmp_path, [named]))
    said = scans.catalog.problems()[0].message
    assert "class_name 'left-ventricle' needs a recipe that names its classes: run 'samdistill run RECIPE', or give class_id" in said


def test_a_name_may_have_blanks_and_capitals_where_the_recipe_has_dashes(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "Left ventricle_cavity"}
    summary = import_prompts(scans, write_prompts(tmp_path, [named]), names={"left-ventricle-cavity": 4})
    assert (summary.added, summary.notes) == (1, ())
    assert only(scans).class_id == 4


def test_a_name_that_the_recipe_does_not_know_beside_a_good_id_is_reported(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    rows = [BOX | {"class_name": "heart"}, BOX | {"class_name": "heart", "slice": 3}]
    summary = import_prompts(scans, write_prompts(tmp_path, rows), names={"liver": 1})
    assert summary.added == 2
    assert summary.notes == ("class 1 is 'liver' in the recipe and 'heart' in 2 rows, taken by number",)


def test_an_id_and_a_name_of_two_classes_are_refused(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, [BOX | {"class_name": "spleen"}]), names={"liver": 1, "spleen": 2})
    assert (summary.added, summary.reasons) == (0, {"unknown-class": 1})
    assert "class_id 1 and class_name 'spleen' are not one class: 1 liver, 2 spleen" in summary.first_problem


def test_a_row_whose_name_belongs_to_another_id_is_refused_also_where_no_class_has_its_id(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, [BOX | {"class_id": 3, "class_name": "liver"}]), names={"liver": 1})
    assert (summary.added, summary.reasons) == (0, {"unknown-class": 1})
    assert "class_id 3 and class_name 'liver' are not one class" in summary.first_problem


def coco(number: int, name: str) -> dict[str, object]:
    return {
        "images": [{"id": 7, "file_name": "picture.png"}],
        "categories": [{"id": number, "name": name}],
        "annotations": [{"image_id": 7, "category_id": number, "bbox": [3, 4, 5, 6]}],
    }


def test_the_name_of_a_coco_category_decides_where_the_recipe_knows_it_and_another_number_is_told(
    scans: Archive, tmp_path: Path, write_prompts: WritePrompts
) -> None:
    summary = import_prompts(scans, write_prompts(tmp_path, coco(3, "Liver")), names={"liver": 1, "spleen": 2})
    assert [prompt.class_id for prompt in scans.catalog.prompts("picture")] == [1]
    assert summary.notes == ("category 3 'Liver' is class 1 in the recipe, taken by name",)


def test_a_coco_category_of_the_recipes_own_number_needs_no_word(scans: Archive, tmp_path: Path, write_prompts: WritePrompts) -> None:
    assert import_prompts(scans, write_prompts(tmp_path, coco(2, "spleen")), names={"liver": 1, "spleen": 2}).notes == ()
    assert [prompt.class_id for prompt in scans.catalog.prompts("picture")] == [2]
