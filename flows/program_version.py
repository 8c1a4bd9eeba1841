"""Which program this is: its version, and a hash of its source, because a version in development keeps its number while its answers change."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

_SHOWN = 12
"""Characters of the hash that tell sources apart; git shows as many of its own."""


@cache
def source_hash() -> str:
    """Return a hash of this package's source, the pages of its reports among it."""
    digest = hashlib.blake2b(digest_size=16)
    for room in ("storage", "distill", "students", "flows"):
        for file in sorted(file for file in (Path(__file__).parents[1] / room).rglob("*") if file.suffix in {".py", ".html"}):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def code_version() -> str:
    """Return version and source in one word: ``0.1.0+1f2e3d4c5b6a``."""
    return f"{version('samdistill')}+{source_hash()[:_SHOWN]}"
