"""Read the tensors of a checkpoint file without ever running what the file pickles.

safetensors have a reader of their own. What ``torch.save`` wrote is read by ``distill.teachers.pickles``, which rebuilds tensors and
plain containers and puts an inert placeholder wherever the file names anything else (an optimizer, ``argparse.Namespace``, numpy
scalars). A file that is nothing but foreign classes is refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from distill.errors import CheckpointError
from distill.teachers.meant import perhaps_meant, what_is_in
from distill.teachers.pickles import ProgramError, read_pickled
from distill.teachers.strangers import looks_like, size_of

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
"""Names under which trainers save the weights: SAM-Med2D and MedSAM; Medical-SAM-Adapter; SAM-Med3D; micro-sam."""
LEADING = ("module", "sam", "model", "base_model")
"""Name parts that wrappers of the whole model put in front: DistributedDataParallel, micro-sam and SAMed, Lightning, peft."""
ANYWHERE = ("_orig_mod", "module")
"""Name parts that ``torch.compile`` and DistributedDataParallel put wherever a submodule was wrapped."""
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
OURS = (ValueError, TypeError)
"""Types of what ``distill.teachers.pickles`` and Python's own pickle machine say in one short sentence."""
LONGEST_REASON = 120
DEEPEST_WRAPPER = 8
"""Dictionaries in dictionaries before the weights; a dictionary that holds itself would never end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a checkpoint file holds."""

    tensors: dict[str, torch.Tensor]
    """By name, without the prefixes of wrappers."""
    header: dict[str, str]
    """Metadata of a safetensors file."""
    left_out: tuple[str, ...] = ()
    """What else is in the file and is not used, such as ``optimizer``, ``epoch``."""
    foreign: tuple[str, ...] = ()
    """Classes that were pickled into the file and not rebuilt, such as ``torch.optim.adam.Adam``."""


def read_tensors(path: Path) -> Contents:
    """Read a file's tensors and header; unwrap trainers' dictionaries and strip their prefixes.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, or holds no tensors that can be read without running code.
    """
    if path.is_dir():
        message = f"{path} is a folder, and a checkpoint is a file. {what_is_in(path)} Name the file."
        raise CheckpointError(message)
    if not path.is_file():
        message = f"no checkpoint at {path}. Give 'bundled' or the path of a .safetensors, .pt or .pth file.{perhaps_meant(str(path))}"
        raise CheckpointError(message)
    if _is_safetensors(path):
        return _read_safetensors(path)
    foreign: list[str] = []
    loaded = _read_pickled(path, foreign)
    state, left_out = _unwrap(loaded, path, foreign)
    _check_extents(state, path)
    return Contents(tensors=_strip(state, path), header={}, left_out=left_out, foreign=tuple(dict.fromkeys(foreign)))


def _is_safetensors(path: Path) -> bool:
    """Tell by content; the suffix only decides for a file that is too short to tell."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:9] == b"{" if len(start) == 9 else path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Contents:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            header = dict(file.metadata() or {})
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        _refuse_damaged(path, error)
    if not tensors:
        message = f"{path.name} holds no tensors. Save the model's state_dict."
        raise CheckpointError(message)
    return Contents(tensors=_strip(tensors, path), header=header)


def _read_pickled(path: Path, foreign: list[str]) -> object:
    try:
        return read_pickled(path, foreign)
    except ProgramError as error:
        message = f"{path.name} is a TorchScript program, which is code and not only weights. Save the model's state_dict instead."
        raise CheckpointError(message) from error
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file provokes
        if foreign:
            _refuse_code(path, foreign, error)
        _refuse_damaged(path, error)


def _check_extents(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that claim more numbers than the file holds, as steps of zero allow, before anything computes with them."""
    for name, tensor in state.items():
        here = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.itemsize > here:
            message = f"{path.name}: {name} claims {tuple(tensor.shape)} of {tensor.dtype}, but {here} bytes are there. The file is damaged or made to harm."
            raise CheckpointError(message)


def _refuse_damaged(path: Path, error: Exception) -> NoReturn:
    """Say what the file is instead, or what is wrong in one line of ours: the libraries' own messages run to several sentences."""
    if found := looks_like(path):
        message = f"{path.name} is no checkpoint: it looks like {found}. Name a .safetensors, .pt or .pth file of weights."
        raise CheckpointError(message) from error
    reason = str(error) if type(error) in OURS and len(str(error).splitlines()) == 1 else "its end is missing or its middle is damaged"
    message = (
        f"{path.name} cannot be read as a checkpoint ({size_of(path)}): {reason[:LONGEST_REASON]}. "
        "It is probably truncated; fetch or copy it again and compare its size and hash."
    )
    raise CheckpointError(message) from error


def _refuse_code(path: Path, foreign: list[str], error: Exception | None = None) -> NoReturn:
    names = ", ".join(dict.fromkeys(foreign))
    message = (
        f"{path.name} pickles {names[:160]}, and running a file's own code is refused. "
        "Re-save it as safetensors, or save only the model's state_dict."
    )
    raise CheckpointError(message) from error


def _unwrap(loaded: object, path: Path, foreign: list[str]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Descend to the weights; return them and the names of all that lies beside them."""
    left_out: list[str] = []
    depth = 0
    while isinstance(loaded, dict) and (inner := _inner(loaded)) is not None:
        depth += 1
        if depth > DEEPEST_WRAPPER:
            message = f"{path.name} wraps its weights in more than {DEEPEST_WRAPPER} dictionaries, or one that holds itself. Save the model's state_dict."
            raise CheckpointError(message)
        left_out += [str(key) for key in loaded if key != inner]
        loaded = loaded[inner]
    if isinstance(loaded, dict) and loaded and all(key in PARTS for key in loaded):
        loaded = {f"{part}.{key}": value for part, inside in loaded.items() if isinstance(inside, dict) for key, value in inside.items()}
    state = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        if foreign:
            _refuse_code(path, foreign)
        found = (
            f"a dictionary of {', '.join(map(str, list(loaded)[:5])) or 'nothing'}" if isinstance(loaded, dict) else type(loaded).__name__
        )
        message = f"{path.name} holds no tensors: it is {found}. Save the model's state_dict."
        raise CheckpointError(message)
    left_out += [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)] if isinstance(loaded, dict) else []
    return state, tuple(left_out)


def _inner(loaded: dict[Any, Any]) -> str | None:
    """Name the entry that holds the weights, or None if they lie here."""
    for name in WRAPPERS:
        if isinstance(loaded.get(name), dict) and loaded[name]:
            return name
    if any(isinstance(value, torch.Tensor) for value in loaded.values()) or (loaded and all(key in PARTS for key in loaded)):
        return None
    nested = [key for key, value in loaded.items() if isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())]
    return nested[0] if len(nested) == 1 else None


def _strip(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Remove the name parts of wrappers, each tensor on its own, as some wrap only a part of the model."""
    stripped: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        parts = [part for part in key.split(".") if part not in ANYWHERE]
        while len(parts) > 1 and parts[0] in LEADING:
            parts.pop(0)
        name = ".".join(parts)
        if name in stripped:
            message = f"{path.name} holds {name} twice, under different prefixes ({key} is one). Save one model's state_dict."
            raise CheckpointError(message)
        stripped[name] = value
    return stripped


def sha256_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def md5_file(path: Path) -> str:
    """Return a file's MD5 in hexadecimal: what Meta's file names carry, no guard against malice."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
