"""How arrays are cut and compressed. The numbers come from ``benchmarks/storage_layout.py``."""

from dataclasses import dataclass
from math import ceil, prod

import numpy as np
from zarr.codecs import BloscCodec, ZstdCodec

CHUNK_ZYX = (2, 128, 128)
"""Inner chunk: thin enough that a slice decodes two, square enough that a patch touches few. On one core through zarrs, int16 512 x 512, against
4 slices: 1.55 times the slices, 0.92 times the patches of 128^3, 1.01 times the bytes (970 / 71.5 against 622 / 77.5 per second)."""

SHARD_ZYX = (64, 1024, 1024)
"""Largest shard, one object in a store. 64 slices of 512 x 512 int16 are 32 MiB: few objects, and a writer holds only one."""

SINGLE_CHUNK_BYTES = 1 << 20
"""Volumes up to this size are one chunk without a shard index: decoding a MiB costs less than finding parts of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Chunk and shard shapes for one array."""

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    """None for an array that is a single small chunk per leading index."""


def choose_layout(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Layout:
    """Return chunks and shards for an array whose last three axes are z, y, x; leading axes are cut one by one."""
    leading, volume = (1,) * (len(shape) - 3), shape[-3:]
    if prod(volume) * dtype.itemsize <= SINGLE_CHUNK_BYTES:
        return Layout(chunks=(*leading, *volume), shards=None)
    chunks = tuple(_even_cut(size, aim) for size, aim in zip(volume, CHUNK_ZYX, strict=True))
    shards = tuple(_shard_size(*sizes) for sizes in zip(volume, chunks, SHARD_ZYX, strict=True))
    return Layout(chunks=(*leading, *chunks), shards=(*leading, *shards))


def image_codec() -> BloscCodec:
    """Intensities: lz4 reads twice as fast as zstd for about 15 % more bytes, and scans are read far oftener than written."""
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")


def label_codec() -> ZstdCodec:
    """Masks and maps: long runs, which zstd shrinks more than a hundredfold."""
    return ZstdCodec(level=3)


def _even_cut(size: int, aim: int) -> int:
    """Cut ``size`` into equal pieces of about ``aim``, so that 130 is one piece and not 128 + 2."""
    return ceil(size / max(1, round(size / aim)))


def _shard_size(size: int, chunk: int, largest: int) -> int:
    """The smallest multiple of ``chunk`` that covers ``size`` in as few shards of at most about ``largest`` as possible."""
    shards = ceil(size / max(largest, chunk))
    return ceil(size / shards / chunk) * chunk
