"""Say what is wrong with a row of weak prompts in the words of docs/prompts.md, whatever the validation library calls it."""

import difflib
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from storage.ingest.weak_schema import AnyRow

_ROWS: dict[str, Any] = {get_args(row.model_fields["kind"].annotation)[0]: row for row in get_args(AnyRow)}
KINDS = tuple(_ROWS)
"""``box``, ``point``, ..."""
_NUMBERS = {"box_xyxy": 4, "box_ij": 4, "box_xywh": 4, "point_xy": 2, "point_ij": 2, "box_zyxzyx": 6, "box_ijk": 6, "size_yx": 2}
"""How many numbers each field takes."""
_PAIRS = ("points_xy", "points_ij")
_FOUR_PAIRS = ("extreme_points_xy", "recist_xy")
_WORDS = {2: "two", 4: "four", 6: "six"}


def explain(error: ValidationError, content: object) -> str:
    """Name the first fault in one clause.

    Args:
        error: What validation found.
        content: The row.
    """
    if not isinstance(content, dict):
        return f"a row is an object such as {{'case': 'P01', ...}}, but this one is {_shown(content)}"
    return _clause(error.errors(include_url=False)[0], content)


def _clause(fault: ErrorDetails, content: dict[str, Any]) -> str:
    kind = str(content.get("kind"))
    # The first part of a place is the kind, by which the model was chosen.
    place = [str(part) for part in fault["loc"]]
    field = place[1] if len(place) > 1 else place[0] if place and place[0] not in KINDS else ""
    match fault["type"]:
        case "union_tag_not_found":
            return f"the field 'kind' is missing; it is one of {', '.join(KINDS)}"
        case "union_tag_invalid":
            return f"there is no kind {kind!r}.{_guess(kind, KINDS)} Known: {', '.join(KINDS)}"
        case "extra_forbidden":
            known = list(_ROWS[kind].model_fields)
            return f"a {kind} has no field {field!r}.{_guess(field, known)} Known: {', '.join(known)}"
        case "value_error":
            return str(fault.get("ctx", {}).get("error", fault["msg"]))
        case _:
            return f"{field!r} must be {_wanted(field)}, but is {_shown(content.get(field))}"


def _wanted(field: str) -> str:
    """What a field takes, in words."""
    if field in _NUMBERS:
        return f"{_WORDS[_NUMBERS[field]]} numbers"
    if field in _PAIRS:
        return "a list of pairs of numbers"
    if field in _FOUR_PAIRS:
        return "four pairs of numbers"
    fixed = {
        "extreme_points_ijk": "six triples of numbers",
        "slice": "a whole number from 0",
        "class_id": "a whole number from 1 to 254",
        "slice_axis": "k, j, i, z, y or x",
        "confidence": "a number from 0 to 1",
        "positive": "true or false",
        "polygons_xy": "a list of polygons, each a list of numbers x0, y0, x1, y1, ...",
        "rle": "COCO run lengths: a string, or a list of whole numbers",
    }
    return fixed.get(field, "a text")


def _guess(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
