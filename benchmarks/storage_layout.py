"""Which cut of a volume serves both readers: the teacher, who asks for slices, and the student, who asks for patches?

Writes one CT-like volume in several layouts and reads random slices and random patches from each, through zarr-python's codecs and
through those of ``zarrs``. Absolute numbers depend on the machine; the table shows ratios against "chunk = slice" read by zarr-python.

    python benchmarks/storage_layout.py            # less than a minute
    python benchmarks/storage_layout.py --json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr
from scipy.ndimage import gaussian_filter
from zarr.codecs import BloscCodec, ZstdCodec

from storage.layout import choose_layout

SHAPE = (128, 512, 512)
EDGE = 128
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
BASE = "chunk = slice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to store the volume."""

    name: str
    chunks: tuple[int, int, int]
    shards: tuple[int, int, int] | None
    codec: BloscCodec | ZstdCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one layout does through one codec pipeline."""

    layout: str
    codecs: str
    megabytes: float
    files: int
    write_s: float
    slices_per_s: float
    patches_per_s: float


def candidates() -> list[Candidate]:
    """The layouts compared; the last but one is the archive's own."""
    lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    zstd = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
    ours = choose_layout(SHAPE, np.dtype("int16"))
    chunks, shards = (ours.chunks[0], ours.chunks[1], ours.chunks[2]), ours.shards
    assert shards is not None
    sharded = (shards[0], shards[1], shards[2])
    return [
        Candidate(name=BASE, chunks=(1, 512, 512), shards=None, codec=lz4),
        Candidate(name="chunk 64^3", chunks=(64, 64, 64), shards=None, codec=lz4),
        Candidate(name="shard, inner 16x64x64", chunks=(16, 64, 64), shards=(64, 512, 512), codec=lz4),
        Candidate(name="shard, inner 1x256x256", chunks=(1, 256, 256), shards=(64, 512, 512), codec=lz4),
        Candidate(name="ours, zstd instead of lz4", chunks=chunks, shards=sharded, codec=zstd),
        Candidate(name="ours, lz4", chunks=chunks, shards=sharded, codec=lz4),
        Candidate(name="ours without shards", chunks=chunks, shards=None, codec=lz4),
    ]


def scan() -> np.ndarray:
    """A body in air with smooth organs and scanner noise, in Hounsfield units ``(z, y, x)``."""
    random = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = ((y - 256) / 150) ** 2 + ((x - 256) / 210) ** 2 + 0.0 * z < 1
    coarse = gaussian_filter(random.normal(size=(SHAPE[0] // 4, 128, 128)), 4)
    organs = np.kron(coarse / coarse.std(), np.ones((4, 4, 4))) * 60
    noise = random.normal(0, 12, SHAPE)
    return np.where(body, 40 + organs + noise, -1000 + noise / 3).astype(np.int16)


def measure(candidate: Candidate, codecs: str, volume: np.ndarray, folder: Path, *, edge: int, seconds: float) -> Measured:
    """Write the volume once, then read for ``seconds`` each way."""
    path = folder / f"{candidate.name}-{codecs}".replace(" ", "_")
    with zarr.config.set({"codec_pipeline.path": PIPELINES["zarr"]}):
        started = time.perf_counter()
        zarr.create_array(
            path, shape=volume.shape, dtype=volume.dtype, chunks=candidate.chunks, shards=candidate.shards, compressors=candidate.codec
        )[...] = volume
        write_s = time.perf_counter() - started
    with zarr.config.set({"codec_pipeline.path": PIPELINES[codecs]}):
        array = zarr.open_array(path, mode="r")
        random = np.random.default_rng(1)
        files = [found for found in path.rglob("*") if found.is_file()]
        return Measured(
            layout=candidate.name,
            codecs=codecs,
            megabytes=sum(found.stat().st_size for found in files) / 1e6,
            files=len(files) - 1,
            write_s=write_s,
            slices_per_s=rate(lambda: array[int(random.integers(SHAPE[0]))], seconds),
            patches_per_s=rate(lambda: array[patch(random, edge)], seconds),
        )


def patch(random: np.random.Generator, edge: int) -> tuple[slice, ...]:
    """A random cube somewhere in the volume."""
    starts = [int(random.integers(size - edge + 1)) for size in SHAPE]
    return tuple(slice(start, start + edge) for start in starts)


def rate(read: Callable[[], object], seconds: float) -> float:
    """Return reads per second, after one read that does not count."""
    read()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        read()
        count += 1
    return count / (time.perf_counter() - started)


def table(results: list[Measured]) -> str:
    """Return the ratios as text."""
    base = next(result for result in results if (result.layout, result.codecs) == (BASE, "zarr"))
    lines = [f"{'layout':28}{'codecs':8}{'slices':>8}{'patches':>9}{'bytes':>8}{'files':>7}"]
    for result in results:
        slices, patches = result.slices_per_s / base.slices_per_s, result.patches_per_s / base.patches_per_s
        size = result.megabytes / base.megabytes
        lines.append(f"{result.layout:28}{result.codecs:8}{slices:8.2f}{patches:9.2f}{size:8.2f}{result.files:7d}")
    unit = f"1.00 = {base.slices_per_s:.0f} slices/s, {base.patches_per_s:.1f} patches/s, {base.megabytes:.0f} MB"
    return "\n".join([*lines, unit])


def main() -> None:
    """Measure every layout through both pipelines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON instead of a table of ratios")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each kind of reading")
    parser.add_argument("--edge", type=int, default=EDGE, help="edge of a patch in voxels")
    options = parser.parse_args()
    volume = scan()
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(candidate, codecs, volume, Path(folder), edge=options.edge, seconds=options.seconds)
            for candidate in candidates()
            for codecs in PIPELINES
        ]
    print(json.dumps([asdict(result) for result in results], indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
