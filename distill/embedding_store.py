"""Keep what the encoder said, so that a second run over the same pictures need not encode them again. Off unless a recipe asks for it.

A ViT-B embedding of one slice is 4 MiB in fp32; an archive of 3.2 million slices would need 13 TB. So the cache has a budget, and what was
not used for longest goes first. An entry is one Zarr array (one chunk, uncompressed, with a checksum), found by teacher, precision and
picture. Arrays are written aside and renamed, the index row comes last; whatever is torn is a miss.

``fp32`` loses nothing. ``fp16`` and ``bf16`` halve the room and round every number (to 11 and 8 significant bits), which moves the
last digits of the logits: masks change on single border pixels. A miss is rounded like a hit, so that labels do not depend on what
happened to be cached; and the labels' fingerprint names a storage that is not fp32.
"""

import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from distill.errors import PlanError
from storage.database import keep_a_log_ahead

Storage = Literal["fp32", "fp16", "bf16"]

FORMAT = 1
STRAY_S = 600.0
"""A folder that has no row for so long belongs to a process that was killed while it wrote."""
STORED_AS: dict[Storage, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, bytes INTEGER NOT NULL, used INTEGER NOT NULL)"
_ORDER = "CREATE INDEX IF NOT EXISTS by_use ON entries (used)"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCachePlan:
    """Where embeddings are kept, how many bytes of them, and how exactly."""

    folder: str
    budget_bytes: int
    storage: Storage = "fp32"

    def __post_init__(self) -> None:
        """Refuse a budget that holds nothing."""
        if self.budget_bytes <= 0 or self.storage not in STORED_AS:
            message = f"an embedding cache needs a budget above zero and fp32, fp16 or bf16, but got {self.budget_bytes} bytes and {self.storage!r}."
            raise PlanError(message)

    @property
    def lossy(self) -> bool:
        """Tell whether answers from this cache can differ from the teacher's own."""
        return self.storage != "fp32"


@dataclass(frozen=True, slots=True)
class Entry:
    """The embedding of one picture."""

    features: torch.Tensor
    """``(C, h, w)``, on the CPU, in the storage's type."""
    facts: dict[str, Any]
    """What ``Embeddings`` keeps per picture besides the features."""


class EmbeddingCache:
    """Embeddings in a folder. Several processes and threads may share it."""

    def __init__(self, plan: EmbeddingCachePlan) -> None:
        """Open or make the folder, and sweep what killed processes left."""
        self.plan = plan
        self.folder = Path(plan.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with self._index() as index:
            index.execute(_TABLE)
            index.execute(_ORDER)
        self._sweep()

    def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return the entries that are here and whole, and note that they were used."""
        with self._index() as index:
            known = [key for key in keys if index.execute("SELECT 1 FROM entries WHERE key = ?", (key,)).fetchone()]
        found = {key: entry for key in known if (entry := self._read(key)) is not None}
        if found:
            with self._index() as index:
                index.executemany("UPDATE entries SET used = ? WHERE key = ?", [(time.time_ns(), key) for key in found])
        return found

    def put(self, entries: dict[str, Entry]) -> None:
        """Keep these entries, then evict those that were not used for longest until the budget holds."""
        sizes = {key: entry.features.numel() * entry.features.element_size() for key, entry in entries.items()}
        rows = []
        for key, size in sizes.items():
            if size <= self.plan.budget_bytes:
                self._write(key, entries[key])
                rows.append((key, size, time.time_ns()))
        with self._index() as index:
            index.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
        self._evict()

    def size_bytes(self) -> int:
        """Return how many bytes of embeddings are kept; file names, metadata and index come on top (about 2 KiB per entry)."""
        with self._index() as index:
            return int(index.execute("SELECT COALESCE(SUM(bytes), 0) FROM entries").fetchone()[0])

    def keys(self) -> list[str]:
        """Return what is kept, least recently used first."""
        with self._index() as index:
            return [str(row[0]) for row in index.execute("SELECT key FROM entries ORDER BY used, key")]

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        """Open the index for one transaction; a connection per use survives forks and threads."""
        with self._lock, closing(sqlite3.connect(self.folder / "index.sqlite", timeout=60)) as connection:
            keep_a_log_ahead(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            with connection:
                yield connection

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _read(self, key: str) -> Entry | None:
        """Return one entry, or forget it if it is torn."""
        try:
            array = zarr.open_array(LocalStore(self._place(key), read_only=True), mode="r")
            kept = array.attrs["samdistill_embedding"]
            values = np.asarray(array[...])
            if not isinstance(kept, dict) or kept.get("format") != FORMAT or _is_empty(values):
                raise ValueError(key)  # noqa: TRY301 - one place says what a torn entry is
            return Entry(_from_stored(values, self.plan.storage), {name: _tuples(fact) for name, fact in kept["facts"].items()})
        except Exception:  # noqa: BLE001 - whatever is wrong with a cached copy, the teacher can be asked
            with self._index() as index:
                index.execute("DELETE FROM entries WHERE key = ?", (key,))
            shutil.rmtree(self._place(key), ignore_errors=True)
            return None

    def _write(self, key: str, entry: Entry) -> None:
        """Write an array aside and rename it; if somebody else was faster, theirs is the same."""
        aside = self.folder / f"new-{uuid.uuid4().hex}"
        place = self._place(key)
        try:
            self._write_aside(aside, entry)
            place.parent.mkdir(exist_ok=True)
            with suppress(OSError):
                aside.rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # nothing is there after a rename

    def _write_aside(self, folder: Path, entry: Entry) -> None:
        values = _to_stored(entry.features)
        zarr.create_array(
            LocalStore(folder),
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape,
            compressors=[Crc32cCodec()],
            fill_value=_EMPTY[values.dtype.name],
            attributes={"samdistill_embedding": {"format": FORMAT, "storage": self.plan.storage, "facts": entry.facts}},
        )[...] = values

    def _evict(self) -> None:
        with self._index() as index:
            index.execute("BEGIN IMMEDIATE")
            over = int(index.execute("SELECT COALESCE(SUM(bytes), 0) FROM entries").fetchone()[0]) - self.plan.budget_bytes
            gone = []
            for key, size in index.execute("SELECT key, bytes FROM entries ORDER BY used, key"):
                if over <= 0:
                    break
                gone.append(str(key))
                over -= int(size)
            index.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in gone])
        for key in gone:
            shutil.rmtree(self._place(key), ignore_errors=True)

    def _sweep(self) -> None:
        """Remove folders that no row names and nobody is writing."""
        known, before = set(self.keys()), time.time() - STRAY_S
        for found in (*self.folder.glob("new-*"), *self.folder.glob("??/*")):
            with suppress(OSError):
                if found.name not in known and found.stat().st_mtime < before:
                    shutil.rmtree(found)


_EMPTY: dict[str, float | int] = {"float32": float("nan"), "float16": float("nan"), "uint16": 0x7FFF}
"""What a missing chunk reads as: no number. 0x7FFF is a bfloat16 that is none."""


def _to_stored(features: torch.Tensor) -> np.ndarray:
    """Return the array that is written; numpy has no bfloat16, so its bits are written as uint16."""
    stored: np.ndarray = (features.view(torch.uint16) if features.dtype == torch.bfloat16 else features).numpy()
    return stored


def _from_stored(values: np.ndarray, storage: Storage) -> torch.Tensor:
    """Undo ``_to_stored``.

    Raises:
        ValueError: if the array was written for another storage.
    """
    tensor = torch.from_numpy(np.array(values))
    if storage == "bf16" and tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)
    if tensor.dtype != STORED_AS[storage]:
        message = f"holds {tensor.dtype}, not {storage}"
        raise ValueError(message)
    return tensor


def _is_empty(values: np.ndarray) -> bool:
    """Tell whether the chunk was missing."""
    first = values.reshape(-1)[0]
    return bool(first == _EMPTY["uint16"] if values.dtype == np.uint16 else np.isnan(first))


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
