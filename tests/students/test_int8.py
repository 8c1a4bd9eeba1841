"""8-bit products: what they cost is measured, and stated whatever it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import Archive
from students import load_student
from students.checkpoint import read_card
from students.errors import ExportError
from students.export import int8
from students.export.write import export_student

MakeStudent = Callable[..., Path]


@pytest.fixture(scope="module", params=["3d", "2d"])
def folder(request: pytest.FixtureRequest, make_student: MakeStudent) -> Path:
    return make_student(request.param)


@pytest.fixture(scope="module")
def exported(folder: Path, archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "out"
    export_student(folder, out, "int8", archive=archive)
    return out


def test_the_cost_is_that_of_both_networks_on_the_experts_test_cases(folder: Path, exported: Path, archive: Archive) -> None:
    card = read_card(exported)
    assert card.exported is not None
    cost = card.exported.int8
    assert cost is not None
    assert (cost.measure, cost.against, set(cost.cases)) == ("Dice", "gold", {"test0", "test1", "test2"})
    assert set(cost.calibration_cases) == {"train0", "train1"}
    for place, stated in ((folder, cost.before), (exported, cost.after)):
        student, found = load_student(place, device="cpu"), []
        for case in cost.cases:
            stored = archive[case]
            mine, gold = student.predict(stored.read(), stored.spacing_zyx_mm).labels == 3, stored.labels("gold").read() == 3
            found.append(2 * (mine & gold).sum() / (mine.sum() + gold.sum()))
        assert stated == pytest.approx(np.mean(found), abs=1e-5)


def test_products_are_in_8_bits_and_the_file_is_small(exported: Path, folder: Path, tmp_path: Path) -> None:
    import onnx

    export_student(folder, tmp_path / "whole", "onnx")
    sizes = [(place / "model.onnx").stat().st_size for place in (exported, tmp_path / "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    kinds = [node.op_type for node in onnx.load(exported / "model.onnx").graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    assert sorted(path.name for path in exported.iterdir()) == ["MODEL_CARD.md", "model.onnx", "student.json"]
    assert "| 8-bit products | Dice" in (exported / "MODEL_CARD.md").read_text()


def test_labels_of_an_8_bit_student_are_nearly_those_of_the_whole_one_and_go_by_another_name(
    folder: Path, exported: Path, archive: Archive
) -> None:
    whole, small = load_student(folder, device="cpu"), load_student(exported)
    assert small.name == f"{whole.name}-int8"
    case = archive["test0"]
    first, second = (each.predict(case.read(), case.spacing_zyx_mm) for each in (whole, small))
    assert np.abs(first.probability - second.probability).mean() < 0.05


def test_without_experts_the_cost_is_agreement_with_what_was_held_out(make_student: MakeStudent, archive: Archive) -> None:
    card = read_card(make_student("2d")).model_copy(update={"training_patients": ("p-test0", "p-test1", "p-test2")})
    found = int8.find_yardstick(archive, card)
    assert (found.measure, found.label_set, found.cases) == ("agreement", "pseudo/r1", ("train2",))


def test_voxels_that_the_labels_ignore_do_not_count() -> None:
    from storage import ClassInfo

    truth = np.array([[[3, 3, 255, 0]]], np.uint8)
    answers = [np.array([[[3, 3, 3, 0]]], np.uint8), np.array([[[3, 0, 0, 0]]], np.uint8)]
    assert int8._pair(answers, truth, ClassInfo(id=3, name="kernel")) == (1.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(False, "name the archive that the student was trained from", id="no archive"),
        pytest.param(True, "could not be said. Name the archive that it was trained from", id="another archive"),
    ],
)
def test_a_cost_that_cannot_be_measured_is_no_export(given: bool, said: str, folder: Path, tmp_path: Path) -> None:
    other = Archive.create(str(tmp_path / "other.zarr")) if given else None
    with pytest.raises(ExportError, match=said):
        export_student(folder, tmp_path / "out", "int8", archive=other)
    assert not (tmp_path / "out").exists()
