"""What the card of the bundled teacher says and its file does not: what it was trained on, and under which licence it is."""

import re
from importlib.resources import as_file, files
from pathlib import Path

_ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)
_SHARE = re.compile(r"^\d+ %$")


def bundled_facts() -> dict[str, str]:
    """Read the card that lies beside the bundled teacher; an installation without it has nothing to tell."""
    with as_file(files("distill.teachers") / "bundled" / "CARD.md") as path:
        return card_facts(path) if path.is_file() else {}


def card_facts(path: Path) -> dict[str, str]:
    """Read training data and licence out of a card's tables.

    Args:
        path: A Markdown file: a row ``| Licence | ... |``, and of each kind of training data a row ``| 58 % | what it is: more, ... |``.
    """
    rows = [[cell.strip() for cell in line.split("|")] for line in _ROW.findall(path.read_text(encoding="utf-8"))]
    shares = [f"{share} {re.split('[:,(]', what)[0].strip()}" for share, what, *_ in rows if _SHARE.match(share)]
    licence = next((cells[1] for cells in rows if cells[0] == "Licence"), "")
    facts = {"trained on": ", ".join(shares), "licence": licence}
    return {name: fact for name, fact in facts.items() if fact} | {"card": str(path)}
