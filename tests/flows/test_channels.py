"""From a folder of nnU-Net with two channels to a student and its scores, and what is said of channels on the way."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from flows import judging, showcase, stages, teaching
from flows.errors import FlowError, RecipeError
from flows.freshness import input_stamps, material
from flows.imports import ingest_folder
from flows.inspection import inspect_path
from flows.plans import student_spec
from flows.recipe_channels import channels_from_words, channels_of
from flows.recipe_file import load_recipe
from storage import Archive
from students.checkpoint import read_card

WriteRecipe = Callable[[str], Path]
SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"
RECIPE = (
    SMALLEST + "ingest: {images: ./raw, modality: MR, prompts: ./boxes.json, split: ./split.csv, gold: {path: ./raw/labelsTr}}\n"
    "teacher: {device: cpu}\nuncertainty: {boxes: 1, flips: false, planes: axial}\nrefine: {semantic: []}\n"
    "student: {name: two, budget: 3s, net: small, device: cpu}\nevaluate: {arms: []}\n"
)


def disc(y: int, x: int) -> np.ndarray:
    rows, columns = np.ogrid[:64, :72]
    return (rows - y) ** 2 + (columns - x) ** 2 < 10**2


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two discs in the first channel, of which the second channel shows one: the other is the organ."""
    boxes = []
    for n in range(6):
        rng = np.random.default_rng(n)
        y, x = rng.integers(14, 50, 2)
        organ, other = disc(int(y), 16 if n % 2 else 54), disc(int(x), 54 if n % 2 else 16)
        images = 100.0 * (organ | other), 3.0 * other
        for number, image in enumerate(images):
            values = image + rng.normal(0.1 * image.max(), 0.05 * image.max(), image.shape)
            write(tmp_path / "raw" / "imagesTr" / f"case{n}_{number:04d}.nii.gz", values.astype(np.float32))
        write(tmp_path / "raw" / "labelsTr" / f"case{n}.nii.gz", organ.astype(np.uint8))
        rows, columns = np.flatnonzero(organ.any(1)), np.flatnonzero(organ.any(0))
        box = [int(each) for each in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
        boxes.append({"case": f"case{n}", "class_id": 1, "kind": "box", "slice": 0, "box_xyxy": box})
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "split.csv").write_text("case,part\ncase4,test\ncase5,test\n")
    return tmp_path / "raw"


def write(path: Path, values_yx: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values_yx.T[..., None], np.eye(4)), path)


def test_a_folder_of_nnunet_becomes_a_student_of_two_channels_with_scores(
    raw: Path, write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(write_recipe(RECIPE))
    brought = stages.ingest(recipe)
    assert (brought.done, brought.quarantined) == (6, 0)
    assert "channels by dataset.json: T1 (..._0000), T2 (..._0001)" in brought.note
    (shard,) = stages.shards_to_label(recipe, 10)
    assert stages.label(recipe, shard).done == 6
    assert Archive.open(recipe.archive)["case0"].labels("teacher/r1").history.parameters["window_channels"] == "channel:0"
    stages.calibrate(recipe)
    stages.refine(recipe, shard)
    assert teaching.train(recipe).done == 1
    assert [each.name for each in read_card(recipe.student_folder).channels] == ["T1", "T2"]
    assert "student - gold" in judging.evaluate(recipe).note
    assert inspect_path(recipe.archive).facts["channels"] == "T1, T2"
    assert inspect_path(str(recipe.student_folder)).facts["channels"] == "2 channels (T1, T2)"
    assert showcase.predict_to_files(recipe.student_folder, [raw / "imagesTr"], tmp_path / "out", device="cpu") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"case{n}.nii.gz" for n in range(6)]
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2", "1": "T1"}}))
    assert (stages.ingest(recipe).done, teaching.train(recipe).done) == (0, 1), (
        "other names of the same files are other images to a student"
    )
    assert [each.name for each in read_card(recipe.student_folder).channels] == ["T2", "T1"]
    alone = raw / "imagesTr" / "case0_0001.nii.gz"
    assert showcase.predict_to_files(recipe.student_folder, [alone], tmp_path / "alone", device="cpu") == 1
    assert "no channel T2 (..._0000)" in " ".join(capsys.readouterr().err.split())


def test_other_names_of_channels_are_something_to_do_for_run_train_folds_and_evaluate(raw: Path, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(RECIPE))
    stages.ingest(recipe)
    archive = Archive.open(recipe.archive)
    recipe.student_folder.mkdir(parents=True)
    (recipe.student_folder / "student.json").write_text("{}")

    def states() -> tuple[str, ...]:
        spec, cases = student_spec(recipe), archive.cases(part="archive")
        learnt = [teaching.train_fingerprint(archive, spec, cases), teaching.train_fingerprint(archive, spec, [], gold=["case0"])]
        return material(archive), judging.evaluation_fingerprint(archive, recipe), *learnt

    named = states()
    assert stages.ingest(recipe).done == 0
    assert states() == named
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2", "1": "T1"}}))
    stages.ingest(recipe)
    assert [each.name for each in archive["case0"].record.channels] == ["T2", "T1"]
    assert all(now != before for now, before in zip(states(), named, strict=True))


def test_channels_of_a_recipe_are_names_suffixes_or_blocks(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    def channels(text: str) -> list[tuple[str, str, str]] | None:
        recipe = load_recipe(write_recipe(SMALLEST + f"ingest: {{images: '{tmp_path}', channels: {text}}}\n"))
        assert recipe.ingest is not None
        found = channels_of(recipe.ingest.channels)
        return None if found is None else [(each.name, each.suffix, each.modality) for each in found]

    assert channels("[t1, t2]") == [("t1", "_0000", "unknown"), ("t2", "_0001", "unknown")]
    assert channels("{t1n: -t1n, t2w: -t2w}") == [("t1n", "-t1n", "unknown"), ("t2w", "-t2w", "unknown")]
    assert channels("{venous: {suffix: _v, modality: CT}, pet: _p}") == [("venous", "_v", "CT"), ("pet", "_p", "PT")]
    assert channels("[]") == []
    assert channels("null") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[t1, t1]", "t1, t1", id="a name twice"),
        pytest.param("{t1: _a, t2: _a}", "files that end in '_a'", id="one suffix twice"),
        pytest.param("[T1 Gd]", "without blanks", id="a name with blanks"),
        pytest.param("{t1: {sufix: _a}}", "sufix", id="a misspelt key"),
        pytest.param("{t1: {suffix: _a, modality: CAT}}", "there is no modality 'CAT'", id="no modality"),
    ],
)
def test_channels_that_cannot_be_used_are_refused_with_the_recipe(text: str, said: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(SMALLEST + f"ingest: {{images: '{tmp_path}', channels: {text}}}\n"))


def test_a_command_line_names_channels_in_words(raw: Path, tmp_path: Path) -> None:
    found = channels_from_words("a=_0000, b=_0001")
    assert found is not None
    assert [(each.name, each.suffix) for each in found] == [("a", "_0000"), ("b", "_0001")]
    with pytest.raises(FlowError, match="Write names and what their files end in"):
        channels_from_words("a,a")
    options = {"modality": None, "patient_from": None, "split": None, "catalog": None}
    done = ingest_folder(raw / "imagesTr", str(tmp_path / "b.zarr"), channels="b=_0001,a=_0000", **options)  # type: ignore[arg-type]
    assert done.done == 6
    assert [each.name for each in Archive.open(str(tmp_path / "b.zarr"))["case0"].record.channels] == ["b", "a"]


def test_what_describes_a_folder_from_above_is_an_input_of_the_run(raw: Path, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(SMALLEST + "ingest: {images: ./raw/imagesTr}\n"))
    assert str(raw / "dataset.json") in [stamp[0] for stamp in input_stamps(recipe)]
