"""Making a catalog anew from what an archive says about itself, after the catalog was lost."""

from collections.abc import Iterator

import zarr

from storage.archive import Archive, check_root
from storage.database import Database
from storage.errors import CatalogError
from storage.ome import CaseAttributes, LabelAttributes
from storage.store import Store, address_of, below, catalog_url_of, open_store
from storage.stored_case import CASES, LABELS


def rebuild_catalog(url: str, *, catalog: str | None = None) -> Archive:
    """Write a new catalog with every finished case and label set in the archive, and open the archive with it.

    Prompts, reviews, students and the ledger are not in the archive and stay lost; a case's part is the one it was added with.
    Before gold labels are used again, set the parts anew.

    Raises:
        ArchiveNotFoundError: if there is no archive at ``url``; no catalog is made then.
        ArchiveError: if something else is there.
        CatalogError: if the catalog already knows cases.
    """
    store = open_store(address_of(url), read_only=False)
    check_root(address_of(url), store)
    archive = Archive(address_of(url), store, Database(catalog_url_of(url, catalog)))
    if known := archive.catalog.count_cases():
        message = f"the catalog {archive.catalog.url} already knows {known} cases. Rebuild into a new one."
        raise CatalogError(message)
    for group in _finished(below(store, CASES)):
        record = CaseAttributes.read(group).samdistill.record
        archive.catalog.add_case(record)
        for labels in _finished(below(store, CASES, record.id, LABELS)):
            mark = LabelAttributes.read(labels).samdistill
            archive.catalog.add_label_set(record.id, mark.history, mark.scores)
    return archive


def _finished(store: Store) -> Iterator[zarr.Group]:
    """Yield the groups at the root of ``store`` whose write was finished: our attribute is the last thing written."""
    try:
        parent = zarr.open_group(store, mode="r")
    except FileNotFoundError:
        return
    yield from (group for _, group in parent.groups() if "samdistill" in group.attrs)
