"""What somebody probably meant who named a folder, or a name that is nearly one of those that are known. Nothing here imports torch."""

import difflib
from pathlib import Path

from distill.teachers.fetch import nearest_official

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Of files that weights are kept in."""
SHOWN = 5
BUNDLED = "bundled"


def perhaps_meant(name: str) -> str:
    """Return a sentence, with a blank before it, about the known name that a wrong one is near; nothing where it is near none or a path."""
    if len(Path(name).parts) != 1:
        return ""
    if difflib.get_close_matches(name.lower(), [BUNDLED], n=1):
        return f" Did you mean {BUNDLED!r}?"
    official = nearest_official(name)
    return f" Did you mean the official checkpoint {official!r}? 'samdistill fetch {official}' brings it." if official else ""


def what_is_in(folder: Path) -> str:
    """Return a sentence about the checkpoints, archives and students that lie in a folder."""
    inside = sorted(folder.iterdir())
    archives = [each.name for each in inside if (each / "zarr.json").is_file()]
    students = [each.name for each in inside if (each / "student.json").is_file()]
    found = [("checkpoint files", checkpoint_files(folder)), ("archives", archives), ("students", students)]
    listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in found if names)
    return (
        f"It holds {listed}."
        if listed
        else f"It holds no checkpoint file, archive or student, but {_some([each.name for each in inside]) or 'nothing'}."
    )


def checkpoint_files(folder: Path) -> list[str]:
    """Return the names of a folder's files that may be checkpoints, in order."""
    return sorted(each.name for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
