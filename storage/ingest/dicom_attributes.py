"""The only attributes of a DICOM file that may go on, and the keyed hash that stands for everything else.

An allow-list: what is not named here does not exist for the product. Even allowed attributes pass only as a number or
as a word of a fixed vocabulary, because scanners and people write free text into almost every field.
"""

import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from storage.errors import IngestError
from storage.wording import IMAGE_MODALITIES

_VENDORS = {
    "siemens": "Siemens",
    "ge ": "GE",
    "ge medical": "GE",
    "general electric": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Canon",
    "hitachi": "Fujifilm",
    "fuji": "Fujifilm",
    "agfa": "Agfa",
    "carestream": "Carestream",
    "hologic": "Hologic",
    "united imaging": "United Imaging",
    "uih": "United Imaging",
    "zeiss": "Zeiss",
    "topcon": "Topcon",
    "heidelberg": "Heidelberg",
    "samsung": "Samsung",
    "mindray": "Mindray",
    "esaote": "Esaote",
    "shimadzu": "Shimadzu",
    "bruker": "Bruker",
    "varian": "Varian",
    "elekta": "Elekta",
}
_NUMBERS = {"KVP": "kvp", "MagneticFieldStrength": "field_tesla", "SliceThickness": "slice_thickness_mm"}
_YEARS_PER_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_OLDEST_YEARS = 90.0
"""HIPAA's safe harbour (45 CFR 164.514) counts ages over 89 as identifying; they are all reported as 90."""

ATTRIBUTE_KEYWORDS = ("Modality", "Manufacturer", "PatientSex", "PatientAge", *_NUMBERS)
_KEY_BYTES = 32


def allowed_attributes(header: Any) -> dict[str, str | float | int]:
    """Keep sex, age in years, vendor and three numbers of the scan, each only if it says what it should."""
    found: dict[str, str | float | int] = {}
    sex = str(header.get("PatientSex", "") or "").strip().upper()
    if sex in ("M", "F", "O"):
        found["sex"] = sex
    age = _age_years(str(header.get("PatientAge", "") or ""))
    if age is not None:
        found["age_years"] = age
    vendor = _vendor(str(header.get("Manufacturer", "") or ""))
    if vendor:
        found["vendor"] = vendor
    for keyword, name in _NUMBERS.items():
        value = positive_number(header.get(keyword))
        if value is not None:
            found[name] = value
    return found


def modality_of(header: Any) -> str:
    """Return the modality code if it is one of the standard's, else ``unknown``."""
    code = str(header.get("Modality", "") or "").strip().upper()
    return code if code in IMAGE_MODALITIES else "unknown"


def positive_number(value: Any) -> float | None:
    """Return a positive finite number, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def keyed_hash(key: bytes, parts: Iterable[str], *, length: int = 16) -> str:
    """Hash texts so that nobody without the key can test a guess; ``length`` counts hex digits."""
    # Names of files need not be UTF-8.
    digest = hmac.new(key, "\x1f".join(parts).encode("utf-8", "backslashreplace"), lambda: blake2b(digest_size=32))
    return digest.hexdigest()[:length]


def load_or_make_key(path: Path) -> bytes:
    """Read the archive's secret, or make one that only its owner can read.

    Raises:
        IngestError: ``bad-dicom-key`` if the file holds no key.
    """
    if not path.exists():
        # Written aside and linked into place: a process killed in between leaves no half key, and of two writers one wins.
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mkstemp makes files that only the owner can read
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
        with suppress(FileExistsError):
            _give_name(Path(aside), path)
        Path(aside).unlink(missing_ok=True)
    return _parse_key(path)


def _give_name(aside: Path, path: Path) -> None:
    """Give a finished file its name, unless somebody else was faster.

    Raises:
        FileExistsError: if somebody was.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # no links here: memory sticks and some network disks
        if path.exists():
            raise FileExistsError(path) from None
        aside.replace(path)


def _parse_key(path: Path) -> bytes:
    text = path.read_text().strip()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * _KEY_BYTES}}}", text):
        message = (
            f"{path} should hold {2 * _KEY_BYTES} hexadecimal digits, the secret behind the pseudonyms of this archive, but does not. "
            "Restore it from a backup; with another key the same patients would come in again under other names."
        )
        raise IngestError("bad-dicom-key", message)
    return bytes.fromhex(text)


def _age_years(text: str) -> float | None:
    match = re.fullmatch(r"(\d{3})([YMWD])", text.strip())
    if match is None:
        return None
    return round(min(int(match.group(1)) * _YEARS_PER_UNIT[match.group(2)], _OLDEST_YEARS), 2)


def _vendor(text: str) -> str:
    """Map the manufacturer, which is free text, onto known names."""
    lower = text.strip().lower() + " "
    if not lower.strip():
        return ""
    return next((name for start, name in _VENDORS.items() if lower.startswith(start)), "other")
