"""What people write about scans, checked before anything is read: the modality, the classes, values of labels, and where in a name the patient is.

This module imports nothing heavy, so that a recipe can be checked at once.
"""

import difflib
import re

from storage.errors import IngestError

IMAGE_MODALITIES = frozenset(
    "CR CT DX ES GM IO IVUS MG MR NM OCT OP OPT PT PX RF RG SM US XA XC".split()  # noqa: SIM905 - a word list reads better so
)
"""Codes of DICOM PS3.3 C.7.3.1.1.1 that stand for pictures."""
FREE_WORDS = ("other", "unknown")
"""For images of no DICOM modality, such as photographs of slides: written in small letters, and by nobody by accident."""
ABOVE_ZERO = "above 0"
"""In a mapping of label values: every value above 0 that is not named itself, as in files where each object has a number of its own."""
_MEANT = {"MRI": "MR", "T1": "MR", "T2": "MR", "PET": "PT", "ULTRASOUND": "US", "XRAY": "DX", "X-RAY": "DX", "XR": "DX", "FUNDUS": "OP"}
"""What people write for a code; each is too far from it for a comparison of letters."""


def plain_name(name: str) -> str:
    """Return a class name without what people write differently: case, and blanks for dashes or underscores."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def check_modality(word: str | None) -> str | None:
    """Return a modality as DICOM writes it; None stays None.

    Raises:
        IngestError: ``unknown-modality`` if it is neither a code of DICOM for pictures nor one of the free words.
    """
    if word is None or word in FREE_WORDS:
        return word
    code = word.strip().upper()
    if code in IMAGE_MODALITIES:
        return code
    close = _MEANT.get(code) or next(iter(difflib.get_close_matches(code, sorted(IMAGE_MODALITIES), n=1)), None)
    guess = f" Did you mean {close}?" if close else ""
    known = ", ".join(sorted(IMAGE_MODALITIES))
    message = f"there is no modality {word!r}.{guess} Known: {known}; for anything else write other or unknown, in small letters."
    raise IngestError("unknown-modality", message)


def check_pattern(pattern: str | None) -> str | None:
    """Return a pattern for ``patient_of`` if it can be used; None stays None.

    Raises:
        IngestError: ``bad-pattern`` if it is no regular expression, or has no group.
    """
    if pattern is None:
        return None
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos + 1}"
        message = (
            f"the patient pattern {pattern!r} is no regular expression: {error.msg}{where}. "
            "Its first group must match the patient in a file's name, for example '^(P[0-9]+)'."
        )
        raise IngestError("bad-pattern", message) from None
    if groups == 0:
        message = (
            f"the patient pattern {pattern!r} has no group. Put round brackets around the part that is the patient, such as '^(P[0-9]+)'."
        )
        raise IngestError("bad-pattern", message)
    return pattern
