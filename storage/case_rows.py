"""Cases as rows of the catalog."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.orm import InstrumentedAttribute

from storage.case import CaseRecord, Channel, Geometry
from storage.errors import CaseNotFoundError
from storage.tables import CaseRow

KEYS_PER_QUERY = 500
"""Ids in one IN (...); SQLite's oldest limit is 999 variables."""
_GEOMETRY = TypeAdapter(Geometry)
_CHANNELS = TypeAdapter(tuple[Channel, ...])


def case_row(record: CaseRecord) -> dict[str, Any]:
    """Return the row of a case, which makes it visible."""
    size_c, size_z, size_y, size_x = record.shape_czyx
    return {
        "id": record.id,
        "patient": record.patient,
        "part": record.part,
        "modality": record.modality,
        "dtype": record.dtype,
        "size_c": size_c,
        "size_z": size_z,
        "size_y": size_y,
        "size_x": size_x,
        "geometry": _GEOMETRY.dump_python(record.geometry, mode="json"),
        "attributes": dict(record.attributes),
        "fingerprint": record.fingerprint,
        "channels": _CHANNELS.dump_python(record.channels, mode="json"),
        "ready": True,
    }


def case_record(row: Mapping[Any, Any]) -> CaseRecord:
    """Return what a row says of its case."""
    return CaseRecord(
        id=row["id"],
        patient=row["patient"],
        shape_czyx=(row["size_c"], row["size_z"], row["size_y"], row["size_x"]),
        dtype=row["dtype"],
        geometry=_GEOMETRY.validate_python(row["geometry"]),
        modality=row["modality"],
        part=row["part"],
        attributes=row["attributes"],
        fingerprint=row["fingerprint"],
        channels=_CHANNELS.validate_python(tuple(row["channels"] or ())),
    )


def known(connection: sa.Connection, column: InstrumentedAttribute[str], wanted: list[str]) -> set[str]:
    """Return those of ``wanted`` that a column holds."""
    pages = (wanted[start : start + KEYS_PER_QUERY] for start in range(0, len(wanted), KEYS_PER_QUERY))
    return {found for page in pages for found in connection.scalars(sa.select(column).where(column.in_(page)))}


def check_known(connection: sa.Connection, case_ids: Iterable[str]) -> None:
    """Refuse ids that no case has.

    Raises:
        CaseNotFoundError: if there are some; the first are named.
    """
    wanted = sorted(set(case_ids))
    there = known(connection, CaseRow.id, wanted)
    unknown = [case_id for case_id in wanted if case_id not in there]
    if unknown:
        message = (
            f"{len(unknown)} of {len(wanted)} cases are not in the catalog, such as {', '.join(unknown[:5])}. Ingest their images first."
        )
        raise CaseNotFoundError(message)


def digest(content: object) -> str:
    """Return a key for a row that is the same whenever its content is."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
