"""A recipe whose student takes prompts: trained without any label, and asked as its teacher is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from flows import judging, stages, teaching
from flows.errors import RecipeError
from flows.inspection import inspect_path
from flows.plans import student_spec
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.roster import all_students, promote
from flows.student_words import show_promoted
from storage import Archive, CaseRecord, ClassInfo, Geometry, LabelHistory, Prompt
from students.spec import PromptableSpec

WriteRecipe = Callable[[str], Path]
SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"
ONE = "uncertainty: {boxes: 1, flips: false, planes: axial}\n"
TINY = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 0, 1, 1, 0), embed_dim=32, decoder_heads=8, decoder_mlp=32, mask_channels=8
)


def make_archive(folder: Path, *, prompts: bool) -> Archive:
    archive, rng = Archive.create(str(folder / "archive.zarr")), np.random.default_rng(0)
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    for n in range(4):
        record = CaseRecord(
            id=f"c{n}",
            patient=f"p{n}",
            shape_czyx=(1, 1, 40, 48),
            dtype="float32",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=affine),
            modality="MR",
            part="test" if n == 3 else "archive",
            fingerprint=f"c{n}",
        )
        image = rng.normal(10, 1, (1, 1, 40, 48)).astype(np.float32)
        gold = np.zeros((1, 40, 48), np.uint8)
        gold[0, 10:24, 12:30] = 1
        case = archive.add_case(record, image + 9 * gold[None])
        if n == 3:
            case.write_labels(
                LabelHistory(label_set="gold", classes=(ClassInfo(id=1, name="organ"),), made_by="test", fingerprint="g"), gold
            )
    if prompts:
        archive.catalog.add_prompts([Prompt(case="c3", class_id=1, kind="box", slice=0, box_xyxy_px=(12.0, 10.0, 30.0, 24.0))])
    return archive


def make_recipe(write_recipe: WriteRecipe, folder: Path) -> Recipe:
    torch.manual_seed(5)
    header = {"family": "samdistill-conv", "profile": "samdistill-conv", "config": json.dumps(TINY.to_json())}
    tensors = {name: tensor.clone() for name, tensor in build_conv_sam(TINY).state_dict().items()}
    save_file(tensors, folder / "small.safetensors", metadata=header)
    block = "teacher: {checkpoint: ./small.safetensors, device: cpu}\nstudent: {kind: promptable, budget: 1s}\n"
    return load_recipe(write_recipe(SMALLEST + ONE + block))


def test_it_is_trained_where_nobody_has_labelled_anything_and_is_not_asked_where_nobody_prompts(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    make_archive(tmp_path, prompts=False)
    recipe = make_recipe(write_recipe, tmp_path)
    assert stages.shards_to_refine(recipe, 10) == []
    first = teaching.train(recipe)
    assert (first.done, first.failed) == (1, 0)
    assert "agreement with its teacher's masks of held-out patients" in first.note
    assert teaching.train(recipe).skipped == 1
    scored = judging.evaluate(recipe)
    assert scored.skipped == 1
    assert "the teacher has drawn no test case" in scored.note


def test_it_is_scored_beside_its_teacher_with_the_same_prompts(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = make_archive(tmp_path, prompts=True)
    recipe = make_recipe(write_recipe, tmp_path)
    stages.label(recipe, stages.shards_to_label(recipe, 10)[0])
    teaching.train(recipe)
    note = judging.evaluate(recipe).note
    assert "image encoder" in note
    report = json.loads((recipe.report_folder / "report.json").read_text(encoding="utf-8"))
    assert [each["first"] for each in report["comparisons"]][:2] == ["student/promptable", "teacher/r1"]
    assert report["trained_on"] == "no label"
    assert any(cost["name"] == "image encoder of the student, one picture" for cost in report["costs"])
    assert "Learnt from images alone" in (recipe.report_folder / "report.html").read_text(encoding="utf-8")

    (known,) = all_students(archive.url, None)
    assert (known.kind, known.label_set) == ("promptable", "no label")
    show_promoted(*promote(archive.url, "promptable", None), archive.url)
    assert "name it as a teacher" in capsys.readouterr().out

    facts = inspect_path(str(recipe.student_folder)).facts
    assert str(facts["distilled from"]).startswith("small.safetensors")
    model = inspect_path(str(recipe.student_folder / "teacher.safetensors")).facts
    assert (model["family"], model["profile"], model["can be used"]) == ("samdistill-student", "samdistill-conv", "yes")


def test_what_is_said_of_it_reaches_the_training(write_recipe: WriteRecipe) -> None:
    block = "student: {kind: promptable, name: quick, budget: 3min, seed: 4, promptable: {size: medium, decoder: tuned, embedding_share: 0.9, prompts: 5}}\n"
    spec = student_spec(load_recipe(write_recipe(SMALLEST + block)))
    assert (spec.name, spec.kind, spec.budget_seconds, spec.seed) == ("quick", "promptable", 180.0, 4)
    assert spec.promptable == PromptableSpec(size="medium", decoder="tuned", embedding_share=0.9, prompts=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("student: {promptable: {prompts: 3}}", "has settings of promptable, but the kind is compact", id="another kind"),
        pytest.param("student: {kind: promptable, gold: {patients: 3}}", "has gold, which is of kind: compact", id="gold"),
        pytest.param("student: {kind: promptable, net: small-3d}", "a promptable student learns from no label", id="a net"),
        pytest.param("student: {kind: promptable}\nevaluate: {arms: [ellipse, few-gold]}", "evaluate.arms has few-gold", id="an arm"),
        pytest.param("student: {kind: promptable}\nteacher: {also: [{checkpoint: vit_b}]}", "distils one teacher", id="several teachers"),
        pytest.param("student: {kind: promptable}\nrounds: {most: 2}", "no label that a further round could better", id="rounds of labels"),
    ],
)
def test_what_it_cannot_heed_is_refused_when_the_recipe_is_read(write_recipe: WriteRecipe, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(write_recipe(SMALLEST + text + "\n"))
    assert said in str(refused.value)
