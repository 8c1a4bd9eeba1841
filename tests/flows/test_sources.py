"""What is said when scans, prompts or a split cannot be used: before anything is made, and with the true cause."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from distill.teachers.opening import bundled_path
from flows import cli, doctor, stages
from flows.errors import StageError
from flows.freshness import standing
from flows.inspection import inspect_path
from flows.places import check_writable
from flows.recipe_file import load_recipe
from storage import Archive
from storage.errors import ArchiveError, IngestError

WriteRecipe = Callable[[str], Path]
NOWHERE = Path("/proc/of-nobody")
"""Nobody can make a folder here, not even root."""
BOX = {"class_id": 1, "kind": "box", "box_xyxy": [2, 3, 6, 9]}
RECIPE = "archive: ./a.zarr\nclasses: {1: {name: organ}}\ningest: {images: ./in, modality: MR, prompts: ./prompts.json}\n"


def ask(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return int(ended.value.code or 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, and a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("one", "two"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (20, 30)).astype(np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"")
    return folder


def prompts(folder: Path, *rows: dict[str, object]) -> None:
    (folder / "prompts.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("files", "said"), [((), "is empty"), (("notes.txt", ".hidden.png"), "holds no image among its 1 file")], ids=["empty", "no image"]
)
def test_a_folder_without_an_image_is_an_error_and_leaves_no_archive(
    files: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in files:
        (tmp_path / "in" / name).write_text("text")
    assert ask("ingest", str(tmp_path / "in"), str(tmp_path / "e.zarr")) == 1
    found = capsys.readouterr().err
    assert said in found
    assert "Give a folder with NIfTI, DICOM, PNG, JPEG or TIFF files" in found
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_run_on_a_folder_without_an_image_leaves_no_archive(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    prompts(tmp_path, {"case": "one"} | BOX)
    with pytest.raises(IngestError, match="is empty"):
        stages.ingest(load_recipe(write_recipe(RECIPE)))
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--modality", "MRI"), "no modality 'MRI'. Did you mean MR?"),
        (("--patient-from", "^(P"), "is no regular expression"),
    ],
    ids=["modality", "patient pattern"],
)
def test_a_wrong_word_on_the_command_line_is_one_line_and_leaves_no_archive(
    options: tuple[str, str], said: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("ingest", str(pictures), str(tmp_path / "e.zarr"), *options) == 1
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert not (tmp_path / "e.zarr").exists()


def test_a_run_whose_prompts_are_all_refused_stops_with_the_true_cause(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    named = {k: v for k, v in BOX.items() if k != "class_id"} | {"class_name": "liver"}
    prompts(tmp_path, {"case": "one"} | named, {"case": "two"} | named)
    with pytest.raises(StageError, match=r"none of the prompts of prompts\.json can be used \(2 unknown-class\)") as caught:
        stages.ingest(load_recipe(write_recipe(RECIPE)))
    assert "there is no class 'liver'. Known: 1 to 254, 1 organ." in str(caught.value)


def test_a_file_without_a_prompt_stops_the_run(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    prompts(tmp_path)
    with pytest.raises(StageError, match=r"prompts\.json holds no prompt"):
        stages.ingest(load_recipe(write_recipe(RECIPE)))


def test_a_class_that_the_prompts_call_otherwise_is_told(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    prompts(tmp_path, {"case": "one", "class_name": "heart"} | BOX)
    note = stages.ingest(load_recipe(write_recipe(RECIPE))).note
    assert note == "class 1 is 'organ' in the recipe and 'heart' in 1 row, taken by number; 1 file or row refused"


def test_rows_about_scans_that_were_left_out_are_counted_and_are_no_failure(
    write_recipe: WriteRecipe, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.png").unlink()
    prompts(tmp_path, {"case": "one"} | BOX, *({"case": f"left-out-{n}"} | BOX for n in range(5)))
    recipe = load_recipe(write_recipe(RECIPE))
    found = stages.ingest(recipe)
    assert (found.quarantined, found.note) == (0, "")
    told = "2 patients (each file is one: ingest.patient_from is not given)"
    assert found.remark == f"{told}, 5 files or rows about cases that the archive does not hold"
    assert next(each for each in standing(recipe) if each.stage == "ingest").quarantined == 0, "nor for a later run"
    assert len(inspect_path(recipe.archive).refused) == 5, "which they are can be looked up"


def test_expert_labels_of_which_none_could_be_used_are_warned_of(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    prompts(tmp_path, {"case": "one"} | BOX)
    (tmp_path / "gold").mkdir()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "gold" / "other.png")
    recipe = load_recipe(write_recipe(RECIPE.replace("prompts.json}", "prompts.json, gold: {path: ./gold}}")))
    assert "WARNING: not one expert label could be used" in stages.ingest(recipe).note


def test_rows_of_a_split_that_name_no_case_are_counted(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    prompts(tmp_path, {"case": "one"} | BOX)
    (tmp_path / "split.csv").write_text("case,part\none,test\ntwo.png,test\nthree.png,archive\n")
    recipe = load_recipe(write_recipe(RECIPE.replace("prompts.json}", "prompts.json, split: ./split.csv}")))
    said = stages.ingest(recipe).note
    assert "2 of 3 rows of split.csv name no case, such as 'three.png'. Cases are called after their files, without the ending" in said


def test_a_split_that_names_no_case_at_all_is_an_error(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "split.csv").write_text("case,part\none.png,test\n")
    assert ask("ingest", str(pictures), str(tmp_path / "a.zarr"), "--split", str(tmp_path / "split.csv")) == 1
    assert "none of the 1 row of split.csv names a case of the archive, such as 'one.png'" in capsys.readouterr().err


def test_files_that_were_refused_do_not_count_as_done(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = str(tmp_path / "a.zarr")
    assert ask("ingest", str(pictures), archive) == 3
    assert f"1 file or row has no result: 'samdistill inspect {archive}' says which and why." in capsys.readouterr().out
    found = inspect_path(archive)
    assert found.facts["ingest (files)"] == "2 done, 1 refused"


@pytest.mark.parametrize("command", ["ingest", "inspect"])
def test_a_folder_that_is_no_archive_is_not_taken_for_one_to_be_made(
    command: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("ingest", str(pictures), str(pictures)) if command == "ingest" else ("inspect", str(pictures))
    assert ask(*words) == 1
    said = capsys.readouterr().err
    held = "exists and is not an archive: it is a folder that holds 'broken.png'. Choose another path"
    assert (
        held if command == "ingest" else "neither an archive nor a student's. It holds no checkpoint file, archive or student, but b"
    ) in said
    assert "make one" not in said


def test_a_run_with_an_archive_path_that_is_taken_says_so(write_recipe: WriteRecipe, pictures: Path, tmp_path: Path) -> None:
    prompts(tmp_path, {"case": "one"} | BOX)
    with pytest.raises(ArchiveError, match="exists and is not an archive: it is a folder that holds"):
        stages.ingest(load_recipe(write_recipe(RECIPE.replace("./a.zarr", "./in"))))


@pytest.mark.parametrize("words", [("ingest", "{in}", f"{NOWHERE}/a.zarr"), ("demo", "--out", f"{NOWHERE}/demo")], ids=["ingest", "demo"])
def test_a_place_that_cannot_be_written_to_is_one_line(words: tuple[str, ...], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(*(word.replace("{in}", str(pictures)) for word in words)) == 1
    said = capsys.readouterr().err
    assert f"cannot be written to {NOWHERE}" in said
    assert "Choose a folder of your own." in said
    assert said.count("\n") == 1


def test_a_run_whose_results_cannot_be_written_touches_nothing(
    write_recipe: WriteRecipe, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts(tmp_path, {"case": "one"} | BOX)
    assert ask("run", str(write_recipe(RECIPE + f"results: {NOWHERE}/results\n"))) == 1
    assert f"the results cannot be written to {NOWHERE}/results" in capsys.readouterr().err
    assert not (tmp_path / "a.zarr").exists()


def test_the_probe_of_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder", "the archive")
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_tries_to_write_in_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk().verdict in {"ok", "note"}
    monkeypatch.chdir("/proc")
    check = doctor.disk()
    assert check.verdict == "problem"
    assert "/proc is not writable" in check.found
    assert check.remedy


def test_an_error_of_permission_from_anywhere_names_the_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flows import launch

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/out.nii.gz")

    monkeypatch.setattr(launch, "launch", refused)
    assert ask("run", "recipe.yaml") == 1
    assert capsys.readouterr().err.startswith("error: /data/out.nii.gz cannot be opened or written (Permission denied).")


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert ask("--version") == 0
    assert capsys.readouterr().out == f"samdistill {version('samdistill')}\n"


def test_the_bundled_teacher_is_shown_with_data_licence_and_card_and_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("inspect", "bundled") == 0
    said = capsys.readouterr().out
    assert "Apache-2.0" in said
    assert "generated scenes" in said
    assert "CARD.md" in said.replace("\n", "")
    assert '{"' not in said
    assert "widths 32, 48, 96, 160, 192" in said


def test_a_run_whose_scans_were_moved_away_keeps_its_cases_and_goes_on(write_recipe: WriteRecipe, pictures: Path) -> None:
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\ningest: {images: ./in}\n"))
    stages.ingest(recipe)
    for file in pictures.iterdir():
        file.unlink()
    result = stages.ingest(recipe)
    assert (result.done, result.quarantined) == (0, 0)
    assert result.note == "in holds no image now; the archive keeps its 2 cases"


def test_a_folder_whose_scans_were_moved_away_can_be_ingested_again(pictures: Path, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.zarr")
    ask("ingest", str(pictures), archive)
    for file in pictures.iterdir():
        file.unlink()
    assert ask("ingest", str(pictures), archive) == 0


def test_an_archive_without_a_case_does_not_excuse_a_folder_without_an_image(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\ningest: {images: ./in}\n"))
    Archive.create(recipe.archive)
    with pytest.raises(IngestError, match="in is empty"):
        stages.ingest(recipe)


def test_inspect_says_whether_a_checkpoint_can_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    with safe_open(str(bundled_path()), "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - a handle, no mapping
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, broken, metadata=header)
    assert inspect_path("bundled").facts["can be used"] == "yes"
    assert "NaN" in inspect_path(str(broken)).facts["can be used"]


@pytest.mark.parametrize(
    ("patient_from", "told"),
    [
        pytest.param("", {"patients (each file is one: ingest.patient_from is not given)": 4}, id="from nothing"),
        pytest.param("  patient_from: '^(P[0-9])'\n", {"patients (found in the names of files)": 2}, id="from names"),
        pytest.param("  patient_from: '^(P)'\n", {"patient (found in the names of files)": 1}, id="from names that say too little"),
    ],
)
def test_how_patients_were_told_apart_stands_in_the_line_of_ingest(
    patient_from: str, told: dict[str, int], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n, name in enumerate(("P1-a", "P1-b", "P2-a", "P2-b")):
        Image.fromarray(np.arange(16 * 18, dtype=np.uint8).reshape(16, 18) // (n + 1)).save(folder / f"{name}.png")
    recipe = load_recipe(write_recipe(f"archive: a.zarr\nclasses: {{1: {{name: organ}}}}\ningest:\n  images: pictures\n{patient_from}"))
    assert stages.ingest(recipe).tally == told
    assert stages.ingest(recipe).tally == {}, "nothing new, nothing to say"
