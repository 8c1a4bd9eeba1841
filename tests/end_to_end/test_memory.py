"""Promise 2: memory does not grow with the archive."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from storage import Archive, CaseRecord, Geometry, Prompt

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)
SHAPE = (1, 40, 160, 150)
"""2 MB of int16 per case, 4 MB of probabilities: a hundred of them would not hide."""


def peak_kib(archive: Path, teacher: Path, cases: int) -> int:
    program = Path(__file__).with_name("measured_run.py")
    run = subprocess.run([sys.executable, str(program), str(archive), str(teacher), str(cases)], capture_output=True, text=True, check=True)
    done, peak = run.stdout.split()
    assert int(done) == cases
    return int(peak)


@pytest.mark.timeout(400)
def test_peak_memory_of_a_hundred_cases_is_within_a_tenth_of_that_of_twenty(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_teacher(tmp_path / "teacher.safetensors", build_conv_sam(SMALL), SMALL, PretrainPlan(data=tmp_path, out=tmp_path), 0)
    archive = Archive.create(str(tmp_path / "a.zarr"))
    volume = np.random.default_rng(0).integers(0, 900, SHAPE, dtype=np.int16)
    for n in range(100):
        record = CaseRecord(
            id=f"case{n:03}",
            patient=f"p{n}",
            shape_czyx=SHAPE,
            dtype="int16",
            geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY),
        )
        archive.add_case(record, volume)
    archive.catalog.add_prompts(
        [Prompt(case=f"case{n:03}", class_id=1, kind="box", slice=z, box_xyxy_px=(40, 40, 90, 95)) for n in range(100) for z in (20, 21)]
    )
    few, many = tmp_path / "few", tmp_path / "many"
    for copy in (few, many):
        copy.mkdir()
        for path in tmp_path.glob("a.zarr*"):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copy / path.name)
    twenty = peak_kib(few / "a.zarr", tmp_path / "teacher.safetensors", 20)
    hundred = peak_kib(many / "a.zarr", tmp_path / "teacher.safetensors", 100)
    assert hundred < 1.10 * twenty, f"peak memory grew from {twenty} KiB with 20 cases to {hundred} KiB with 100"
