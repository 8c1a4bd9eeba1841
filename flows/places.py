"""Paths and addresses as a recipe writes them: relative to its folder, with ``${NAME}`` from the environment."""

import os
import re
import shlex
import shutil
import subprocess
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


def typed(path: str) -> str:
    """Write a path as it is typed into a shell: in quotes, where it holds blanks and the like."""
    return subprocess.list2cmdline([path]) if os.name == "nt" else shlex.quote(path)


def resolve_path(text: str, *, folder: Path | None) -> Path:
    """Turn what the recipe says into an absolute path.

    Raises:
        ValueError: if it names a variable that is not set, or the home folder of somebody who is not known here.
    """
    try:
        path = Path(expand(text)).expanduser()
    except RuntimeError:
        message = f"begins with a home folder that is not known on this machine: {text}. Write the whole path."
        raise ValueError(message) from None
    return ((folder or Path.cwd()) / path).resolve()


def resolve_address(text: str, *, folder: Path | None) -> str:
    """Keep a URL (``s3://...``, ``memory://...``) and resolve everything else as a path."""
    expanded = expand(text)
    return expanded if _URL.match(expanded) else str(resolve_path(expanded, folder=folder))


def resolve_catalog(text: str, *, folder: Path | None) -> str:
    """Turn a recipe's ``catalog`` into a URL; the file of a SQLite catalog counts from the recipe's folder, as all paths do.

    Raises:
        ValueError: if it is no URL of a database.
    """
    from storage import CatalogError
    from storage.database import parse_url

    expanded = expand(text)
    try:
        url = parse_url(expanded)
    except CatalogError as error:
        raise ValueError(str(error)) from None
    file = url.database or ""
    if url.get_backend_name() != "sqlite" or not file or file.startswith((":memory:", "file:")):
        return expanded
    return url.set(database=str(resolve_path(file, folder=folder))).render_as_string(hide_password=False)


def program() -> str:
    """How this program is called in this shell, so that a printed command works as it stands."""
    called = sys.argv[0]
    found = shutil.which("samdistill")
    if Path(called).name != "samdistill" or (found and Path(found).resolve() == Path(called).resolve()):
        return "samdistill"
    return typed(shortest(called))
