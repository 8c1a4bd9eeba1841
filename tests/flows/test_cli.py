"""The command line as a person meets it."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from flows import cli, launch
from flows.results import STAGES, RunSummary, Stage, StageResult

COMMANDS = (
    "demo",
    "recipe",
    "ingest",
    "run",
    "label",
    "refine",
    "train",
    "evaluate",
    "predict",
    "export",
    "supervoxels",
    "inspect",
    "doctor",
    "prompts",
    "fetch",
)


def ask(*words: str) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return int(ended.value.code or 0)


def test_help_loads_neither_torch_nor_prefect() -> None:
    code = (
        "import sys\n"
        "from flows import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'monai', 'zarr', 'numpy', 'pydantic', 'sqlalchemy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in answer.stdout


def test_help_names_every_command_and_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("--help") == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    assert "samdistill demo" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(command, "--help") == 0
    assert len(capsys.readouterr().out) > 100


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("run") == 2
    assert "RECIPE" in capsys.readouterr().err


def test_an_error_is_one_line_with_its_cure_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("run", str(tmp_path / "gone.yaml")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "samdistill recipe > gone.yaml" in said


@pytest.mark.parametrize("words", [("--debug", "run"), ("run", "--debug")], ids=["before the command", "after the command"])
def test_debug_shows_the_traceback_wherever_it_stands(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.errors import RecipeError

    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with pytest.raises(RecipeError):
        cli.main([*words, str(tmp_path / "gone.yaml")])


def test_an_unforeseen_error_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> RunSummary:
        message = "surprise"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(launch, "launch", broken)
    assert ask("run", "recipe.yaml") == 1
    assert "ZeroDivisionError: surprise" in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object, **__: object) -> RunSummary:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "launch", stopped)
    assert ask("run", "recipe.yaml") == 130
    assert "goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("quarantined", "code"), [(0, 0), (2, 3)], ids=["all units done", "two units quarantined"])
def test_the_exit_code_tells_whether_units_are_left(
    quarantined: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = StageResult(stage="label", done=5, quarantined=quarantined)
    monkeypatch.setattr(launch, "launch", lambda recipe, stages, **_: RunSummary(stages=(result,)))
    assert ask("run", "recipe.yaml") == code
    assert ("2 cases have no result" in capsys.readouterr().out) == bool(quarantined)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_single_stage_is_a_command(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[object] = []

    def note(recipe: Path, stages: tuple[Stage, ...], *, retry: bool, arms: tuple[str, ...]) -> RunSummary:
        assert arms == ()
        chosen.append((stages, retry))
        return RunSummary(stages=())

    monkeypatch.setattr(launch, "launch", note)
    assert ask(stage, "recipe.yaml") == 0
    assert ask(stage, "recipe.yaml", "--retry") == 0
    assert chosen == [((stage,), False), ((stage,), True)]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("all", ("all",)),
        ("all-gold,teacher-gold-boxes", ("all-gold", "teacher-gold-boxes")),
        ("few-gold, ellipse", ("few-gold", "ellipse")),
    ],
)
def test_arms_are_named_on_the_command_line(said: str, meant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, ...]] = []

    def note(recipe: Path, stages: tuple[Stage, ...], *, retry: bool, arms: tuple[str, ...]) -> RunSummary:
        chosen.append(arms)
        return RunSummary(stages=())

    monkeypatch.setattr(launch, "launch", note)
    assert ask("evaluate", "recipe.yaml", "--arms", said) == 0
    assert chosen == [meant]


def test_recipe_prints_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("recipe") == 0
    assert "archive: ./archive.zarr" in capsys.readouterr().out


def test_inspect_names_what_an_archive_refused_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from storage import Archive, ProblemRecord

    archive = Archive.create(str(tmp_path / "a.zarr"))
    problem = ProblemRecord(source="scan.nii.gz", row="", reason="truncated-gzip", message="scan.nii.gz: the file ends too early.")
    archive.catalog.record_problems([problem])
    assert ask("inspect", str(tmp_path / "a.zarr"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"]["cases"] == 0
    assert found["refused"] == [{"what": "scan.nii.gz", "reason": "truncated-gzip", "message": "scan.nii.gz: the file ends too early."}]


def test_inspect_of_nothing_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("inspect", str(tmp_path / "gone")) == 1
    assert "Give an archive, a student's folder, a checkpoint file" in capsys.readouterr().err


def test_export_lists_the_label_sets_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from storage import Archive

    Archive.create(str(tmp_path / "a.zarr"))
    assert ask("export", str(tmp_path / "a.zarr"), "--labels", "pseudo/r1", "-o", str(tmp_path / "out")) == 1
    assert "It holds: none yet." in capsys.readouterr().err


def test_ingest_prompts_and_export_round_trip_a_demo_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small commands on one generated scan, without a recipe."""
    import nibabel as nib
    import numpy as np

    from flows import demo

    monkeypatch.setattr(demo, "PARTS", ("archive",))
    demo.make_demo(tmp_path / "demo", progress=lambda done, total: None)
    archive = str(tmp_path / "a.zarr")
    assert ask("ingest", str(tmp_path / "demo" / "images"), archive, "--modality", "MR") == 0
    assert ask("prompts", "import", str(tmp_path / "demo" / "weak_prompts.json"), archive) == 0

    from flows.console import Follow
    from flows.recipe import ClassBlock, GoldBlock, IngestBlock
    from flows.sources import bring_in
    from storage import Archive

    block = IngestBlock.model_validate({"images": str(tmp_path / "demo" / "images"), "gold": {"path": str(tmp_path / "demo" / "gold")}})
    assert isinstance(block.gold, GoldBlock)
    result = bring_in(Archive.open(archive), block, {1: ClassBlock(name="organ")}, Follow("ingest"))
    assert (result.done, result.skipped, result.quarantined) == (0, 1, 0)
    assert ask("export", archive, "--labels", "gold", "-o", str(tmp_path / "out")) == 0
    there: nib.Nifti1Image = nib.load(tmp_path / "demo" / "gold" / "demo_000.nii.gz")
    back: nib.Nifti1Image = nib.load(tmp_path / "out" / "labels" / "demo_000.nii.gz")
    assert np.array_equal(there.get_fdata(), back.get_fdata())
    assert np.array_equal(there.affine, back.affine)


def test_predict_without_a_student_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("predict", str(tmp_path / "gone"), str(tmp_path), "-o", str(tmp_path / "out")) == 1
    assert capsys.readouterr().err.startswith("error: ")


WriteRecipe = Callable[[str], Path]


def test_a_stage_without_an_archive_names_the_command_that_makes_one(write_recipe: WriteRecipe) -> None:
    from flows import stages
    from flows.errors import StageError
    from flows.recipe_file import load_recipe

    recipe = load_recipe(write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}}\n"))
    with pytest.raises(StageError, match="Run 'samdistill run RECIPE' or 'samdistill ingest SRC"):
        stages.shards_to_label(recipe, 10)


def test_predict_on_files_without_a_folder_says_what_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("predict", str(tmp_path / "student"), str(tmp_path / "scan.nii.gz")) == 1
    assert "add -o FOLDER" in capsys.readouterr().err


def test_export_never_writes_over_what_no_export_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from storage import Archive, ClassInfo, Geometry, LabelHistory
    from storage.export.nifti import write_nifti
    from storage.ingest import ingest

    scans, archive = tmp_path / "images", str(tmp_path / "a.zarr")
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    for seed, name in enumerate(("a", "b")):
        voxels = np.random.default_rng(seed).integers(0, 9, (2, 3, 4)).astype(np.int16)
        write_nifti(voxels, Geometry(spacing_zyx_mm=(1, 1, 1), affine=affine), scans / f"{name}.nii.gz")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"what an expert drew")
    made = Archive.create(archive)
    ingest(made, scans)
    for case in ("a", "b"):
        history = LabelHistory(label_set="gold", classes=(ClassInfo(id=1, name="x"),), made_by="test")
        made[case].write_labels(history, np.zeros((2, 3, 4), np.uint8))
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.nii.gz")}
    assert ask("export", archive, "--labels", "gold", "-o", str(scans / "a.nii.gz")) == 1
    assert "the labels cannot be written to" in capsys.readouterr().err
    assert ask("export", archive, "--labels", "gold", "-o", str(tmp_path)) == 1
    assert f"{tmp_path / 'labels' / 'b.nii.gz'} would be lost: no 'samdistill export' wrote it" in capsys.readouterr().err
    assert ask("export", archive, "--labels", "gold", "--images", "-o", str(tmp_path)) == 1
    assert "would be lost, and 2 more" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*.nii.gz")} == before, "nothing was written, not even the free ones"
    for _ in range(2):
        assert ask("export", archive, "--labels", "gold", "--images", "-o", str(tmp_path / "look")) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device", "a.zarr/cases"),
            "there is no room left for a.zarr/cases (No space left on device). Make some",
            id="disk",
        ),
        pytest.param(
            OperationalError("INSERT", {}, Exception("database or disk is full")),
            "the catalog cannot be used: database or disk is full. Is its disk full",
            id="database",
        ),
    ],
)
def test_a_full_disk_is_foreseen(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(launch, "launch", full)
    assert ask("run", "recipe.yaml") == 1
    assert f"error: {said}" in capsys.readouterr().err


def test_an_older_report_is_not_printed_for_one_that_could_not_be_made(
    write_recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe("archive: a.zarr\nclasses: {1: {name: x}}\n")
    (tmp_path / "results" / "reports" / "compact").mkdir(parents=True)
    (tmp_path / "results" / "reports" / "compact" / "report.json").write_text('{"student": "older"}')
    left = StageResult(stage="evaluate", failed=1, note="waits for train: another run is at it.")
    monkeypatch.setattr(launch, "launch", lambda *_, **__: RunSummary(stages=(left,)))
    assert ask("evaluate", str(path), "--json") == 3
    said = capsys.readouterr().out
    assert "older" not in said
    assert "another run is at it" in said


def test_a_file_where_labels_are_to_go_is_an_error_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.errors import StageError
    from flows.showcase import predict_to_files

    (tmp_path / "out").touch()
    with pytest.raises(StageError, match="the labels cannot be written to"):
        predict_to_files(tmp_path, [tmp_path], tmp_path / "out", device="cpu")
