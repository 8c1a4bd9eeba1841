"""Walk a folder and say of each file what kind of source it is."""

import fnmatch
import os
from collections.abc import Collection, Iterator, Sequence
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
OWN_FOLDERS = (".zarr", ".zarr.embeddings")
"""How folders end that hold archives, or embeddings kept beside them: never a source."""
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

    Hidden files and folders, and what ``exclude`` matches (shell patterns on the relative name), are left out; links are followed.

    Raises:
        IngestError: ``source-not-found``.
    """
    if not source.exists():
        raise IngestError("source-not-found", _nothing_at(source))
    paths = [source] if source.is_file() else list(walk(source))
    base = source.parent if source.is_file() else source
    pairs = [(path, path.relative_to(base).as_posix()) for path in paths]
    wanted = [pair for pair in pairs if not any(fnmatch.fnmatch(pair[1], pattern) for pattern in exclude)]
    found = (_look_at(path, name) for path, name in wanted)
    return sorted((file for file in found if file is not None), key=lambda file: file.name)


def check_any(source: Path, *, exclude: Sequence[str] = ()) -> None:
    """Look whether there is anything to bring in; stops at the first file.

    Raises:
        IngestError: ``source-not-found``, or ``no-images`` if there is no image below ``source``.
    """
    if not source.exists():
        raise IngestError("source-not-found", _nothing_at(source))
    files = 0
    for path in [source] if source.is_file() else walk(source):
        files += 1
        name = path.relative_to(source.parent if source.is_file() else source).as_posix()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in exclude) and kind_of(path) is not None:
            return
    held = "is empty" if files == 0 else f"holds no image among its {files} {'file' if files == 1 else 'files'}"
    left_out = f" (left out: {', '.join(exclude)})" if exclude else ""
    message = (
        f"{source} {held}{left_out}. Give a folder with NIfTI, DICOM, PNG, JPEG or TIFF files, or one such file; "
        "hidden files and .zarr folders are passed over."
    )
    raise IngestError("no-images", message)


def _nothing_at(source: Path) -> str:
    return f"there is nothing at {source}. Give a folder with NIfTI, DICOM, PNG, JPEG or TIFF files, or one such file."


def kind_of(path: Path) -> Kind | None:
    """Tell the kind of a file: by its ending, or for DICOM by its content, since exports often have none."""
    lower = path.name.lower()
    for ending, kind in _ENDINGS.items():
        if lower.endswith(ending):
            return kind
    return "dicom" if path.name.upper() not in _NOT_A_SLICE and looks_like_dicom(path) else None


def walk(folder: Path, *, leave_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the files below a folder, in order; hidden ones, archives and what is beside them are left alone.

    Links to other folders are followed, each place once; a link back into the folder leads to what is seen anyway.

    Args:
        folder: Where to look.
        leave_out: Folders that are passed over.
    """
    followed = [folder.resolve()]
    for base, folders, names in os.walk(folder, followlinks=True):
        wanted = (name for name in sorted(folders) if not name.startswith((".", "__MACOSX")) and not name.endswith(OWN_FOLDERS))
        folders[:] = [name for name in wanted if Path(base, name) not in leave_out and _leads_on(Path(base, name), followed)]
        yield from (Path(base, name) for name in sorted(names) if not name.startswith("."))


def _leads_on(folder: Path, followed: list[Path]) -> bool:
    """Tell whether a folder is none that a link led to before; what is below such a place has been, or will be, seen from there."""
    if not folder.is_symlink():  # a link to a place above may lead to the first folder once more
        return len(followed) == 1 or folder.resolve() not in followed
    place = folder.resolve()
    if any(place.is_relative_to(seen) for seen in followed):
        return False
    followed.append(place)
    return True


def _look_at(path: Path, name: str) -> FoundFile | None:
    kind = kind_of(path)
    if kind is None:
        return None
    try:
        status = path.stat()
    except OSError:  # a dangling link: keep it, so that reading it becomes a recorded problem
        return FoundFile(path=path, name=name, kind=kind, size=-1, mtime_ns=0)
    return FoundFile(path=path, name=name, kind=kind, size=status.st_size, mtime_ns=status.st_mtime_ns)
