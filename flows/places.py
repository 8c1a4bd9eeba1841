"""Paths and addresses as a recipe writes them: relative to its folder, with ``${NAME}`` from the environment."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from flows.errors import StageError

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


def check_writable(place: Path, what: str) -> None:
    """Find out whether a folder can be made or filled here, by making a file and taking it away again.

    Args:
        place: The folder, or where it is to be.
        what: What it is for, such as ``the archive``.

    Raises:
        StageError: if not.
    """
    nearest = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        message = f"{what} cannot be written to {place}: {nearest} is not writable ({error.strerror}). Choose a folder of your own."
        raise StageError(message) from None


def shortest(text: str) -> str:
    """Write an absolute path relative to the working folder where it lies in it; all else stays."""
    path = Path(text)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else text


def resolve_path(text: str, *, folder: Path | None) -> Path:
    """Turn what the recipe says into an absolute path."""
    path = Path(expand(text)).expanduser()
    return ((folder or Path.cwd()) / path).resolve()


def resolve_address(text: str, *, folder: Path | None) -> str:
    """Keep a URL (``s3://...``, ``memory://...``) and resolve everything else as a path."""
    expanded = expand(text)
    return expanded if _URL.match(expanded) else str(resolve_path(expanded, folder=folder))


def program() -> str:
    """How this program is called in this shell, so that a printed command works as it stands."""
    called = sys.argv[0]
    found = shutil.which("samdistill")
    if Path(called).name != "samdistill" or (found and Path(found).resolve() == Path(called).resolve()):
        return "samdistill"
    return shortest(called)
