"""Promise 1: after any number of SIGKILLs the archive is, file by file, what an undisturbed run writes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from distill.teachers.conv_encoder import ConvSamConfig, build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from storage import Archive

KILLS = 20
CASES = 10
SMALL = ConvSamConfig(
    image_size=64, widths=(8, 8, 16, 16, 16), depths=(0, 1, 1, 1, 1), embed_dim=32, decoder_heads=4, decoder_mlp=32, mask_channels=8
)


def generate(folder: Path) -> None:
    """Write ten small scans with prompts, and a random teacher."""
    (folder / "scans").mkdir()
    rng = np.random.default_rng(0)
    prompts = []
    for n in range(CASES):
        shape = (22 + n % 3, 26, 12)
        image = nib.nifti1.Nifti1Image(rng.integers(1, 900, shape).astype(np.int16), np.eye(4))
        nib.loadsave.save(image, folder / "scans" / f"scan{n:02}.nii.gz")
        prompts += [
            {
                "case": f"scan{n:02}",
                "class_id": 1,
                "class_name": "organ",
                "kind": "box",
                "slice_axis": "k",
                "slice": z,
                "box_ij": [4, 5, 17, 19],
            }
            for z in (2, 6, 9)
        ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    torch.manual_seed(0)
    write_teacher(folder / "teacher.safetensors", build_conv_sam(SMALL), SMALL, PretrainPlan(data=folder, out=folder), 0)


def files_of(archive: Path) -> dict[str, str]:
    """Return every file of a store with its hash."""
    return {
        str(path.relative_to(archive)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(archive.rglob("*"))
        if path.is_file()
    }


@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing_double_nothing_and_change_no_byte(tmp_path: Path) -> None:
    generate(tmp_path)
    program = Path(__file__).with_name("killed_run.py")
    run = subprocess.run([sys.executable, str(program), str(tmp_path), str(KILLS)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    facts = {key: int(value) for key, value in (pair.split("=") for pair in run.stdout.split())}
    assert (facts["calm"], facts["killed"], facts["failures"]) == (0, KILLS, 0), run.stderr
    calm = Archive.open(str(tmp_path / "calm.zarr"))
    for number in range(facts["rounds"]):
        killed = Archive.open(str(tmp_path / f"killed{number}.zarr"))
        assert_same_work(calm, killed)
        assert files_of(tmp_path / f"killed{number}.zarr") == files_of(tmp_path / "calm.zarr")


def assert_same_work(calm: Archive, killed: Archive) -> None:
    """Same cases, same ledger, same labels, array by array."""
    assert [record.id for record in killed.cases()] == [record.id for record in calm.cases()]
    for stage in ("ingest", "label:teacher/r1", "refine:pseudo/r1"):
        assert killed.ledger.counts(stage)["done"] == CASES, stage
        assert killed.ledger.counts(stage) == calm.ledger.counts(stage), stage
    for record in calm.cases():
        for label_set in calm[record.id].label_sets():
            ours, theirs = (archive[record.id].labels(label_set) for archive in (calm, killed))
            assert np.array_equal(ours.read(), theirs.read())
            assert (ours.scores, ours.history) == (theirs.scores, theirs.history)
