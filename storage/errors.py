"""Every error of the storage room, as one hierarchy.

StorageError
├── ArchiveError            the Zarr store as a whole
│   ├── ArchiveNotFoundError   (FileNotFoundError)
│   └── ArchiveExistsError     (FileExistsError)
├── CaseError               one case in it
│   ├── CaseNotFoundError      (KeyError)
│   └── InvalidCaseError       (ValueError)
├── LabelSetNotFoundError   (KeyError)
├── CatalogError            the SQL index beside it
│   └── ReviewConflictError    a verdict on what changed, or was judged by somebody else, meanwhile
├── LedgerError             the record of work
└── IngestError             (ValueError) one source file that cannot go in, with a reason slug
"""


class StorageError(Exception):
    """Base of everything this room raises on purpose."""

    def __str__(self) -> str:
        # KeyError quotes its argument; our messages are sentences and read better bare.
        return Exception.__str__(self)


class ArchiveError(StorageError):
    """The archive as a whole cannot be used."""


class ArchiveNotFoundError(ArchiveError, FileNotFoundError):
    """There is no archive at this address."""


class ArchiveExistsError(ArchiveError, FileExistsError):
    """There is something at this address already."""


class CaseError(StorageError):
    """One case cannot be read or written."""


class CaseNotFoundError(CaseError, KeyError):
    """The archive holds no case of this name."""


class InvalidCaseError(CaseError, ValueError):
    """A case contradicts itself, for example a spacing of zero."""


class LabelSetNotFoundError(StorageError, KeyError):
    """The case carries no label set of this name."""


class CatalogError(StorageError):
    """The SQL catalog is missing, too new, or refuses a statement."""


class ReviewConflictError(CatalogError):
    """A verdict on a mask that has changed, or that another person has judged, since the reviewer saw it."""


class LedgerError(StorageError):
    """A unit of work was finished by somebody who had not claimed it."""


class IngestError(StorageError, ValueError):
    """A source file that cannot go into an archive.

    Args:
        reason: A slug that reports count by, such as ``truncated-gzip``.
        message: What was wrong, the value found, and the likely cause or cure.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Keep the slug apart from the sentence."""
        super().__init__(message)
        self.reason = reason
