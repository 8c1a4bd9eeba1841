"""The archive: one Zarr store with all cases and label sets, and the catalog that says which of them are complete.

The folder holds ``cases/<id>`` (an OME-Zarr image) with ``cases/<id>/labels/<label set>`` below it. Nothing that two writers of
different cases share is ever rewritten. A write is arrays first, attributes second, catalog row last; readers believe the catalog.
"""

import difflib
import hashlib
from dataclasses import replace as with_changes
from typing import Literal, Self

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.errors import ContainsGroupError, GroupNotFoundError

from storage.case import CaseRecord, Part
from storage.catalog import Catalog
from storage.database import Database
from storage.errors import ArchiveError, ArchiveExistsError, ArchiveNotFoundError, CaseNotFoundError, CatalogError, InvalidCaseError
from storage.labels import write_array
from storage.layout import image_codec
from storage.ledger import Ledger
from storage.ome import FORMAT, LEVEL, RootAttributes, case_attributes
from storage.store import (
    Store,
    address_of,
    below,
    catalog_url_of,
    check_writable,
    group_at,
    local_path,
    open_store,
    remove_group,
    sweep_unfinished,
)
from storage.stored_case import CASES, Case


class Archive:
    """All cases and label sets at one address. Safe to share between threads; other processes open their own."""

    def __init__(self, url: str, store: Store, database: Database) -> None:
        """Join the parts; use :meth:`create`, :meth:`open` or :meth:`open_or_create` instead."""
        self.url = url
        self._store = store
        self._database = database
        self.catalog = Catalog(database)
        self.ledger = Ledger(database)

    @property
    def catalog_url(self) -> str:
        """Where the catalog is, for another process that opens this archive; it may hold a password."""
        return self._database.url

    @classmethod
    def create(cls, url: str, *, catalog: str | None = None) -> Self:
        """Make an empty archive at a path or fsspec URL.

        Args:
            url: Local folder or URL such as ``s3://bucket/archive.zarr``.
            catalog: SQLAlchemy URL; by default a SQLite file beside a local archive.

        Raises:
            ArchiveExistsError: if there is something at ``url`` already.
            CatalogError: if the archive is not local and no catalog is given.
        """
        address = address_of(url)
        catalog_url = catalog_url_of(url, catalog)
        store = open_store(address, read_only=False)
        _check_vacant(address, store)
        database = Database(catalog_url)
        if known := Catalog(database).count_cases():
            message = (
                f"the catalog {database.shown_url} already describes {known} cases of another archive, perhaps one that stood at {address} "
                "before. Delete it, or name another catalog."
            )
            raise ArchiveExistsError(message)
        sweep_unfinished(store)
        zarr.create_group(store, attributes=RootAttributes().attributes())
        group_at(below(store, CASES))
        return cls(address, store, database)

    @classmethod
    def open(cls, url: str, *, catalog: str | None = None, mode: Literal["r", "r+"] = "r+") -> Self:
        """Open an archive that is there.

        Raises:
            ArchiveNotFoundError: if there is none at ``url``.
            ArchiveError: if something else is there (a file, a folder with other things), or a newer format.
            CatalogError: if the catalog is missing, too new, or was not named for an archive that is not local.
        """
        address = address_of(url)
        catalog_url = catalog_url_of(url, catalog)
        store = open_store(address, read_only=mode == "r")
        check_root(address, store)
        if Database.is_missing(catalog_url):
            # An empty one would call every case unfinished, and the next ingest would overwrite them all.
            message = (
                f"the archive {address} is there, but its catalog {catalog_url} is not. Move the catalog back beside the archive, or make "
                "a new one from what the archive holds with storage.rebuild_catalog."
            )
            raise CatalogError(message)
        return cls(address, store, Database(catalog_url))

    @classmethod
    def open_or_create(cls, url: str, *, catalog: str | None = None) -> Self:
        """Open the archive at ``url``, or make one; when two processes try at once, both get the same one."""
        try:
            return cls.open(url, catalog=catalog)
        except ArchiveNotFoundError:
            pass
        try:
            return cls.create(url, catalog=catalog)
        except (ArchiveExistsError, ContainsGroupError):
            return cls.open(url, catalog=catalog)

    def cases(
        self,
        *,
        part: Part | None = None,
        modality: str | None = None,
        with_labels: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[CaseRecord]:
        """Return the records of all complete cases that match, sorted by id.

        Args:
            part: Only this part.
            modality: Only this DICOM modality.
            with_labels: Only cases that carry this label set.
            limit: At most so many; with ``after``, the way to walk through a large archive page by page.
            after: Only ids that sort behind this one.
        """
        return self.catalog.cases(part=part, modality=modality, with_labels=with_labels, limit=limit, after=after)

    def __getitem__(self, case_id: str) -> "Case":
        """Return one case.

        Raises:
            CaseNotFoundError: if there is none of this id; the message names similar ones.
        """
        record = self.catalog.find_case(case_id)
        if record is None:
            raise CaseNotFoundError(self.no_such_case(case_id))
        return Case(record, below(self._store, CASES, case_id), self.catalog)

    def __contains__(self, case_id: object) -> bool:
        """Tell whether a complete case of this id is here."""
        return isinstance(case_id, str) and self.catalog.find_case(case_id) is not None

    def __len__(self) -> int:
        """Count the complete cases."""
        return self.catalog.count_cases()

    def add_case(self, record: CaseRecord, image_czyx: Shaped[np.ndarray, "c z y x"], *, replace: bool = False) -> "Case":
        """Write one case: pixels, then attributes, then the catalog row.

        Adding the same case again does nothing. What a killed write left behind is overwritten.

        Args:
            record: What to know about the case. An empty fingerprint is filled in from pixels and geometry.
            image_czyx: Pixels in their native dtype.
            replace: Overwrite a case of the same id that has another fingerprint; its label sets go with the old pixels.

        Raises:
            InvalidCaseError: if record and pixels disagree, or another case has this id and ``replace`` is false.
            ArchiveError: if the archive was opened for reading only.
        """
        check_writable(self._store, self.url)
        _check_image(record, image_czyx)
        if not record.fingerprint:
            record = with_changes(record, fingerprint=fingerprint_image(record, image_czyx))
        present = None if replace else self.catalog.find_case(record.id)
        if present is not None and present.fingerprint != record.fingerprint:
            message = f"case {record.id}: the archive holds other pixels under this id. Give it another id, or pass replace=True."
            raise InvalidCaseError(message)
        if present is None:
            self._write_case(record, image_czyx)
        return self[record.id]

    def describe_case(self, record: CaseRecord) -> None:
        """Write anew what is known about a case that is here, in its attributes and in the catalog; pixels and label sets stay.

        Raises:
            CaseNotFoundError: if there is none of this id.
            InvalidCaseError: if the record is of other pixels.
            ArchiveError: if the archive was opened for reading only.
        """
        check_writable(self._store, self.url)
        if self[record.id].record.fingerprint != record.fingerprint:
            message = f"case {record.id}: the archive holds other pixels under this id. Use add_case with replace=True."
            raise InvalidCaseError(message)
        group_at(below(self._store, CASES, record.id)).attrs.put(case_attributes(record).attributes())
        self.catalog.add_case(record)

    def _write_case(self, record: CaseRecord, image_czyx: Shaped[np.ndarray, "c z y x"]) -> None:
        store = below(self._store, CASES, record.id)
        _check_own(record.id, _root(store))
        self.catalog.retract_case(record.id)
        remove_group(below(self._store, CASES), record.id)
        write_array(store, LEVEL, image_czyx, "czyx", image_codec())
        group_at(store).attrs.put(case_attributes(record).attributes())
        self.catalog.add_case(record)

    def no_such_case(self, case_id: str) -> str:
        """Say that there is no case of this id, and which there are that look like it."""
        known = self.catalog.similar_ids(case_id)
        close = difflib.get_close_matches(case_id, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"no case {case_id!r} in {self.url}.{hint} It holds {len(self)} cases, such as: {', '.join(known[:5]) or 'none'}."


def fingerprint_image(record: CaseRecord, image_czyx: Shaped[np.ndarray, "c z y x"]) -> str:
    """Return the hash of pixels and geometry that work on the case depends on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((image_czyx.shape, image_czyx.dtype.str, record.geometry.spacing_zyx_mm, record.geometry.affine)).encode())
    digest.update(np.ascontiguousarray(image_czyx).data)
    return digest.hexdigest()


def _check_vacant(address: str, store: Store) -> None:
    if _root(store) is not None:
        message = f"there is an archive at {address} already. Open it with Archive.open, or choose another folder."
        raise ArchiveExistsError(message)
    if stranger := _stranger_at(address):
        raise ArchiveExistsError(stranger)
    path = local_path(address)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)


def _stranger_at(address: str) -> str:
    """Say that something else is at a local address: a file, or a folder that holds anything; empty where the place is free."""
    path = local_path(address)
    if path is None or not path.exists():
        return ""
    if path.is_dir():
        found = next((each.name for each in sorted(path.iterdir()) if each.suffix != ".partial"), None)
        if found is None:
            return ""
        return f"{address} exists and is not an archive: it is a folder that holds {found!r}. Choose another path, such as one ending in .zarr."
    return f"{address} exists and is not an archive: it is a file. Choose another path, such as one ending in .zarr."


def check_root(address: str, store: Store) -> None:
    """Refuse to take anything but an archive of this format for one.

    Raises:
        ArchiveNotFoundError: if nothing is there.
        ArchiveError: if something else is there, or a newer format.
    """
    root = _root(store)
    if root is None and (stranger := _stranger_at(address)):
        root = _root(store)  # once more: somebody may have been making it
        if root is None:
            raise ArchiveError(stranger)
    if root is None:
        message = f"there is no archive at {address}. Check the path, or make one with `samdistill ingest SRC {address}` or Archive.create."
        raise ArchiveNotFoundError(message)
    mark = root.attrs.get("samdistill")
    if not isinstance(mark, dict):
        message = f"{address} is a Zarr group, but not an archive of samdistill: its attributes have no 'samdistill'."
        raise ArchiveError(message)
    if mark.get("format") != FORMAT:
        message = f"{address} has archive format {mark.get('format')}, but this version reads {FORMAT}. Upgrade samdistill."
        raise ArchiveError(message)


def _root(store: Store) -> zarr.Group | None:
    try:
        return zarr.open_group(store, mode="r")
    except (FileNotFoundError, NotADirectoryError, GroupNotFoundError):
        return None


def _check_own(case_id: str, group: zarr.Group | None) -> None:
    """Refuse to write over another case: a file system that does not tell capitals from small letters has one folder for both.

    Raises:
        InvalidCaseError: naming both.
    """
    mark = {} if group is None else group.attrs.asdict().get("samdistill", {})
    record = mark.get("record", {}) if isinstance(mark, dict) else {}
    found = record.get("id", case_id) if isinstance(record, dict) else case_id
    if found != case_id:
        message = f"case {case_id}: its folder is that of case {found} on this file system, which takes capitals for small letters. Rename one of them."
        raise InvalidCaseError(message)


def _check_image(record: CaseRecord, image_czyx: Shaped[np.ndarray, "c z y x"]) -> None:
    if image_czyx.shape != record.shape_czyx or str(image_czyx.dtype) != record.dtype:
        message = (
            f"case {record.id}: the record says {record.shape_czyx} {record.dtype}, but the pixels are {image_czyx.shape} "
            f"{image_czyx.dtype}. Axes are c, z, y, x; dtype is numpy's name."
        )
        raise InvalidCaseError(message)
