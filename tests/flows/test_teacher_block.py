"""A teacher of any family, from the recipe and the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.engine import ENGINE, LabelPlan
from distill.errors import CheckpointError
from distill.label_inputs import label_fingerprint
from distill.teachers import checkpoints
from flows import cli
from flows.card import card_facts
from flows.errors import RecipeError
from flows.launch import check_teacher
from flows.plans import label_plan
from flows.recipe_file import load_recipe
from storage import CaseRecord, ClassInfo, Geometry, fingerprint

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(path), "--json"])
    assert not ended.value.code
    facts: dict[str, object] = json.loads(capsys.readouterr().out)["facts"]
    return facts


def test_inspect_says_of_a_sam_which_profiles_are_possible(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(real_data / "upstream_outputs" / "medsam.pth", capsys)
    assert facts["family"] == "sam-vit"
    assert facts["image size (px)"] == 1024
    assert "possible: sam, medsam, sam-med2d" in str(facts["profile"])


def test_inspect_says_of_an_adapter_file_its_profile_adapters_and_prompts(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(real_data / "upstream_outputs" / "sammed2d.pth", capsys)
    assert (facts["family"], facts["profile"], facts["adapters"]) == ("sam-med2d", "sam-med2d", "Adapter")
    assert (facts["image size (px)"], facts["trained prompts"]) == (256, "box, point, mask")


def test_inspect_says_of_a_delta_which_base_it_needs(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(real_data / "upstream_outputs" / "samed_lora.pth", capsys)
    assert facts["needs"] == "base: the file it was trained on, a ViT of width 48 with 4 blocks"
    assert facts["image size (px)"] == "its base's"


def test_base_and_precision_of_a_recipe_reach_the_labelling_plan(write_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("delta.pth", "base.pth"):
        (tmp_path / name).touch()
    path = write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\nteacher: {checkpoint: delta.pth, base: base.pth, precision: bf16}\n")
    plan = label_plan(load_recipe(path))
    assert (plan.teacher, plan.base, plan.precision) == (str(tmp_path / "delta.pth"), str(tmp_path / "base.pth"), "bf16")


def test_a_base_that_is_not_there_is_an_error_of_the_recipe(write_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "delta.pth").touch()
    with pytest.raises(RecipeError, match=r"base\.pth"):
        load_recipe(write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\nteacher: {checkpoint: delta.pth, base: base.pth}\n"))


def test_the_precision_that_was_named_is_part_of_a_labels_fingerprint_and_the_default_changes_none() -> None:
    geometry = Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
    record = CaseRecord(id="a", shape_czyx=(1, 2, 3, 4), dtype="int16", geometry=geometry, patient="p", modality="MR")
    plan = LabelPlan(classes=(ClassInfo(id=1, name="x", rgba=(1, 2, 3, 255)),))
    prints = {precision: label_fingerprint(replace(plan, precision=precision), record, [], "t") for precision in ("auto", "fp32", "bf16")}
    before = fingerprint(engine=ENGINE, case=["", "MR"], prompts=[], teacher="t", ask=plan.ask.inputs(), classes=plan.classes, profile="")
    assert prints["auto"] == before
    assert len(set(prints.values())) == 3


def refused(write_recipe: Callable[[str], Path], teacher: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a run with such a teacher ends with."""
    path = write_recipe(f"archive: a.zarr\nclasses: {{1: {{name: x}}}}\nteacher: {{{teacher}}}\ningest: {{images: .}}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(path)])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        pytest.param("checkpoint: '{}/medsam.pth'", "say profile: sam; if it is MedSAM, profile: medsam", id="no profile"),
        pytest.param("checkpoint: '{}/sammed2d.pth', profile: medsam", "cannot be used with profile 'medsam'", id="wrong profile"),
        pytest.param("checkpoint: '{}/samed_lora.pth'", "needs base: the file it was trained on", id="no base"),
        pytest.param("checkpoint: recipe.yaml", "recipe.yaml", id="no checkpoint"),
    ],
)
def test_a_teacher_that_cannot_be_used_ends_a_run_before_anything_is_made(
    teacher: str, said: str, real_data: Path, write_recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = teacher.format(real_data / "upstream_outputs")
    assert said in refused(write_recipe, block, capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_profile_that_the_hash_of_a_file_contradicts_ends_a_run_before_it_begins(
    real_data: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "profile_of_hash", lambda _: "sam")
    file = real_data / "upstream_outputs" / "medsam.pth"
    recipe = load_recipe(
        write_recipe(f"archive: a.zarr\nclasses: {{1: {{name: x}}}}\nteacher: {{checkpoint: '{file}', profile: medsam}}\n")
    )
    with pytest.raises(CheckpointError, match=r"medsam\.pth is known by its hash to be 'sam' and cannot be used with profile 'medsam'"):
        check_teacher(recipe)


def test_what_inspect_says_of_the_bundled_teacher_beyond_its_file_is_what_its_card_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = inspect(Path("bundled"), capsys)
    assert str(facts["trained on"]).startswith("58 % generated scenes, 14 % cell nuclei, 8 % CT and MR organ slices")
    assert facts["licence"] == "Apache-2.0, weights and code"
    card = Path(str(facts["card"]))
    other = tmp_path / "CARD.md"
    other.write_text(card.read_text(encoding="utf-8").replace("| 58 % | generated scenes:", "| 50 % | drawn scenes:"), encoding="utf-8")
    assert card_facts(other)["trained on"].startswith("50 % drawn scenes, 14 % cell nuclei")


def unusable(kind: str, real_data: Path, tmp_path: Path) -> str:
    """Return the teacher's block of a recipe for a file that can be opened and not used."""
    folder = real_data / "upstream_outputs"
    if kind == "prompt-free":
        return f"checkpoint: '{folder / 'samed_lora.pth'}', base: '{folder / 'samed_base.pth'}'"
    tensors = torch.load(folder / "sam_vit.pth", weights_only=True)
    if kind == "missing":
        tensors.pop("mask_decoder.iou_prediction_head.layers.2.bias")
    else:
        tensors["image_encoder.neck.0.weight"][0] = float("nan")
    torch.save(tensors, tmp_path / "teacher.pth")
    return "checkpoint: teacher.pth, profile: sam"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "1 tensor missing: mask_decoder.iou_prediction_head.layers.2.bias"),
        ("nan", "holds NaN or infinity in 1 tensor: image_encoder.neck.0.weight"),
        ("prompt-free", "(profile samed) answers no boxes, and labelling asks with a box on every slice"),
    ],
)
def test_tensors_and_prompts_that_do_not_fit_are_found_before_anything_is_ingested(
    kind: str, said: str, real_data: Path, write_recipe: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = unusable(kind, real_data, tmp_path)
    assert said in refused(write_recipe, block, capsys)
    assert not (tmp_path / "a.zarr").exists()


def test_the_tensors_of_a_teacher_are_checked_without_the_memory_of_a_second_network(
    real_data: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[set[str]] = []
    own = checkpoints.build

    def build(opened: checkpoints.Opened) -> torch.nn.Module:
        network = own(opened)
        built.append({value.device.type for value in network.state_dict().values()})
        return network

    monkeypatch.setattr(checkpoints, "build", build)
    file = real_data / "upstream_outputs" / "medsam.pth"
    check_teacher(
        load_recipe(write_recipe(f"archive: a.zarr\nclasses: {{1: {{name: x}}}}\nteacher: {{checkpoint: '{file}', profile: medsam}}\n"))
    )
    assert built == [{"meta"}]


def test_a_folder_named_as_a_checkpoint_is_called_one_with_the_files_in_it(write_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sam.pth").touch()
    recipe = load_recipe(write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\nteacher: {checkpoint: weights}\n"))
    with pytest.raises(CheckpointError, match=r"weights is a folder, and a checkpoint is a file\. It holds checkpoint files: sam\.pth\."):
        check_teacher(recipe)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("teacher: {checkpoint: vit-b}", r"'teacher\.checkpoint' there is nothing at .*Did you mean the official checkpoint 'vit_b'\?"),
        ("teacher: {checkpoint: bundeld}", r"Did you mean 'bundled'\?"),
        (
            "teacher: bundled",
            r"'teacher' is 'bundled', but holds keys of its own\. Write teacher: \{checkpoint: bundled\}\. Known in it: checkpoint,",
        ),
        ("student: compact", r"Write student: \{kind: compact\}"),
        ("teacher: [bundled]", r"Write teacher: \{checkpoint: \.\.\.\}"),
    ],
    ids=["nearly official", "nearly bundled", "a word for a block", "another word for a block", "a list for a block"],
)
def test_a_wrong_value_is_answered_with_what_to_write(lines: str, said: str, write_recipe: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(write_recipe(f"archive: a.zarr\nclasses: {{1: {{name: x}}}}\n{lines}\n"))
    assert "Block" not in str(caught.value)


def test_a_profile_in_other_letters_is_answered_with_the_known_one(write_recipe: Callable[[str], Path]) -> None:
    recipe = load_recipe(write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\nteacher: {profile: SAM}\n"))
    with pytest.raises(CheckpointError, match=r"no profile 'SAM'\. Did you mean 'sam'\?"):
        check_teacher(recipe)


@pytest.mark.parametrize("stage", ["label", "refine", "train", "evaluate"])
def test_a_stage_without_an_archive_ends_before_prefect_torch_or_the_teacher_are_looked_at(
    stage: str, write_recipe: Callable[[str], Path]
) -> None:
    path = write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\nteacher: {checkpoint: recipe.yaml}\n")
    program = (
        "import sys\nfrom flows import cli\n"
        f"try:\n    cli.main([{stage!r}, {str(path)!r}])\nexcept SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'prefect', 'monai'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "there is no archive at" in answer.stderr
    assert "HEAVY []" in answer.stdout
