"""A checkpoint is loaded right, or refused with a sentence that helps."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill import load_teacher
from distill.errors import CheckpointError, DistillError
from distill.teachers.checkpoints import inspect_checkpoint
from distill.teachers.sam import SamTeacher


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "created-by-pickle"
    checkpoint = tmp_path / "hostile.pth"
    torch.save({"model": Hostile(victim)}, checkpoint)
    with pytest.raises(CheckpointError, match="running a file's own code is refused"):
        load_teacher(checkpoint)
    assert not victim.exists()


def test_a_plain_hostile_pickle_is_refused_too(tmp_path: Path) -> None:
    victim = tmp_path / "created-by-pickle"
    checkpoint = tmp_path / "hostile.pt"
    checkpoint.write_bytes(pickle.dumps(Hostile(victim)))
    with pytest.raises(CheckpointError):
        load_teacher(checkpoint)
    assert not victim.exists()


def test_a_missing_file_is_named_with_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Give 'bundled' or the path"):
        load_teacher(tmp_path / "nowhere.pth")


def test_a_truncated_file_is_called_truncated(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(1000)}, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:600])
    with pytest.raises(CheckpointError, match="probably truncated"):
        load_teacher(cut)


def test_a_file_of_another_kind_of_model_names_its_tensors(tmp_path: Path) -> None:
    other = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match=r"its tensors are called conv1\.weight"):
        load_teacher(other)


def test_families_that_are_known_but_not_supported_are_recognised(tmp_path: Path) -> None:
    other = tmp_path / "sam2.pt"
    torch.save({"model": {"image_encoder.trunk.pos_embed": torch.zeros(3)}}, other)
    with pytest.raises(CheckpointError, match="is SAM 2"):
        inspect_checkpoint(other)


def test_sam_tensors_without_a_profile_are_ambiguous_and_the_error_says_how_to_choose(real_data: Path) -> None:
    with pytest.raises(CheckpointError, match="say profile: sam"):
        load_teacher(real_data / "upstream_outputs" / "sam_vit.pth")


def test_missing_tensors_are_counted_and_named(real_data: Path, tmp_path: Path) -> None:
    tensors = torch.load(real_data / "upstream_outputs" / "sam_vit.pth", weights_only=True)
    tensors.pop("mask_decoder.iou_prediction_head.layers.2.bias")
    torch.save(tensors, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"1 tensor missing: mask_decoder"):
        load_teacher(tmp_path / "cut.pth", profile="sam")


def test_nan_weights_are_refused(real_data: Path, tmp_path: Path) -> None:
    tensors = torch.load(real_data / "upstream_outputs" / "sam_vit.pth", weights_only=True)
    tensors["image_encoder.neck.0.weight"][0] = float("nan")
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_teacher(tmp_path / "nan.pth", profile="sam")


def test_the_bundled_teacher_loads_and_says_what_it_is() -> None:
    teacher = load_teacher("bundled", device="cpu")
    info = inspect_checkpoint("bundled")
    assert isinstance(teacher, SamTeacher)
    assert info.family == "samdistill-conv"
    assert 2_000_000 < info.parameters < 8_000_000
    assert teacher.fingerprint == info.fingerprint


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"config": "{"},
        {"config": "[1]"},
        {"config": '{"image_size": 64, "bogus": 1}'},
        {"config": '{"image_size": "64"}'},
        {"config": '{"image_size": 64}', "logit_shift": "x"},
        {"config": '{"image_size": 64}', "logit_shift": "nan"},
    ],
    ids=str,
)
def test_a_broken_header_of_this_package_s_own_kind_is_refused(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "own.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"family": "samdistill-conv", **header})
    with pytest.raises(CheckpointError, match="its header is broken"):
        inspect_checkpoint(path)


@pytest.mark.parametrize(("device", "said"), [("gpu", "no device"), ("cpu,cpu", "one teacher computes on one device, but 2 are named")])
def test_a_device_that_cannot_be_used_is_refused_in_words(device: str, said: str) -> None:
    with pytest.raises(DistillError, match=said):
        load_teacher("bundled", device=device)
