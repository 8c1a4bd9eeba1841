"""Walk a folder and say of each file what kind of source it is."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.errors import IngestError
from storage.ingest.dicom_headers import looks_like_dicom

Kind = Literal["nifti", "image", "dicom"]

_ENDINGS: dict[str, Kind] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".png": "image",
    ".jpg": "image",
    ".jpeg": "image",
    ".tif": "image",
    ".tiff": "image",
}
_NOT_A_SLICE = frozenset({"DICOMDIR"})
"""The index file of a DICOM medium describes pictures, but holds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file that an ingest should look at."""

    path: Path
    name: str
    """Relative to the source folder, with ``/``."""
    kind: Kind
    size: int
    mtime_ns: int

    @property
    def state(self) -> str:
        """Changes when the file does."""
        return f"{self.size}:{self.mtime_ns}"


def find_files(source: Path, *, exclude: Sequence[str] = ()) -> list[FoundFile]:
    """List the sources under a folder, or the one file given, sorted by name.

    Hidden files and folders, and what ``exclude`` matches (shell patterns on the relative name), are left out.

    Raises:
        IngestError: ``source-not-found``.
    """
    if not source.exists():
        message = f"there is nothing at {source}. Give a folder with NIfTI, DICOM, PNG, JPEG or TIFF files, or one such file."
        raise IngestError("source-not-found", message)
    paths = [source] if source.is_file() else list(_walk(source))
    base = source.parent if source.is_file() else source
    pairs = [(path, path.relative_to(base).as_posix()) for path in paths]
    wanted = [pair for pair in pairs if not any(fnmatch.fnmatch(pair[1], pattern) for pattern in exclude)]
    found = (_look_at(path, name) for path, name in wanted)
    return sorted((file for file in found if file is not None), key=lambda file: file.name)


def kind_of(path: Path) -> Kind | None:
    """Tell the kind of a file: by its ending, or for DICOM by its content, since exports often have none."""
    lower = path.name.lower()
    for ending, kind in _ENDINGS.items():
        if lower.endswith(ending):
            return kind
    return "dicom" if path.name.upper() not in _NOT_A_SLICE and looks_like_dicom(path) else None


def _walk(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX")) and not name.endswith(".zarr")]
        yield from (Path(base, name) for name in names if not name.startswith("."))


def _look_at(path: Path, name: str) -> FoundFile | None:
    kind = kind_of(path)
    if kind is None:
        return None
    try:
        status = path.stat()
    except OSError:  # a dangling link: keep it, so that reading it becomes a recorded problem
        return FoundFile(path=path, name=name, kind=kind, size=-1, mtime_ns=0)
    return FoundFile(path=path, name=name, kind=kind, size=status.st_size, mtime_ns=status.st_mtime_ns)
