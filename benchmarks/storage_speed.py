"""How fast one core reads slices and patches of a scan from an archive, against the same slices from .nii.gz.

Writes one CT-like volume, int16 and 512 x 512, into an archive as ingest does and into a .nii.gz, then reads random slices and random
cubes through ``storage`` (``Case.read_slice``, ``Case.image``) on one core. A .nii.gz is read by nibabel in two ways: slice by slice
(``dataobj[..., z]``, which must decompress all that lies before), and whole, which is the best it can do when every slice is wanted.

    python benchmarks/storage_speed.py             # about a minute
    python benchmarks/storage_speed.py --quick     # a few seconds, to see that it runs
    python benchmarks/storage_speed.py --cores 2   # with so many cores
    python benchmarks/storage_speed.py --json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy and zarr may only be loaded once the cores are chosen
    import numpy as np

    from storage import Case

TARGETS = {"slices": 600.0, "patches": 40.0, "ratio": 20.0}
"""Slices/s, 128^3 patches/s, and times as fast as slices from .nii.gz; from the design of the archive."""
EDGE = 128
ROUNDS = 3
ONE_BY_ONE = "slices of .nii.gz, one by one"
IN_ORDER = "slices of .nii.gz, all in order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something could be read per second."""

    what: str
    codecs: str
    per_s: float
    lowest: float
    highest: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it runs, measures little")
    parser.add_argument("--cores", type=int, default=1, help="cores that may be used; the targets are for one")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each kind of reading and round")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    options = parser.parse_args()
    keep_to(options.cores)  # before numpy, zarr and zarrs start their threads
    rounds, seconds = (1, 0.5) if options.quick else (ROUNDS, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(Path(folder), rounds=rounds, seconds=seconds)
    found = {"device": device(), "cores": options.cores, "rates": [asdict(each) for each in rates]}
    print(json.dumps(found, indent=1) if options.json else table(rates, options.cores))


def keep_to(cores: int) -> None:
    """Let this process use only so many cores, and every library only so many threads."""
    for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[name] = str(cores)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


def measure(folder: Path, *, rounds: int, seconds: float) -> list[Rate]:
    """Write the volume twice, and read it in every way."""
    import nibabel as nib
    import numpy as np
    import zarr
    from storage_layout import scan  # the program beside this one

    from storage.ome import LEVEL
    from storage.stored_case import CASES

    volume = scan()
    nifti = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4)), nifti)
    random = np.random.default_rng(1)

    def some_z() -> int:
        return int(random.integers(len(volume)))

    def patch() -> tuple[slice, ...]:
        starts = [int(random.integers(size - EDGE + 1)) for size in volume.shape]
        return (slice(0, 1), *(slice(start, start + EDGE) for start in starts))

    case = archived(folder / "archive.zarr", volume)
    plain = zarr.open_array(folder / "archive.zarr" / CASES / "scan" / LEVEL, mode="r")
    if not np.array_equal(case.read_slice(7)[0], volume[7]):
        message = "the archive holds something else than was written"
        raise RuntimeError(message)
    rates = [
        rate("slices", "zarrs", lambda: case.read_slice(some_z()), rounds, seconds),
        rate("patches", "zarrs", lambda: case.image[patch()], rounds, seconds),
        rate("slices", "zarr", lambda: plain[:, some_z()], rounds, seconds),
        rate("patches", "zarr", lambda: plain[patch()], rounds, seconds),
    ]
    rates.append(rate(ONE_BY_ONE, "nibabel", lambda: np.asanyarray(nib.load(nifti).dataobj[..., some_z()]), rounds, seconds))
    whole = rate(IN_ORDER, "nibabel", lambda: np.asanyarray(nib.load(nifti).dataobj), rounds, seconds)
    count = len(volume)
    return [*rates, replace(whole, per_s=whole.per_s * count, lowest=whole.lowest * count, highest=whole.highest * count)]


def archived(place: Path, volume: "np.ndarray") -> "Case":
    """Put the volume into a new archive, as ingest does, and open it as the stages do."""
    from storage import Archive, CaseRecord, Geometry

    affine = ((0.8, 0.0, 0.0, 0.0), (0.0, 0.8, 0.0, 0.0), (0.0, 0.0, 1.5, 0.0), (0.0, 0.0, 0.0, 1.0))
    record = CaseRecord(
        id="scan",
        patient="scan",
        shape_czyx=(1, *volume.shape),
        dtype=str(volume.dtype),
        modality="CT",
        geometry=Geometry(spacing_zyx_mm=(1.5, 0.8, 0.8), affine=affine),
    )
    return Archive.create(str(place)).add_case(record, volume[None])


def table(rates: list[Rate], cores: int) -> str:
    """Return rates, ratios and targets as text."""
    found = {(rate.what, rate.codecs): rate.per_s for rate in rates}
    lines = [
        f"{device()}, {cores} core(s), int16 512 x 512, warm page cache",
        f"{'what':34}{'codecs':10}{'per s':>9}{'lowest':>9}{'highest':>9}",
    ]
    lines += [f"{rate.what:34}{rate.codecs:10}{rate.per_s:9.1f}{rate.lowest:9.1f}{rate.highest:9.1f}" for rate in rates]
    slices, patches = found["slices", "zarrs"], found["patches", "zarrs"]
    one, whole = found[ONE_BY_ONE, "nibabel"], found[IN_ORDER, "nibabel"]
    lines += [
        judged("slices/s", slices, TARGETS["slices"]),
        judged("128^3 patches/s", patches, TARGETS["patches"]),
        judged("times the slices of .nii.gz, one by one", slices / one, TARGETS["ratio"]),
        f"{slices / whole:8.1f} times the slices of .nii.gz when it is decompressed once and every slice is used",
        f"{slices / found['slices', 'zarr']:8.1f} times the slices, {patches / found['patches', 'zarr']:.1f} times the patches of zarr-python's own codecs",
    ]
    return "\n".join(lines)


def judged(what: str, value: float, target: float) -> str:
    """Return one line: a figure and whether it reaches its target."""
    return f"{value:8.1f} {what} (target {target:g}: {'reached' if value >= target else 'MISSED'})"


def rate(what: str, codecs: str, read: Callable[[], object], rounds: int, seconds: float) -> Rate:
    """Read for some seconds, a few times over, after one read that does not count; the median is the figure."""
    read()
    found = []
    for _ in range(rounds):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            read()
            count += 1
        found.append(count / (time.perf_counter() - started))
    return Rate(what=what, codecs=codecs, per_s=statistics.median(found), lowest=min(found), highest=max(found))


def device() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
