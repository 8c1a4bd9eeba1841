"""Where an archive's bytes are: a local folder, or any place that fsspec has a URL for."""

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.errors import ContainsGroupError
from zarr.storage import FsspecStore, LocalStore

from storage.errors import ArchiveError, CatalogError

Store = LocalStore | FsspecStore
"""The two kinds of place: a folder, and whatever fsspec can reach."""

_ZARRS = "zarrs.ZarrsCodecPipeline"
# zarr.config is one object for the whole process; overlapping set/restore pairs of two threads would leave the wrong value behind.
_CONFIG_LOCK = threading.Lock()
_FORKED = threading.Event()
# The threads of zarrs do not survive a fork, and the child would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_FORKED.set)


def local_path(url: str) -> Path | None:
    """Return the folder that ``url`` means, or None when it is on another machine or in memory.

    Raises:
        ArchiveError: if it begins with the home folder of somebody who is not known here.
    """
    if url.startswith("file://"):
        return Path(url.removeprefix("file://")).absolute()
    if "://" in url:
        return None
    try:
        return Path(url).expanduser().absolute()
    except RuntimeError as error:
        message = f"the address {url} begins with a home folder that is not known on this machine. Write the whole path."
        raise ArchiveError(message) from error


def address_of(url: str) -> str:
    """Return the one way to write an archive's address: an absolute path, or the URL as given."""
    path = local_path(url)
    return url if path is None else str(path)


def catalog_url_of(url: str, catalog: str | None) -> str:
    """Return the SQLAlchemy URL of an archive's catalog: the one named, or a SQLite file beside a local archive.

    Raises:
        CatalogError: if the archive is not local and none is named.
    """
    if catalog is not None:
        return catalog
    path = local_path(url)
    if path is None:
        message = (
            f"the archive {url} is not a local folder, so its catalog cannot lie beside it. Name one: `catalog:` in the recipe, "
            "--catalog on the command line, or catalog= in Python: 'postgresql://...' or 'sqlite:////folder/catalog.sqlite'."
        )
        raise CatalogError(message)
    return f"sqlite:///{path}.catalog.sqlite"


def open_store(url: str, *, read_only: bool) -> Store:
    """Return the Zarr store behind a path or URL; nothing is read or written yet.

    Raises:
        ArchiveError: if the URL's protocol needs a package that is missing.
    """
    path = local_path(url)
    if path is not None:
        return LocalStore(path, read_only=read_only)
    try:
        return FsspecStore.from_url(url, read_only=read_only)
    except (ImportError, ValueError) as error:
        message = f"the archive address {url!r} cannot be used: {error}. s3:// needs the package s3fs, gs:// gcsfs, az:// adlfs."
        raise ArchiveError(message) from error


def below(store: Store, *parts: str) -> Store:
    """Return the store whose root is a group within ``store``.

    Zarr makes sure that every parent of what it writes is a group, by writing the parents' metadata aside and throwing it away when
    there is some already. Below its own root a writer touches nothing that others share, and leaves nothing there when it is killed.
    """
    path = "/".join(parts)
    if isinstance(store, LocalStore):
        return LocalStore(store.root / path, read_only=store.read_only)
    return FsspecStore(store.fs, path=f"{store.path}/{path}", read_only=store.read_only)


def group_at(store: Store) -> zarr.Group:
    """Return the group at the root of ``store``, made if it is missing; two that make it at once get the same one."""
    with suppress(FileNotFoundError):
        return zarr.open_group(store, mode="r+")
    with suppress(ContainsGroupError):
        return zarr.create_group(store)
    return zarr.open_group(store, mode="r+")


def remove_group(store: Store, name: str) -> None:
    """Remove the group ``name`` from the group at the root of ``store``, finished or not; nothing happens when there is none."""
    del group_at(store)[name]


@contextmanager
def fast_codecs(store: Store) -> Iterator[None]:
    """Open arrays inside this block to read them through the Rust codecs of ``zarrs``, where these can.

    They read parts of shards several times faster, but only from a local store, and only what is asked for in slices: an integer index
    over more than one shard makes zarrs 0.2 hand the read back to zarr-python's codecs (128^3 patches: 27 instead of 81 per second and
    core). So ``image[0:1, z0:z1, ...][0]``, not ``image[0, z0:z1, ...]``. Writing stays with zarr-python, which is as fast there
    and renames each finished file into place.
    """
    if not isinstance(store, LocalStore) or _FORKED.is_set() or importlib.util.find_spec("zarrs") is None:
        yield
        return
    with _CONFIG_LOCK, zarr.config.set({"codec_pipeline.path": _ZARRS}):
        yield


class LazyArray:
    """An array that is opened when first asked for, and once more in a forked process."""

    def __init__(self, store: Store, path: str) -> None:
        """Remember which array of a group it is."""
        self._store = store
        self._path = path
        self._opened: tuple[int, zarr.Array[Any]] | None = None

    def open(self) -> zarr.Array[Any]:
        """Return the array, opened for reading in this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            with fast_codecs(self._store):
                self._opened = os.getpid(), zarr.open_array(self._store, path=self._path, mode="r")
        return self._opened[1]


def check_writable(store: Store, what: str) -> None:
    """Refuse to change what was opened for reading.

    Raises:
        ArchiveError: if the store is read-only.
    """
    if store.read_only:
        message = f"{what} was opened with mode='r' and cannot be changed. Open the archive with mode='r+'."
        raise ArchiveError(message)


def sweep_unfinished(store: Store) -> None:
    """Remove the temporary files that a killed process left at the root of ``store``.

    Only where there is one writer: it would take the file of another one at work, whose write then fails and is tried again.
    """
    if isinstance(store, LocalStore):
        for leftover in store.root.glob("*.partial"):
            leftover.unlink(missing_ok=True)
