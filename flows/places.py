"""Paths and addresses as a recipe writes them: relative to its folder, with ``${NAME}`` from the environment."""

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://")


def expand(text: str) -> str:
    """Replace ``${NAME}`` by the environment's value.

    Raises:
        ValueError: if a variable is not set; an empty replacement would point at the root of the disk.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match.group(1))
        if not found:
            message = f"names the environment variable {match.group(1)}, which is not set. Set it, or write the path itself."
            raise ValueError(message)
        return found

    return _VARIABLE.sub(value, text)


def resolve_path(text: str, *, folder: Path | None) -> Path:
    """Turn what the recipe says into an absolute path."""
    path = Path(expand(text)).expanduser()
    return ((folder or Path.cwd()) / path).resolve()


def resolve_address(text: str, *, folder: Path | None) -> str:
    """Keep a URL (``s3://...``, ``memory://...``) and resolve everything else as a path."""
    expanded = expand(text)
    return expanded if _URL.match(expanded) else str(resolve_path(expanded, folder=folder))
