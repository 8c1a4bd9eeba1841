"""What a recipe means, and what is said about a wrong one."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.durations import as_text, seconds_from
from flows.errors import RecipeError
from flows.recipe_file import TEMPLATE, load_recipe
from storage import fingerprint
from storage.ingest.source import patient_of

WriteRecipe = Callable[[str], Path]
SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"


def complaint(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value)


def test_two_keys_make_a_recipe_and_its_paths_count_from_its_folder(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(SMALLEST))
    assert recipe.archive == str(tmp_path / "archive.zarr")
    assert recipe.student_folder == tmp_path / "results" / "students" / "compact"
    assert (recipe.teacher.checkpoint, recipe.uncertainty.boxes, recipe.student.budget) == ("bundled", 5, 1200)


def test_an_address_of_an_object_store_is_left_as_it_is(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe("archive: s3://bucket/a.zarr\ncatalog: sqlite:///c.sqlite\nclasses: {1: {name: organ}}\n"))
    assert recipe.archive == "s3://bucket/a.zarr"


def test_a_path_takes_variables_from_the_environment(write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(tmp_path))
    recipe = load_recipe(write_recipe(SMALLEST + "ingest: {images: '${SCANS}'}\n"))
    assert recipe.ingest is not None
    assert recipe.ingest.images == tmp_path


def test_a_variable_that_is_not_set_is_named(write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCANS", raising=False)
    said = complaint(write_recipe(SMALLEST + "ingest: {images: '${SCANS}/images'}\n"))
    assert "'ingest.images' names the environment variable SCANS, which is not set" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("techer: {}", "unknown key 'techer'. Did you mean 'teacher'?", id="misspelt block"),
        pytest.param(
            "teacher: {chekpoint: bundled}", "unknown key 'teacher.chekpoint'. Did you mean 'checkpoint'?", id="misspelt key in a block"
        ),
        pytest.param(
            "student: {budget: soon}", "'student.budget' must be a duration such as 90s, 20min or 1.5h, but is 'soon'", id="duration"
        ),
        pytest.param("student: {kind: large}", "'student.kind' is 'large': input should be 'compact'", id="unknown student"),
        pytest.param(
            "uncertainty: {boxes: 0}", "'uncertainty.boxes' is 0: input should be greater than or equal to 1", id="number out of range"
        ),
        pytest.param("teacher: {checkpoint: ./gone.pth}", "'teacher.checkpoint' there is nothing at", id="checkpoint that is not there"),
        pytest.param("refine: {risk: 2}", "'refine.risk' is 2: input should be less than 1", id="risk"),
        pytest.param("schedule: nightly", "'schedule' is 'nightly'", id="schedule that is no cron line"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_cure(write_recipe: WriteRecipe, text: str, said: str) -> None:
    path = write_recipe(SMALLEST + text + "\n")
    found = complaint(path)
    assert said in found
    assert found.startswith(f"{path}: ")
    assert "\n" not in found


def test_a_misspelt_key_of_a_class_is_compared_with_the_keys_of_a_class(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: organ, volume_mm: [1, 2]}}\n"))
    assert "unknown key 'classes.1.volume_mm'. Did you mean 'volume_mm3'?" in said


def test_every_mistake_is_named_at_once(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("classes: {1: {name: organ}}\nstudnet: {}\n"))
    assert said.count("\n") == 1
    assert "'archive' is missing" in said
    assert "Did you mean 'student'?" in said


@pytest.mark.parametrize("key", [0, 255])
def test_background_and_ignore_are_no_classes(write_recipe: WriteRecipe, key: int) -> None:
    assert f"classes.{key}" in complaint(write_recipe(f"archive: a.zarr\nclasses: {{{key}: {{name: organ}}}}\n"))


def test_what_is_wrong_between_two_blocks_is_one_whole_sentence(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: a}}\nrefine: {classes: {7: {components: 1}}}\n"))
    assert said.endswith("yaml: refine.classes names class 7, but the classes are 1.")


def test_two_classes_of_one_name_are_refused(write_recipe: WriteRecipe) -> None:
    assert "two classes carry the same name" in complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: a}, 2: {name: a}}\n"))


def test_volumes_must_rise(write_recipe: WriteRecipe) -> None:
    assert "two rising volumes" in complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: a, volume_mm3: [9, 1]}}\n"))


def test_broken_yaml_is_named_with_its_line(write_recipe: WriteRecipe) -> None:
    assert "not readable as YAML in line 3" in complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: a}\n"))


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    assert "samdistill recipe > gone.yaml" in complaint(tmp_path / "gone.yaml")


def test_a_list_is_no_recipe(write_recipe: WriteRecipe) -> None:
    assert "holds a list" in complaint(write_recipe("- a\n- b\n"))


def test_an_empty_file_is_no_recipe(write_recipe: WriteRecipe) -> None:
    assert "the recipe is empty. 'samdistill recipe > recipe.yaml' writes one" in complaint(write_recipe("# nothing yet\n"))


def test_a_table_is_no_recipe(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("case,part\na,test\n"))
    assert "holds a table or plain text" in said
    assert "str" not in said.replace("./archive.zarr", "")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder; give the recipe file in it." in complaint(tmp_path)


def test_a_class_name_with_blanks_is_answered_with_one_without(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("archive: a.zarr\nclasses: {1: {name: left ventricle cavity}}\n"))
    assert "without blanks" in said
    assert "but is 'left ventricle cavity'. Write left-ventricle-cavity." in said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("modality: MRI", "'ingest.modality' there is no modality 'MRI'. Did you mean MR?"),
        ("patient_from: '^(P'", "'ingest.patient_from' the patient pattern '^(P' is no regular expression"),
    ],
    ids=["modality", "pattern"],
)
def test_a_wrong_word_about_the_scans_is_found_when_the_recipe_is_read(
    key: str, said: str, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    assert said in complaint(write_recipe(SMALLEST + f"ingest: {{images: {tmp_path}, {key}}}\n"))


def test_the_template_judges_no_volume_and_says_when_thresholds_are_not_set(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "weak_prompts.json").write_text("[]")
    assert load_recipe(write_recipe(TEMPLATE)).classes[1].volume_mm3 is None
    assert "volume_mm3: [1000, 9000]" in TEMPLATE
    assert "Fewer than 3 calibration patients" in TEMPLATE


def test_the_example_for_pictures_is_a_recipe_and_its_split_is_as_it_says(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMDISTILL_TEST_DATA", str(real_data))
    recipe = load_recipe(Path(__file__).parents[2] / "docs" / "recipes" / "cardiac.yaml")
    assert recipe.ingest is not None
    assert recipe.ingest.split is not None
    assert recipe.ingest.patient_from is not None
    with recipe.ingest.split.open(encoding="utf-8") as file:
        parts = {row["case"]: row["part"] for row in csv.DictReader(file)}
    assert sorted(parts) == sorted(path.stem for path in recipe.ingest.images.glob("*.png"))
    patients = {case: patient_of(case, recipe.ingest.patient_from) for case in parts}
    expected = dict(zip(sorted(set(patients.values())), ["archive", "archive", "archive", "calibration", "test"] * 3, strict=True))
    assert parts == {case: expected[patient] for case, patient in patients.items()}


def test_the_template_is_a_recipe(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "weak_prompts.json").write_text("[]")
    recipe = load_recipe(write_recipe(TEMPLATE))
    assert recipe.classes[1].name == "organ"


def test_the_example_for_real_scans_is_a_recipe(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMDISTILL_TEST_DATA", str(real_data))
    recipe = load_recipe(Path(__file__).parents[2] / "docs" / "recipes" / "hippocampus.yaml")
    assert recipe.ingest is not None
    assert recipe.ingest.gold is not None
    assert recipe.ingest.gold.map == {1: 1, 2: 1}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), (30, 30), ("30", 30), ("2 m", 120)])
def test_durations_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert seconds_from(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5s", "5 parsecs", None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        seconds_from(text)


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (12.3, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert as_text(seconds) == text


def test_a_key_that_stands_twice_is_refused_with_its_line(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe("archive: a.zarr\nclasses:\n  1: {name: liver}\n  1: {name: spleen}\n"))
    assert said.endswith("recipe.yaml: not readable as YAML in line 4 (the key 1 stands there for the second time).")


def test_names_that_differ_only_in_case_or_dashes_are_one_name(write_recipe: WriteRecipe) -> None:
    assert "two classes carry the same name" in complaint(
        write_recipe("archive: a.zarr\nclasses: {1: {name: left-lung}, 2: {name: Left_Lung}}\n")
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"], ids=["PowerShell 5", "Notepad"])
def test_a_recipe_may_be_encoded_as_windows_does_it(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(f"{SMALLEST}results: ./Ergebnisse für Jürgen\n".encode(encoding))
    assert load_recipe(tmp_path / "recipe.yaml").results.name == "Ergebnisse für Jürgen"


def test_a_date_that_there_is_not_is_no_riddle(write_recipe: WriteRecipe) -> None:
    assert "not readable as YAML (day is out of range for month)" in complaint(write_recipe(f"{SMALLEST}results: 2026-02-30\n"))


def test_the_home_of_somebody_unknown_is_named(write_recipe: WriteRecipe) -> None:
    said = complaint(write_recipe(f"{SMALLEST}results: ~nobody-of-this-name/results\n"))
    assert "'results' begins with a home folder that is not known on this machine" in said


def test_the_file_of_a_catalog_counts_from_the_recipes_folder_and_takes_variables(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "p@ss")
    assert load_recipe(write_recipe(f"{SMALLEST}catalog: sqlite:///c.sqlite\n")).catalog == f"sqlite:///{tmp_path}/c.sqlite"
    kept = {"sqlite:////elsewhere/c.sqlite", "sqlite://", "sqlite:///:memory:", "postgresql://me:${PASSWORD}@host/name"}
    for url in kept:
        assert load_recipe(write_recipe(f"{SMALLEST}catalog: '{url}'\n")).catalog == url.replace("${PASSWORD}", "p@ss")
    assert "'catalog' the catalog './c.sqlite' is no database URL" in complaint(write_recipe(f"{SMALLEST}catalog: ./c.sqlite\n"))


def test_objects_that_are_numbered_one_by_one_are_a_class_without_naming_each_number(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "gold").mkdir()
    recipe = load_recipe(write_recipe(SMALLEST + "ingest: {images: ., gold: {path: gold, map: {above  0: 1, 3: 0}}}\n"))
    assert recipe.ingest is not None
    assert recipe.ingest.gold is not None
    assert recipe.ingest.gold.map == {"above 0": 1, 3: 0}
    assert fingerprint(recipe=recipe.model_dump(mode="json")), "keys of both kinds can be sorted"
    said = complaint(write_recipe(SMALLEST + "ingest: {images: ., gold: {path: gold, map: {rest: 1}}}\n"))
    assert "'ingest.gold.map' names 'rest', which is no value in a file" in said
    assert "{above 0: CLASS}" in said


def test_a_map_of_gold_that_leads_to_no_class_is_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "gold").mkdir()
    block = "ingest: {images: ., gold: {path: gold, map: {1: 1, 2: 3, 4: 255}}}\n"
    assert "ingest.gold.map leads to no class: {2: 3}. Classes: 1;" in complaint(write_recipe(SMALLEST + block))
