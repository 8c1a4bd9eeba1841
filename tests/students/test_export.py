"""A student in another format answers as it did, or there is no export."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from storage import Archive
from students import load_student
from students.checkpoint import read_card, weights_digest
from students.errors import ExportError, NoSuchDeviceError, StudentFileError
from students.export import compare, onnx_file, write
from students.export.compare import worst_difference
from students.export.write import export_student
from students.origins import ExportFormat
from students.predict import answer_fingerprint, predict_cases
from students.runtime import OnnxNetwork

MakeStudent = Callable[..., Path]
FORMATS: list[ExportFormat] = ["onnx", "torchscript"]


@pytest.fixture(scope="module", params=["3d", "2d"])
def folder(request: pytest.FixtureRequest, make_student: MakeStudent) -> Path:
    return make_student(request.param)


@pytest.fixture(scope="module", params=FORMATS)
def exported(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / request.param
    export_student(folder, out, request.param)
    return out


def test_an_export_answers_for_a_volume_as_the_student_does(folder: Path, exported: Path, archive: Archive) -> None:
    case = archive["test0"]
    scan = np.tile(case.read()[0], (1, 2, 1))  # several windows
    original = load_student(folder, device="cpu").predict(scan, case.spacing_zyx_mm)
    answer = load_student(exported).predict(scan, case.spacing_zyx_mm)
    assert np.abs(answer.probability - original.probability).max() < 1e-3
    assert (answer.labels == original.labels).mean() > 0.999
    assert set(np.unique(answer.labels)) == {0, 3}


def test_the_card_of_an_export_says_how_faithful_it_is_and_all_that_the_students_says(folder: Path, exported: Path) -> None:
    card, original = read_card(exported), read_card(folder)
    assert card.exported is not None
    assert card.model_copy(update={"exported": None}) == original
    assert card.exported.worst_difference < 1e-3
    assert card.exported.source_weights == weights_digest(folder)
    assert card.exported.opset == (onnx_file.OPSET if card.exported.format == "onnx" else None)
    assert {shape[0] for shape in card.exported.checked_shapes} == {1, 2}


def test_the_archive_remembers_answers_of_an_export_as_its_own(exported: Path, archive: Archive) -> None:
    student = load_student(exported)
    label_set = f"student/{exported.name}"
    assert predict_cases(student, archive, ["test1"], label_set=label_set) in {0, 1}
    assert predict_cases(student, archive, ["test1"], label_set=label_set) == 0
    assert archive["test1"].labels(label_set).history.fingerprint == answer_fingerprint(student)


def test_onnx_says_itself_what_it_is(folder: Path, tmp_path: Path) -> None:
    import onnx

    export_student(folder, tmp_path / "out", "onnx")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert model.opset_import[0].version == onnx_file.OPSET
    said = {each.key: each.value for each in model.metadata_props}
    assert said["student"] == "untaught"
    assert said["outputs"] == "logits of 0 background, 1 kernel"
    space = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim][2:]
    assert all(space), "every axis of space is free"


class Shifted(nn.Module):
    """A network whose export would be wrong."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(image)
        return logits + torch.tensor([0.02, 0.0]).reshape(1, 2, *[1] * (image.ndim - 2))


def test_a_difference_of_two_hundredths_in_a_logit_is_no_faithful_export(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "OnnxNetwork", lambda path: Shifted(OnnxNetwork(path)))
    with pytest.raises(ExportError, match=r"answers otherwise than the student: a class probability differs by 0\.005"):
        export_student(folder, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_is_no_number_is_no_faithful_export(folder: Path) -> None:
    card = read_card(folder)

    class Broken(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.full((len(image), 2, *image.shape[2:]), torch.nan)

    class Flat(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.zeros((len(image), 2, *image.shape[2:]))

    assert worst_difference(Flat(), Broken(), card.plan) > compare.TOLERANCE


def test_an_export_takes_the_place_of_an_export_and_of_nothing_else(folder: Path, tmp_path: Path) -> None:
    export_student(folder, tmp_path / "out", "onnx")
    export_student(folder, tmp_path / "out", "torchscript")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["MODEL_CARD.md", "model.ts", "student.json"]
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").touch()
    for place in (tmp_path / "scans", folder):
        with pytest.raises(ExportError, match="is there already, and no export"):
            export_student(folder, place, "onnx")
    assert (tmp_path / "scans" / "a.nii.gz").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_an_export_is_not_exported_again(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is an export to"):
        export_student(exported, tmp_path / "again", "onnx")


def test_a_gpu_is_refused_where_onnx_would_not_use_it(folder: Path, tmp_path: Path) -> None:
    export_student(folder, tmp_path / "out", "onnx")
    with pytest.raises(NoSuchDeviceError, match="runs on the CPU, not on cuda"):
        load_student(tmp_path / "out", device="cuda")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "no bytes"])
def test_a_damaged_export_is_an_error_in_words(damage: Callable[[Path], object], exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "out")
    damage(next((tmp_path / "out").glob("model.*")))
    with pytest.raises(StudentFileError, match="Export the student again"):
        load_student(tmp_path / "out")


def test_several_channels_and_classes_come_out_in_their_order(make_student: MakeStudent, tmp_path: Path) -> None:
    from storage import ClassInfo

    folder = make_student("3d", name="many", channels=2, classes=(ClassInfo(id=7, name="left"), ClassInfo(id=2, name="right")))
    export_student(folder, tmp_path / "out", "onnx")
    scan = np.random.default_rng(0).normal(size=(2, 14, 30, 20)).astype(np.float32)
    original, answer = (load_student(each, device="cpu").predict(scan, (1.5, 0.8, 1.0)) for each in (folder, tmp_path / "out"))
    assert answer.probability.shape == (2, 14, 30, 20)
    assert np.abs(answer.probability - original.probability).max() < 1e-3
    assert set(np.unique(answer.labels)) <= {0, 2, 7}
