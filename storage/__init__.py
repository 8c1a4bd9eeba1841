"""Bytes and records: the archive of scans, the catalog of what is known about them, the ledger of work done on them.

Start at :class:`Archive`. This room knows nothing of models and imports neither torch nor prefect.
"""

from storage.archive import Archive
from storage.case import IGNORE, CaseRecord, Channel, ClassInfo, Geometry, LabelHistory, Part, Prompt
from storage.catalog import Catalog
from storage.errors import (
    ArchiveError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    CaseError,
    CaseNotFoundError,
    CatalogError,
    IngestError,
    InvalidCaseError,
    LabelSetNotFoundError,
    LedgerError,
    ReviewConflictError,
    StorageError,
)
from storage.labels import Labels
from storage.ledger import Ledger, UnitRecord, fingerprint
from storage.rebuild import rebuild_catalog
from storage.records import ListingRecord, ProblemRecord, ReviewRecord, StudentRecord
from storage.stored_case import Case

__all__ = [
    "IGNORE",
    "Archive",
    "ArchiveError",
    "ArchiveExistsError",
    "ArchiveNotFoundError",
    "Case",
    "CaseError",
    "CaseNotFoundError",
    "CaseRecord",
    "Catalog",
    "CatalogError",
    "Channel",
    "ClassInfo",
    "Geometry",
    "IngestError",
    "InvalidCaseError",
    "LabelHistory",
    "LabelSetNotFoundError",
    "Labels",
    "Ledger",
    "LedgerError",
    "ListingRecord",
    "Part",
    "ProblemRecord",
    "Prompt",
    "ReviewConflictError",
    "ReviewRecord",
    "StorageError",
    "StudentRecord",
    "UnitRecord",
    "fingerprint",
    "rebuild_catalog",
]
