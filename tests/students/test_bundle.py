"""MONAI's own command line runs a bundle, and draws what the student draws."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from students import load_student
from students.export.bundle import steps_source
from students.export.write import export_student
from students.files import predict_files

MakeStudent = Callable[..., Path]

needs_monai_cli = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fire", "ignite")),
    reason="MONAI's command line needs fire and pytorch-ignite, which the extra dev brings.",
)


def scan(path: Path, shape_xyz: tuple[int, ...], seed: int) -> Path:
    """Write an oblique scan of another spacing than the student's, with air that is zero."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(300, 90, shape_xyz)
    voxels[:3] = 0
    affine = np.array([[-0.9, 0.2, 0.0, 20.0], [0.2, 0.75, 0.1, 7.5], [0.05, -0.1, 1.9, 3.25], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)
    return path


def monai(bundle: Path, command: str, *words: str) -> str:
    asked = [sys.executable, "-W", "ignore", "-m", "monai.bundle", command, "--config_file", "configs/inference.json"]
    done = subprocess.run(
        [*asked, "--meta_file", "configs/metadata.json", *words], cwd=bundle, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_monai_cli
@pytest.mark.parametrize("dimensions", ["3d", pytest.param("2d", marks=pytest.mark.slow)])
def test_monais_command_line_draws_what_predict_draws(dimensions: str, make_student: MakeStudent, tmp_path: Path) -> None:
    folder = make_student(dimensions, name="bundled")
    export_student(folder, tmp_path / "bundle", "bundle")
    for n, shape in enumerate([(26, 50, 13), (40, 33, 20)]):
        scan(tmp_path / "scans" / f"scan{n}.nii.gz", shape, n)
    monai(tmp_path / "bundle", "run", "--dataset_dir", "../scans", "--output_dir", "../theirs")
    predict_files(load_student(folder, device="cpu"), [tmp_path / "scans"], tmp_path / "ours")
    for n in range(2):
        ours, theirs = (nib.load(path) for path in (tmp_path / "ours" / f"scan{n}.nii.gz", tmp_path / "theirs" / f"scan{n}_labels.nii.gz"))
        assert np.allclose(ours.affine, theirs.affine, atol=1e-5)
        mine, other = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
        assert set(np.unique(mine)) == {0, 3}
        dice = 2 * ((mine == 3) & (other == 3)).sum() / ((mine == 3).sum() + (other == 3).sum())
        assert dice > 0.999


@pytest.mark.slow
@needs_monai_cli
def test_monai_finds_the_network_to_take_and_give_what_the_metadata_say(make_student: MakeStudent, tmp_path: Path) -> None:
    export_student(make_student("3d"), tmp_path / "bundle", "bundle")
    assert "verified with no error" in monai(tmp_path / "bundle", "verify_net_in_out", "--net_id", "network_def", "--n", "2")


def test_the_metadata_name_every_channel_and_hold_what_monai_requires(make_student: MakeStudent, tmp_path: Path) -> None:
    from monai.bundle.properties import MetaProperties

    export_student(make_student("3d"), tmp_path / "bundle", "bundle")
    said = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    for name, wanted in MetaProperties.items():
        found = said
        for key in wanted["id"].split("::")[1:]:
            found = found[key]
        assert found, name
    assert said["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "kernel"}
    assert said["samdistill"]["class_ids"] == {"kernel": 3}


def test_a_bundle_is_a_student_too(make_student: MakeStudent, tmp_path: Path) -> None:
    folder = make_student("3d")
    export_student(folder, tmp_path / "bundle", "bundle")
    volume = np.random.default_rng(1).normal(size=(14, 30, 20)).astype(np.float32)
    mine, other = (load_student(each, device="cpu").predict(volume, (1.5, 0.8, 1.0)).labels for each in (folder, tmp_path / "bundle"))
    assert (mine == other).mean() > 0.999


def test_the_steps_of_a_bundle_need_none_of_our_packages() -> None:
    lines = steps_source().splitlines()
    packages = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert packages == {"__future__", "collections", "dataclasses", "monai", "numpy", "pathlib", "torch", "typing"}


def test_the_page_of_a_bundle_says_how_to_run_it_and_what_it_is(make_student: MakeStudent, tmp_path: Path) -> None:
    export_student(make_student("3d"), tmp_path / "bundle", "bundle")
    page = (tmp_path / "bundle" / "docs" / "README.md").read_text()
    assert "python -m monai.bundle run" in page
    assert "kernel (class id 3)" in page
    assert "| format | bundle, `models/model.ts` |" in page
