"""Teachers that other packages bring, by the names under which they declare them (entry point group ``samdistill.teachers``).

A package declares a function ``load(device, precision)`` that returns a ``distill.teachers.base.Teacher``; a recipe names it as its checkpoint.
What it weighs is not known before it is loaded, so labels depend on the package's name and version: a new version has them drawn anew.
"""

import hashlib
from importlib.metadata import EntryPoint
from typing import Any

from distill.errors import ExtensionError
from distill.extensions import TEACHERS, brought_in, offered, package_of
from distill.teachers.fetch import OFFICIAL

BUNDLED = "bundled"
FOREIGN = "foreign"
"""The family of these teachers."""
_WHAT = "teacher"


def foreign_teachers() -> dict[str, EntryPoint]:
    """Return the teachers of installed packages by name.

    Raises:
        ExtensionError: if a name is taken, by one of ours or by another package.
    """
    return offered(TEACHERS, _WHAT, {BUNDLED, *OFFICIAL})


def is_foreign(checkpoint: object) -> bool:
    """Say whether a package brings a teacher of this name."""
    return isinstance(checkpoint, str) and checkpoint in foreign_teachers()


def check_foreign(name: str, *, profile: str | None, base: object) -> None:
    """Import what loads a teacher, and refuse what is said only of files.

    Raises:
        ExtensionError: if it cannot be imported or called, or ``profile`` or ``base`` is given.
    """
    point = foreign_teachers()[name]
    if profile is not None or base is not None:
        message = f"the teacher {name!r} of {package_of(point)} knows its own protocol. Leave out profile and base, which are for checkpoint files."
        raise ExtensionError(message)
    loader = brought_in(point, _WHAT)
    if not callable(loader):
        message = f"the teacher {name!r} of {package_of(point)} is a {type(loader).__name__}, and not a function load(device, precision). See docs/extending.md."
        raise ExtensionError(message)


def load_foreign(name: str, device: str, precision: str) -> Any:
    """Load a teacher of another package.

    Args:
        name: as the package declares it.
        device: one device, as torch writes it.
        precision: as a recipe says it, such as ``auto``; the package does with it what it can.

    Raises:
        ExtensionError: if the package fails, or what it returns is no teacher.
    """
    from distill.teachers.base import Teacher

    point = foreign_teachers()[name]
    loader = brought_in(point, _WHAT)
    try:
        teacher = loader(device, precision)
    except Exception as error:
        message = f"the teacher {name!r} of {package_of(point)} could not be loaded on {device}: {type(error).__name__}: {error}"
        raise ExtensionError(message) from error
    if not isinstance(teacher, Teacher):
        lacking = ", ".join(sorted(each for each in _MEMBERS if not hasattr(teacher, each)))
        message = f"the teacher {name!r} of {package_of(point)} is a {type(teacher).__name__} without {lacking}. See docs/extending.md."
        raise ExtensionError(message)
    return teacher


_MEMBERS = ("profile", "fingerprint", "mask_size_px", "encode", "decode", "upsample", "mask_prompt", "predict")
"""Of ``distill.teachers.base.Teacher``."""


def foreign_facts(name: str) -> tuple[str, str, str]:
    """Return the package that brings a teacher, what it declares, and the hash that labels depend on."""
    point = foreign_teachers()[name]
    package = package_of(point)
    return package, point.value, hashlib.sha256(f"{package} {name} {point.value}".encode()).hexdigest()[:16]
