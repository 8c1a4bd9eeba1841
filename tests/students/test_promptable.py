"""A student that takes prompts: it learns its teacher's embeddings from images alone, and takes its teacher's place."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from distill.errors import CheckpointError
from distill.label_plan import LabelPlan
from distill.questions import AskSettings
from distill.teachers.checkpoints import inspect_checkpoint, load_teacher
from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.files import read_tensors
from distill.teachers.sam import SamTeacher
from storage import Archive, Case, ClassInfo
from storage.catalog import Catalog
from students import load_student
from students.checkpoint import read_card, weights_digest
from students.compact import TrainedStudent
from students.errors import ExportError, StudentFileError, TrainingError
from students.export.model_card import model_card
from students.export.write import export_student
from students.outcome import training_doubts
from students.promptable.answers import PromptedStudent
from students.promptable.distilling import Distilling
from students.promptable.losses import embedding_loss, inside, mask_loss
from students.promptable.network import known_teacher
from students.promptable.pictures import Pictures, change
from students.promptable.prompts import Objects, draw_questions, point_between
from students.promptable.training import train
from students.spec import NO_LABEL, PromptableSpec, StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)
TINY = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=8, decoder_mlp=32, mask_channels=8
)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small teacher of random weights."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "small.safetensors"
    header = {
        "family": "samdistill-conv",
        "profile": "samdistill-conv",
        "config": json.dumps(TINY.to_json()),
        "logit_shift": "0.25",
    }
    save_file({name: tensor.clone() for name, tensor in build_conv_sam(TINY).state_dict().items()}, path, metadata=header)
    return path


@pytest.fixture
def asking(teacher_file: Path) -> LabelPlan:
    return LabelPlan(classes=CLASSES, teacher=str(teacher_file), device="cpu")


def spec(**changed: Any) -> StudentSpec:
    known: dict[str, Any] = {
        "name": "prompted",
        "kind": "promptable",
        "steps": 6,
        "budget_seconds": None,
        "batch": 4,
        "validations": 1,
        "validation_fraction": 0.2,
        "threads": 1,
        "device": "cpu",
        "promptable": PromptableSpec(embedding_share=0.5, prompts=2),
    }
    return StudentSpec.model_validate(known | changed)


@pytest.fixture(scope="session")
def taught(archive: Archive, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedStudent:
    plan = LabelPlan(classes=CLASSES, teacher=str(teacher_file), device="cpu")
    return train(archive, classes=CLASSES, spec=spec(), asking=plan, workdir=tmp_path_factory.mktemp("taught"))


def test_embeddings_come_nearer_to_the_teachers(archive: Archive, asking: LabelPlan, tmp_path: Path) -> None:
    how = PromptableSpec(embedding_share=1.0)
    card = train(archive, classes=CLASSES, spec=spec(steps=40, promptable=how, validations=2), asking=asking, workdir=tmp_path).card
    losses = [point.loss for point in card.history if point.loss is not None]
    assert losses[-1] < 0.6 * losses[0]
    assert card.promptable is not None
    assert card.promptable.embedding_steps == 40


def test_the_file_loads_as_a_teacher_that_says_what_it_is(taught: TrainedStudent, teacher_file: Path) -> None:
    file = taught.path / "teacher.safetensors"
    info, theirs = inspect_checkpoint(file, tensors=True), inspect_checkpoint(teacher_file)
    assert (info.family, info.profile, info.fault) == ("samdistill-student", "samdistill-conv", "")
    assert info.details["taught_by"] == f"small.safetensors {theirs.fingerprint}"
    student = load_teacher(file, device="cpu")
    assert student.profile == load_teacher(teacher_file, device="cpu").profile


def test_the_loaded_student_sees_as_the_one_that_was_trained_and_draws_with_its_teachers_decoder(
    archive: Archive, asking: LabelPlan, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Distilling] = []
    run = Distilling.run
    monkeypatch.setattr(Distilling, "run", lambda self, progress: (kept.append(self), run(self, progress))[1])
    path = train(archive, classes=CLASSES, spec=spec(), asking=asking, workdir=tmp_path).path
    loaded, teacher = load_teacher(path / "teacher.safetensors", device="cpu"), load_teacher(teacher_file, device="cpu")
    assert isinstance(loaded, SamTeacher)
    assert isinstance(teacher, SamTeacher)
    squares = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded.sam.image_encoder(squares), kept[0].student.image_encoder(squares))
    for own, theirs in zip(loaded.sam.mask_decoder.parameters(), teacher.sam.mask_decoder.parameters(), strict=True):
        assert torch.equal(own, theirs)
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    answer = loaded.predict(picture, boxes=np.array([[5, 6, 30, 33]], np.float32), points=np.array([[[9, 9]]], np.float32))
    assert answer.logits.shape == (1, 1, 40, 50)


def test_no_label_and_no_prompt_is_read(archive: Archive, asking: LabelPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise AssertionError

    for owner, name in ((Case, "labels"), (Case, "label_sets"), (Catalog, "prompts"), (Catalog, "prompts_by_case"), (Catalog, "scores")):
        monkeypatch.setattr(owner, name, refuse)
    seen: list[str] = []
    read = Case.read
    monkeypatch.setattr(Case, "read", lambda self: (seen.append(self.record.part), read(self))[1])
    card = train(archive, classes=CLASSES, spec=spec(), asking=asking, workdir=tmp_path).card
    assert set(seen) == {"archive"}
    assert card.label_set == NO_LABEL
    assert set(card.training_cases) | set(card.validation_cases) == {f"train{n}" for n in range(6)}


def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(
    archive: Archive, asking: LabelPlan, taught: TrainedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn: Callable[[Distilling], float] = Distilling._learn

    def killed(self: Distilling) -> float:
        if self.state.step == 5:
            raise KeyboardInterrupt
        return learn(self)

    monkeypatch.setattr(Distilling, "_learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train(archive, classes=CLASSES, spec=spec(checkpoint_seconds=0), asking=asking, workdir=tmp_path)
    with pytest.raises(StudentFileError, match="an unfinished training"):
        read_card(tmp_path / "prompted")
    monkeypatch.setattr(Distilling, "_learn", learn)
    again = train(archive, classes=CLASSES, spec=spec(checkpoint_seconds=0), asking=asking, workdir=tmp_path)
    assert again.resumed
    own, undisturbed = (read_tensors(each / "teacher.safetensors").tensors for each in (again.path, taught.path))
    assert all(torch.equal(own[name], undisturbed[name]) for name in undisturbed)


def test_a_finished_student_is_not_trained_again_and_another_teacher_or_seed_makes_another(
    archive: Archive, asking: LabelPlan, taught: TrainedStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distilling, "run", lambda self, progress: (_ for _ in ()).throw(InterruptedError))
    assert not train(archive, classes=CLASSES, spec=spec(threads=2), asking=asking, workdir=taught.path.parent).fresh
    for other, plan in ((spec(seed=1), asking), (spec(), LabelPlan(classes=CLASSES, teacher="bundled", device="cpu"))):
        with pytest.raises(InterruptedError):
            train(archive, classes=CLASSES, spec=other, asking=plan, workdir=taught.path.parent)


@pytest.mark.parametrize("case", [pytest.param("test0", id="one that scores"), pytest.param("calib0", id="one that sets thresholds")])
def test_images_of_other_parts_are_refused(archive: Archive, asking: LabelPlan, tmp_path: Path, case: str) -> None:
    with pytest.raises(TrainingError, match=f"case {case}: it belongs to the part"):
        train(archive, classes=CLASSES, spec=spec(), asking=asking, workdir=tmp_path, cases=["train0", case])


def test_an_archive_without_cases_to_look_at_is_refused(asking: LabelPlan, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the archive part is empty"):
        train(Archive.create(str(tmp_path / "empty.zarr")), classes=CLASSES, spec=spec(), asking=asking, workdir=tmp_path)


def test_who_has_no_prompts_to_give_is_told_what_the_student_is_for(taught: TrainedStudent) -> None:
    with pytest.raises(StudentFileError, match=r"student prompted is promptable.*teacher: \{checkpoint: .*teacher.safetensors"):
        load_student(taught.path)


def test_a_promptable_student_is_not_exported_to_formats_that_take_images_alone(taught: TrainedStudent, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a promptable student, whose answer depends on prompts"):
        export_student(taught.path, tmp_path / "out", "onnx")


def test_a_compact_student_cannot_be_asked_as_a_promptable_one(make_student: Callable[..., Path], asking: LabelPlan) -> None:
    with pytest.raises(StudentFileError, match="of kind compact, not promptable"):
        PromptedStudent(make_student(), asking)


def test_its_card_and_weights_are_found_like_other_students(taught: TrainedStudent) -> None:
    card = read_card(taught.path)
    assert weights_digest(taught.path)
    page = model_card(card)
    assert "distilled from that of the teacher small.safetensors" in page
    assert "no label was read" in page
    assert any("seen" in doubt for doubt in training_doubts(card))


def test_it_is_asked_with_the_prompts_of_its_teacher_and_both_encoders_are_measured(
    archive: Archive, asking: LabelPlan, taught: TrainedStudent
) -> None:
    student = PromptedStudent(taught.path, replace(asking, ask=AskSettings(boxes=1, flips=False, planes="axial")))
    assert student.answer(archive, ["test0"]) == "student/prompted"
    drawn = archive["test0"].labels("student/prompted")
    assert drawn.read().shape == archive["test0"].record.shape_czyx[1:]
    names = [cost.name for cost in student.costs(archive, "test0")]
    assert names == [
        "prompted, with prompts",
        "image encoder of the student, one picture",
        "image encoder of the teacher, one picture",
    ]


def test_a_broken_header_is_refused_by_name(taught: TrainedStudent, tmp_path: Path) -> None:
    found = read_tensors(taught.path / "teacher.safetensors")
    for key, value in (("profile", "nobody"), ("config", "{}")):
        path = tmp_path / f"{key}.safetensors"
        save_file(found.tensors, path, metadata={**found.header, key: value})
        with pytest.raises(CheckpointError, match=f"{key}.safetensors"):
            load_teacher(path, device="cpu")


def pictures(archive: Archive, *, planes: bool) -> Pictures:
    return Pictures(archive, archive.cases(part="archive"), intensity=LabelPlan(classes=CLASSES).intensity, planes=planes)


def test_cases_take_turns_and_a_number_is_always_the_same_picture(archive: Archive) -> None:
    row = pictures(archive, planes=False)
    assert row.slices == 6 * 12
    first = [row.place(0, number) for number in range(6 * 8)]
    assert [place.case for place in first[:8]] == [first[0].case] * 8
    assert len({(place.case, place.index) for place in first}) == 6 * 8
    assert np.array_equal(row.picture(0, 3), pictures(archive, planes=False).picture(0, 3))
    assert row.place(1, 0) != row.place(0, 0) or row.place(1, 8) != row.place(0, 8)


def test_near_isotropic_volumes_are_looked_at_from_three_sides(make_archive: Callable[..., Archive], tmp_path: Path) -> None:
    cubes = make_archive(tmp_path, train=1, test=0, shape=(18, 20, 22), spacing=(1.0, 1.0, 1.0))
    row = pictures(cubes, planes=True)
    assert row.slices == 18 + 20 + 22
    assert {row.place(0, number).axis for number in range(40)} == {0, 1, 2}


@given(seed=st.integers(0, 2**31))
def test_a_changed_picture_keeps_its_size_and_type(seed: int) -> None:
    picture = np.arange(30 * 41 * 3, dtype=np.uint8).reshape(30, 41, 3)
    changed = change(picture, np.random.default_rng(seed))
    assert (changed.shape, changed.dtype) == (picture.shape, picture.dtype)


def test_padding_counts_for_nothing() -> None:
    where = inside([(64, 20), (40, 64)], (8, 8), 64, torch.device("cpu"))
    assert where.sum((1, 2, 3)).tolist() == [8 * 3, 5 * 8]
    teacher, student = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8, requires_grad=True)
    embedding_loss(student, teacher, where).backward()
    assert student.grad is not None
    assert float((student.grad * (1 - where)).abs().sum()) == 0
    assert float((student.grad * where).abs().sum()) > 0


@given(scale=st.floats(0.1, 3), seed=st.integers(0, 1000))
def test_no_masks_are_nearer_to_the_teachers_than_its_own(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, other = (scale * torch.randn(2, 3, 6, 7, generator=generator) for _ in range(2))
    iou = torch.rand(2, 3, generator=generator)
    assert float(mask_loss(teacher, teacher, iou, iou)) == pytest.approx(0, abs=1e-5)
    assert float(mask_loss(other, teacher, iou, iou)) > 0


def test_a_correction_says_whether_the_student_draws_too_little_or_too_much() -> None:
    teacher, student = torch.zeros(3, 4, 5, dtype=torch.bool), torch.zeros(3, 4, 5, dtype=torch.bool)
    teacher[0, 1, 2] = True
    student[1, 3, 0] = True
    points, labels = point_between(student, teacher, 8.0, np.random.default_rng(0))
    assert labels[:, 0].tolist() == [1, 0, -1]
    assert points[:2, 0].tolist() == [[20, 12], [4, 28]]


@pytest.mark.parametrize(
    ("known", "kinds"),
    [
        pytest.param(("box", "point", "mask"), {"box", "point", "box and mask"}, id="SAM"),
        pytest.param(("box",), {"box"}, id="MedSAM, which knows boxes alone"),
        pytest.param(("box", "point"), {"box", "point"}, id="EdgeSAM, which knows no masks"),
    ],
)
def test_a_teacher_is_asked_only_in_ways_that_it_was_trained_with(known: Any, kinds: set[str]) -> None:
    from distill.teachers.base import TeacherProfile

    profile = TeacherProfile(name="some", image_size=64, prompts=known)
    objects = [Objects(boxes=np.array([[1, 2, 30, 40]], np.float32), points=np.array([[9, 9]], np.float32))] * 2
    rng = np.random.default_rng(0)
    asked = [draw_questions(objects, 2, profile, rng, torch.device("cpu")) for _ in range(60)]
    assert {each.kind for each in asked} == kinds
    assert all((each.points is None) == (each.kind != "point") for each in asked)


def test_a_sam_vit_is_distilled_and_its_student_keeps_its_protocol(archive: Archive, tmp_path: Path) -> None:
    torch.manual_seed(7)
    image, patch, dim = 96, 16, 32
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image,
            patch_size=patch,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(embed_dim=dim, image_embedding_size=(6, 6), input_image_size=(image, image), mask_in_chans=8),
        mask_decoder=MaskDecoder(
            transformer_dim=dim, transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=48, num_heads=8), iou_head_hidden_dim=40
        ),
    )
    torch.save(sam.state_dict(), tmp_path / "vit.pth")
    plan = LabelPlan(classes=CLASSES, teacher=str(tmp_path / "vit.pth"), profile="medsam", device="cpu")
    student = train(archive, classes=CLASSES, spec=spec(steps=3), asking=plan, workdir=tmp_path)
    record = student.card.promptable
    assert record is not None
    assert (record.profile, record.prompts, record.image_size) == ("medsam", ("box",), 96)
    loaded = load_teacher(student.path / "teacher.safetensors", device="cpu")
    assert loaded.profile == load_teacher(tmp_path / "vit.pth", profile="medsam", device="cpu").profile
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    assert loaded.encode([picture]).features.shape == (1, dim, 6, 6)
    with pytest.raises(CheckpointError, match="cannot be used with profile 'sam'"):
        load_teacher(student.path / "teacher.safetensors", profile="sam", device="cpu")


def test_teachers_without_prompts_or_from_elsewhere_are_not_distilled(teacher_file: Path) -> None:
    with pytest.raises(TrainingError, match="teacher theirs is loaded by another package"):
        known_teacher(cast("Any", object()), "theirs")
    teacher = load_teacher(teacher_file, device="cpu")
    teacher.profile = replace(teacher.profile, name="samed", prompts=())
    with pytest.raises(TrainingError, match=r"teacher small \(samed\) segments without prompts"):
        known_teacher(teacher, "small")


def test_a_decoder_learns_only_where_it_is_asked_to(archive: Archive, asking: LabelPlan, teacher_file: Path, tmp_path: Path) -> None:
    how = PromptableSpec(embedding_share=0.0, decoder="tuned", prompts=1)
    path = train(archive, classes=CLASSES, spec=spec(steps=3, promptable=how), asking=asking, workdir=tmp_path).path
    own, theirs = (read_tensors(file).tensors for file in (path / "teacher.safetensors", teacher_file))
    changed = {
        name.split(".")[0]
        for name in theirs
        if name in own and own[name].shape == theirs[name].shape and not torch.equal(own[name], theirs[name])
    }
    assert "mask_decoder" in changed
    assert "prompt_encoder" not in changed
