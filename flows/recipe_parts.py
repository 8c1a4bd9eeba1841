"""What the blocks of a recipe are made of: paths that count from the recipe's folder, names that folders can have, keys that are known."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from distill.devices import parse_devices
from flows.places import resolve_address, resolve_path


def _path_from_context(value: object, info: ValidationInfo) -> object:
    """Resolve a path against the recipe's folder, which the loader passes as context."""
    return resolve_path(str(value), folder=(info.context or {}).get("folder")) if isinstance(value, (str, Path)) else value


def _address_from_context(value: object, info: ValidationInfo) -> object:
    """Resolve a path or leave a URL as it is."""
    return resolve_address(value, folder=(info.context or {}).get("folder")) if isinstance(value, str) else value


def existing(path: Path) -> Path:
    """Fail at reading time, not an hour into the run."""
    if not path.exists():
        message = f"there is nothing at {path}. Relative paths count from the folder of the recipe."
        raise ValueError(message)
    return path


RecipePath = Annotated[Path, BeforeValidator(_path_from_context)]
SourcePath = Annotated[RecipePath, AfterValidator(existing)]
Address = Annotated[str, BeforeValidator(_address_from_context)]
ClassId = Annotated[int, Field(ge=1, le=254)]
"""0 is background and 255 is ``ignore``."""


def _plain(name: str) -> str:
    """Names become folders and columns; say what to write instead of one that cannot."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    instead = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("._-")[:64]
    cure = f" Write {instead}." if instead else ""
    message = f"must be 1 to 64 letters, digits, '.', '_' or '-', without blanks, beginning with a letter or digit, but is {name!r}.{cure}"
    raise ValueError(message)


Name = Annotated[str, AfterValidator(_plain)]


class Block(BaseModel):
    """What all blocks share: nothing unknown gets in, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def chained(value: object) -> object:
    """Let one name stand for a chain of one."""
    return (value,) if isinstance(value, str) else value


def _devices(value: object) -> object:
    """Check the names and write them in one way; whether they are here is asked where the teacher is needed."""
    words = value.split(",") if isinstance(value, str) else value
    return ",".join(parse_devices(words, where="")) if isinstance(words, list) and all(isinstance(word, str) for word in words) else value


Devices = Annotated[str, BeforeValidator(_devices)]
