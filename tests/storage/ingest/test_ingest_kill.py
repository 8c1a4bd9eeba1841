"""An ingest that is killed goes on where it was."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from storage import Archive
from storage.ingest import ingest

WriteNifti = Callable[..., Path]
CASES = 16
KILLS = 2
PROGRAM = """
import sys
from pathlib import Path
from storage import Archive
from storage.ingest import ingest
print("ready", flush=True)
ingest(Archive.open_or_create(sys.argv[1]), Path(sys.argv[2]))
"""


def start(archive: Path, source: Path) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(archive), str(source)], stdout=subprocess.PIPE, text=True, env=environment)


def test_after_kills_at_random_moments_the_archive_equals_an_undisturbed_one(tmp_path: Path, write_nifti: WriteNifti) -> None:
    rng = np.random.default_rng(0)
    for n in range(CASES):
        write_nifti(tmp_path / "in" / f"case{n:02}.nii.gz", rng.integers(0, 500, (30, 40, 20)).astype(np.int16))
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"")
    undisturbed = Archive.create(str(tmp_path / "undisturbed.zarr"))
    ingest(undisturbed, tmp_path / "in")
    for n in range(KILLS):
        process = start(tmp_path / "killed.zarr", tmp_path / "in")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.Random(n).uniform(0.05, 0.35))
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = Archive.open_or_create(str(tmp_path / "killed.zarr"))
    before = len(killed)
    summary = ingest(killed, tmp_path / "in")
    assert (summary.added + before, summary.problems) == (CASES, 1)
    assert killed.cases() == undisturbed.cases()
    assert all(np.array_equal(killed[case.id].read(), undisturbed[case.id].read()) for case in killed.cases())
    assert killed.ledger.counts("ingest") == {"pending": 0, "claimed": 0, "done": CASES + 1, "failed": 0, "quarantined": 0}
