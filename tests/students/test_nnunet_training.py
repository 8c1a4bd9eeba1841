"""One nnU-Net from beginning to end: killed, continued by a process that may have no children, loaded, and scored like any student."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from distill.quality import dice_per_class
from storage import IGNORE, Archive, CaseRecord, Channel, ClassInfo, Geometry, LabelHistory
from students import load_student
from students.checkpoint import read_card
from students.compact import TrainedStudent
from students.evaluate import EvaluationPlan, evaluate
from students.learning import Learning
from students.nnunet import launch
from students.nnunet.dataset import splits
from students.nnunet.job import Job, Places
from students.predict import Student, predict_cases
from students.spec import NnunetSpec, StudentSpec, TrainProgress
from students.training import train

# Each start imports nnU-Net, which takes longer than its epochs here, and much longer on a machine that others use.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CLASSES = (ClassInfo(id=3, name="kernel"),)
TWO = (ClassInfo(id=7, name="lower"), ClassInfo(id=3, name="upper"))
"""Not in the order of their ids: nnU-Net's numbers 1 and 2 must find their way back."""
SPEC = StudentSpec(name="nn", kind="nnunet", budget_seconds=None, device="cpu", nnunet=NnunetSpec(epochs=3, iterations=8))

_BEGIN = """
import sys
from pathlib import Path
from storage import Archive, ClassInfo
from students.spec import StudentSpec
from students.training import train
train(Archive.open(sys.argv[1]), label_set="pseudo/r1", classes=(ClassInfo(id=3, name="kernel"),),
      spec=StudentSpec.model_validate_json(sys.argv[2]), workdir=Path(sys.argv[3]), case_weights={"train1": 0.5})
"""


def go_on(url: str, workdir: str, told: "multiprocessing.Queue[object]") -> None:
    """Continue in a process as schedulers start them: it is daemonic, and multiprocessing lets it have no children."""
    try:
        seen: list[TrainProgress] = []
        done = train(
            Archive.open(url),
            label_set="pseudo/r1",
            classes=CLASSES,
            spec=SPEC,
            workdir=Path(workdir),
            case_weights={"train1": 0.5},
            progress=seen.append,
        )
        first = next(now for now in seen if not now.phase)
        told.put((multiprocessing.current_process().daemon, done.resumed, done.fresh, first.step, first.resumed))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        told.put(repr(error))


@pytest.fixture(scope="module")
def own_archive(make_archive: object, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive: Archive = make_archive(tmp_path_factory.mktemp("nnunet"), train=6, test=2)  # type: ignore[operator]
    stored = archive["train5"]
    ids = np.full(stored.record.shape_czyx[1:], IGNORE, np.uint8)
    stored.write_labels(LabelHistory(label_set="pseudo/r1", classes=CLASSES, made_by="test", fingerprint="nothing known"), ids)
    return archive


@pytest.fixture(scope="module")
def killed_and_continued(own_archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """Kill the caller of a training after its first epoch, and continue it; return the student's folder and what the second process told."""
    workdir = tmp_path_factory.mktemp("workdir")
    places = Places(workdir / "nn")
    command = [sys.executable, "-c", _BEGIN, own_archive.url, SPEC.model_dump_json(), str(workdir)]
    with subprocess.Popen(command) as caller:
        while not list(places.work.rglob("checkpoint_latest.pth")):
            assert caller.poll() is None, "it ended before its first epoch"
            time.sleep(0.05)
        workers = psutil.Process(caller.pid).children(recursive=True)
        os.kill(caller.pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert gone
    assert not alive, "what a killed caller started is still training"
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=go_on, args=(own_archive.url, str(workdir), told), daemon=True)
    process.start()
    answer = told.get(timeout=900)
    process.join()
    return places.folder, answer


def test_after_a_kill_the_same_call_goes_on_also_where_children_are_forbidden(killed_and_continued: tuple[Path, object]) -> None:
    folder, answer = killed_and_continued
    assert isinstance(answer, tuple), answer
    daemonic, resumed, fresh, first_step, said = answer
    assert (daemonic, resumed, fresh, said) == (True, True, True, True)
    assert first_step > 8, "it goes on after the first epoch"
    card = read_card(folder)
    assert card.nnunet is not None
    assert (card.nnunet.epochs, card.steps, card.stopped) == (3, 24, "steps")
    assert len(card.history) == 3


def test_the_card_says_who_taught_it_and_the_folder_holds_a_student_and_no_work(
    killed_and_continued: tuple[Path, object], own_archive: Archive
) -> None:
    folder, _ = killed_and_continued
    card = read_card(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "nnunet", "student.json"]
    assert card.spec.kind == "nnunet"
    assert card.nnunet is not None
    assert card.nnunet.dropped_cases == ("train5",)
    assert set(card.training_cases) | set(card.validation_cases) == {f"train{n}" for n in range(5)}
    assert not set(card.training_cases) & set(card.validation_cases)
    assert set(card.training_patients) == {f"p-train{n}" for n in range(6)}
    assert card.agreement is not None
    folds = json.loads((folder / "nnunet" / "splits_final.json").read_text())
    assert sorted(folds[0]["val"]) == sorted(card.validation_cases)
    assert card.plan.spacing_zyx_mm == (1.5, 0.8, 1.0)


def test_nnunets_own_files_name_its_own_reader_so_that_its_tools_can_use_them(killed_and_continued: tuple[Path, object]) -> None:
    folder, _ = killed_and_continued
    plans, content = (json.loads((folder / "nnunet" / name).read_text()) for name in ("plans.json", "dataset.json"))
    assert plans["image_reader_writer"] == "SimpleITKIO"
    assert content["file_ending"] == ".nii.gz"
    assert content["labels"] == {"background": 0, "kernel": 1, "ignore": 2}
    assert not {"samdistill", "dataset"} & content.keys()
    assert str(folder.parent) not in json.dumps([plans, content])


def test_it_answers_and_is_scored_like_any_student(killed_and_continued: tuple[Path, object], own_archive: Archive) -> None:
    student: Student = load_student(killed_and_continued[0], device="cpu")
    case = own_archive["test0"]
    found = student.predict(case.read(), case.spacing_zyx_mm)
    assert found.labels.shape == case.record.shape_czyx[1:]
    assert set(np.unique(found.labels)) <= {0, 3}
    assert found.probability.shape == (1, *found.labels.shape)
    assert np.array_equal(found.labels == 3, found.probability[0] > 0.5)
    result = evaluate(own_archive, student, EvaluationPlan(teacher="teacher/r1"))
    assert [each.name for each in result.comparisons] == ["student - gold", "teacher - gold", "student - teacher"]
    assert result.costs[0].parameters == student.card.parameters
    assert (result.mean("student - gold") or 0) > 0.5
    assert predict_cases(student, own_archive, ["test0"]) == 0, "the evaluation has asked already"


def test_nnunets_own_commands_install_the_export_and_draw_what_the_student_draws(
    killed_and_continued: tuple[Path, object], own_archive: Archive, tmp_path: Path
) -> None:
    import nibabel

    from storage.export.nifti import write_nifti

    def run(*words: str) -> None:
        tool = Path(sys.executable).with_name(words[0])
        places = {"nnUNet_results": "results", "nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed"}
        known = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
        done = subprocess.run(
            [str(tool), *words[1:]],
            env=known | {name: str(tmp_path / folder) for name, folder in places.items()},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for folder in ("results", "in"):
        (tmp_path / folder).mkdir()
    run("samdistill", "students", "export", str(killed_and_continued[0]), "--to", "nnunet", "-o", str(tmp_path / "nn.zip"))
    run("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "nn.zip"))
    case = own_archive["test1"]
    write_nifti(case.read()[0].astype(np.float32), case.record.geometry, tmp_path / "in" / "test1_0000.nii.gz")
    asked = "-d Dataset001_nn -c 3d_fullres -f 0 -p ReducedPlans -device cpu -npp 1 -nps 1"
    run("nnUNetv2_predict", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *asked.split())
    drawn = np.asarray(nibabel.load(tmp_path / "out" / "test1.nii.gz").dataobj).T  # type: ignore[attr-defined]
    ours = load_student(killed_and_continued[0], device="cpu").predict(case.read(), case.spacing_zyx_mm).labels
    assert ours.any()
    assert np.array_equal(drawn == 1, ours == 3)


def test_a_finished_one_is_not_trained_again(killed_and_continued: tuple[Path, object], own_archive: Archive) -> None:
    folder, _ = killed_and_continued
    again: TrainedStudent = train(
        own_archive, label_set="pseudo/r1", classes=CLASSES, spec=SPEC, workdir=folder.parent, case_weights={"train1": 0.5}
    )
    assert not again.fresh


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Objects whose lower half is another class; only the second channel tells the halves apart. The thickest axis is the last one."""
    archive = Archive.create(str(tmp_path_factory.mktemp("channels") / "archive.zarr"))
    rng = np.random.default_rng(7)
    shape, spacing = (26, 22, 8), (0.8, 1.0, 3.0)
    affine = ((3.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.8, 0.0), (0.0, 0.0, 0.0, 1.0))
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    for n in range(7):
        middle, radius = rng.uniform(-0.2, 0.2, 3), rng.uniform(0.5, 0.7, 3)
        mask = ((z - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 + ((x - middle[2]) / radius[2]) ** 2 < 1
        lower = np.broadcast_to((np.arange(shape[0]) >= shape[0] // 2)[:, None, None], shape)
        image = np.stack([mask * 3.0, lower * 4.0]) + rng.normal(2, 0.4, (2, *shape))
        record = CaseRecord(
            id=f"case{n}",
            patient=f"p{n}",
            shape_czyx=(2, *shape),
            dtype="float32",
            geometry=Geometry(spacing_zyx_mm=spacing, affine=affine),
            part="test" if n == 6 else "archive",
            fingerprint=str(n),
            channels=(Channel(name="outline", suffix="_0000"), Channel(name="half", suffix="_0001")),
        )
        ids = np.select([mask & lower, mask], [7, 3], 0).astype(np.uint8)
        history = LabelHistory(label_set="gold", classes=TWO, made_by="test", fingerprint=str(n))
        archive.add_case(record, image.astype(np.float32)).write_labels(history, ids)
    return archive


def test_channels_axes_and_classes_keep_their_order_through_nnunet(two_channels: Archive, tmp_path: Path) -> None:
    asked = NnunetSpec(epochs=4, iterations=10, fold="all", mirror=False)
    spec = SPEC.model_copy(update={"nnunet": asked})
    done = train(two_channels, label_set="gold", classes=TWO, spec=spec, workdir=tmp_path)
    assert done.card.nnunet is not None
    assert (done.card.nnunet.ignored, done.card.agreement, done.card.validation_cases) == (False, None, ())
    assert done.card.plan.spacing_zyx_mm == (0.8, 1.0, 3.0)
    assert [channel.name for channel in done.card.channels] == ["outline", "half"]
    assert json.loads((done.path / "nnunet" / "dataset.json").read_text())["channel_names"] == {"0": "outline", "1": "half"}
    assert done.card.nnunet.normalisation == ("ZScoreNormalization", "ZScoreNormalization")
    assert done.card.plan.strides[1] == (2, 2, 1), "the thick axis is halved last, and it is x"
    case = two_channels["case6"]
    found, wanted = load_student(done.path, device="cpu").predict(case.read(), case.spacing_zyx_mm), case.labels("gold").read()
    assert all(value > 0.6 for value in dice_per_class(found.labels, wanted, (7, 3)).values())
    background = 1 - found.probability.sum(0)
    sure = found.probability[0] > np.maximum(found.probability[1], background) + 0.01
    assert (found.labels[sure] == 7).all(), "the first probability is of the first class"


def test_nnunet_finds_the_trainer_by_its_name_through_the_environment(tmp_path: Path) -> None:
    program = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "print(find('nnUNetTrainerArchive').__mro__[1].__name__)"
    )
    environment = Places(tmp_path / "nn").environment(SPEC, "sqlite://")
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "nnUNetTrainer"


def test_folds_in_the_folder_are_those_of_the_cases_that_were_kept(killed_and_continued: tuple[Path, object], own_archive: Archive) -> None:
    folder, _ = killed_and_continued
    job = Job.model_validate(
        {
            "fingerprint": "f",
            "archive": own_archive.url,
            "label_set": "pseudo/r1",
            "classes": CLASSES,
            "cases": [{"id": f"train{n}", "patient": f"p-train{n}"} for n in range(5)],
            "channels": ("MR",),
            "flat": False,
            "spec": SPEC,
        }
    )
    assert json.loads((folder / "nnunet" / "splits_final.json").read_text()) == splits(job.cases)


def test_it_learns_probabilities_and_its_card_and_fingerprint_say_so(own_archive: Archive, tmp_path: Path) -> None:
    cases = ["train0", "train1", "train2"]
    for name in cases:
        stored = own_archive[name]
        ids = stored.labels("pseudo/r1").read()
        history = LabelHistory(label_set="soft/r1", classes=CLASSES, made_by="test", fingerprint=f"soft {name}")
        stored.write_labels(history, ids, probability_kzyx=np.where(ids[None] == 3, 200, 30).astype(np.uint8))
    soft = SPEC.model_copy(update={"learning": Learning(targets="soft", confidence=1.0), "nnunet": NnunetSpec(epochs=1, iterations=2)})
    done = train(own_archive, label_set="soft/r1", classes=CLASSES, spec=soft, workdir=tmp_path, cases=cases, case_weights={"train1": 0.5})
    assert done.card.steps == 2
    assert done.card.spec.learning.targets == "soft"
    assert done.card.agreement is not None
    hard = soft.model_copy(update={"learning": Learning()})
    marks = {
        launch._job(own_archive, [own_archive[name].record for name in cases], "soft/r1", CLASSES, each, {}).fingerprint
        for each in (soft, hard)
    }
    assert len(marks) == 2
