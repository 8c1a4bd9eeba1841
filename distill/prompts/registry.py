"""Which sources of prompts there are, by name; nothing of them is imported before one is made.

Ours stand in ``SOURCES``; those of other packages come by the entry point group ``samdistill.prompt_sources`` (docs/extending.md).
"""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any

from distill import extensions
from distill.errors import PlanError
from distill.prompts.choice import PROPAGATE, REVIEW, WEAK

STORED = frozenset({WEAK, PROPAGATE})
"""Names of a chain that no source has to be made for."""
SOURCES: dict[str, str] = {
    "exemplar": "distill.prompts.exemplar:exemplar_source",
    "student": "distill.prompts.from_labels:make",
    "threshold": "distill.prompts.threshold:make_threshold",
    "everything": "distill.prompts.everything:make_everything",
    "text": "distill.prompts.text:make_text",
}
"""Name -> ``module:function`` that makes the source from a ``SourceContext`` and its options."""
_WHAT = "source of prompts"


def source_names() -> tuple[str, ...]:
    """Return every name that a recipe may use, ours first."""
    return (WEAK, PROPAGATE, *SOURCES, *sorted(foreign_sources()))


def check_source(name: str) -> str:
    """Return ``name`` if it is one of ``source_names``.

    Raises:
        PlanError: if it is not; the message says what was probably meant.
    """
    known = source_names()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        message = f"there is no source of prompts {name!r}.{meant} Known: {', '.join(known)}."
        raise PlanError(message)
    return name


def load_maker(name: str) -> Any:
    """Import what makes a source.

    Raises:
        PlanError: if there is no source of this name.
        ExtensionError: if the package that brings it cannot be imported.
    """
    check_source(name)
    foreign = foreign_sources()
    if name in foreign:
        return extensions.brought_in(foreign[name], _WHAT)
    module, _, function = SOURCES[name].partition(":")
    return getattr(import_module(module), function)


def foreign_sources() -> Mapping[str, EntryPoint]:
    """Return the sources of installed packages by name.

    Raises:
        ExtensionError: if two packages offer one name, or one of ours.
    """
    return extensions.offered(extensions.SOURCES, _WHAT, {*SOURCES, *STORED, REVIEW})
