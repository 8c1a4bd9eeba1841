"""What other packages bring: sources of prompts and teachers, found by the entry points that packages declare when they are installed.

Nothing of a package is imported before what it brings is used. docs/extending.md shows how one is written.
"""

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from distill.errors import ExtensionError

SOURCES = "samdistill.prompt_sources"
TEACHERS = "samdistill.teachers"


def offered(group: str, what: str, taken: Collection[str]) -> dict[str, EntryPoint]:
    """Return what installed packages offer, by name.

    Args:
        group: of entry points.
        what: as messages call one of them, such as ``teacher``.
        taken: names of our own.

    Raises:
        ExtensionError: if a name is one of our own, or two packages offer it.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in taken:
            message = f"{package_of(point)} offers a {what} by the name {point.name!r}, which is one of our own. Rename it there, or uninstall the package."
            raise ExtensionError(message)
        if found.setdefault(point.name, point) != point:
            both = f"{package_of(found[point.name])} and {package_of(point)}"
            message = f"{both} both offer a {what} by the name {point.name!r}. Uninstall one of them, or rename it."
            raise ExtensionError(message)
    return found


def brought_in(point: EntryPoint, what: str) -> Any:
    """Import what an entry point names.

    Raises:
        ExtensionError: if the package cannot be imported, whatever the reason, or does not hold what it declares.
    """
    try:
        return point.load()
    except Exception as error:
        message = (
            f"the {what} {point.name!r} of {package_of(point)} cannot be imported from {point.value}: {type(error).__name__}: {error}. "
            "Mend or reinstall that package, or name another one."
        )
        raise ExtensionError(message) from error


def installed() -> list[str]:
    """Return what packages bring, with their versions, sorted: what a run depends on besides our own code."""
    return sorted(f"{point.name} of {package_of(point)}" for group in (SOURCES, TEACHERS) for point in entry_points(group=group))


def package_of(point: EntryPoint) -> str:
    """Return the package that declares an entry point, with its version: its labels are made anew when it changes."""
    return f"the package {point.dist.name} {point.dist.version}" if point.dist is not None else f"the module {point.module}"
