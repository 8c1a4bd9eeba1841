"""Prompts as rows of the catalog: each is there once, with the files that say it."""

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from storage.case import Prompt
from storage.case_rows import KEYS_PER_QUERY, check_known, digest, known
from storage.database import upsert
from storage.tables import PromptFileRow, PromptRow

_PROMPT = TypeAdapter(Prompt)

Replaces = Callable[[Prompt, Prompt], bool]
"""A prompt that is there, and a new one of the same source, class and slice -> whether the new one takes its place."""


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """Return the row of a prompt; its key is a hash of all that it says."""
    content = _PROMPT.dump_python(prompt, mode="json")
    return {
        "key": digest(content),
        "case_id": prompt.case,
        "class_id": prompt.class_id,
        "kind": prompt.kind,
        "axis": prompt.axis,
        "position": prompt.slice,
        "source": prompt.source,
        "content": content,
    }


def read_prompts(connection: sa.Connection, case_ids: list[str]) -> dict[str, list[Prompt]]:
    """Return the prompts of many cases, by class, then axis and slice; a case without any has an empty list."""
    found: dict[str, list[Prompt]] = {case_id: [] for case_id in case_ids}
    order = (PromptRow.case_id, PromptRow.class_id, PromptRow.axis, PromptRow.position, PromptRow.key)
    for start in range(0, len(case_ids), KEYS_PER_QUERY):
        page = case_ids[start : start + KEYS_PER_QUERY]
        query = sa.select(PromptRow.case_id, PromptRow.content).where(PromptRow.case_id.in_(page)).order_by(*order)
        for case_id, content in connection.execute(query):
            found[case_id].append(_prompt(content))
    return found


def prompt_kinds(connection: sa.Connection) -> dict[tuple[str, int], frozenset[tuple[str, str, bool]]]:
    """Return case and class -> sources and kinds of their prompts, and whether these are positive, of all cases that have some."""
    positive = PromptRow.content["positive"].as_boolean()
    found: dict[tuple[str, int], set[tuple[str, str, bool]]] = {}
    for case_id, class_id, source, kind, says_yes in connection.execute(
        sa.select(PromptRow.case_id, PromptRow.class_id, PromptRow.source, PromptRow.kind, positive).distinct()
    ):
        found.setdefault((case_id, class_id), set()).add((source, kind, says_yes is not False))
    return {key: frozenset(kinds) for key, kinds in found.items()}


def cases_off_axis(connection: sa.Connection) -> list[str]:
    """Return the cases with prompts on slices that are not axial, sorted."""
    return sorted(connection.scalars(sa.select(PromptRow.case_id).where(PromptRow.axis != "z").distinct()))


def prompts_from(connection: sa.Connection, source: str) -> list[Prompt]:
    """Return all prompts of one source, by case, class and slice."""
    order = (PromptRow.case_id, PromptRow.class_id, PromptRow.axis, PromptRow.position, PromptRow.key)
    return [
        _prompt(content) for content in connection.scalars(sa.select(PromptRow.content).where(PromptRow.source == source).order_by(*order))
    ]


def _prompt(content: dict[str, Any]) -> Prompt:
    return _PROMPT.validate_json(json.dumps(content))


def add_prompts(connection: sa.Connection, prompts: list[Prompt], file: str) -> int:
    """Add what one file says, and return how many prompts were new.

    Raises:
        CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is added then.
    """
    rows = list({row["key"]: row for row in map(prompt_row, prompts)}.values())
    check_known(connection, {prompt.case for prompt in prompts})
    # Counted before: what drivers say of many rows in one statement differs.
    there = known(connection, PromptRow.key, [row["key"] for row in rows])
    upsert(connection, PromptRow, rows)
    upsert(connection, PromptFileRow, [{"key": row["key"], "file": file} for row in rows])
    return len(rows) - len(there)


def take_back(connection: sa.Connection, file: str, source: str, keep: set[str]) -> int:
    """Delete what a file said under a source, except ``keep`` and what somebody else says too; return how many went."""
    said = sa.select(PromptFileRow.key).join(PromptRow, PromptRow.key == PromptFileRow.key)
    stale = sorted(set(connection.scalars(said.where(PromptFileRow.file == file, PromptRow.source == source))) - keep)
    deleted = 0
    for start in range(0, len(stale), KEYS_PER_QUERY):
        page = stale[start : start + KEYS_PER_QUERY]
        connection.execute(sa.delete(PromptFileRow).where(PromptFileRow.file == file, PromptFileRow.key.in_(page)))
        elsewhere = sa.exists().where(PromptFileRow.key == PromptRow.key)
        deleted += connection.execute(sa.delete(PromptRow).where(PromptRow.key.in_(page), ~elsewhere)).rowcount
    return deleted


def replace_boxes(connection: sa.Connection, boxes: list[Prompt], replaces: Replaces | None = None) -> None:
    """Add prompts in place of those of the same source, class and slice.

    Args:
        connection: in a writing transaction: what others add meanwhile would be lost.
        boxes: to add.
        replaces: which of those that are there a new one takes the place of; all by default.
    """
    for box in boxes:
        place: list[sa.ColumnElement[bool]] = [PromptRow.axis == box.axis, PromptRow.position == box.slice]
        if replaces is not None:
            mine = (PromptRow.case_id == box.case, PromptRow.class_id == box.class_id, PromptRow.source == box.source)
            there = connection.execute(sa.select(PromptRow.key, PromptRow.content).where(*mine, *place))
            place.append(PromptRow.key.in_([key for key, content in there if replaces(_prompt(content), box)]))
        forget_prompts(connection, box.case, box.class_id, box.source, *place)
    add_prompts(connection, boxes, "")


def forget_prompts(connection: sa.Connection, case_id: str, class_id: int, source: str, *where: sa.ColumnElement[bool]) -> int:
    """Delete the prompts of one source about one class of a case, or those of them that match; return how many there were."""
    mine = (PromptRow.case_id == case_id, PromptRow.class_id == class_id, PromptRow.source == source)
    return connection.execute(sa.delete(PromptRow).where(*mine, *where)).rowcount
