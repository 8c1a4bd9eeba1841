"""Both file formats of ``torch.save``, read without torch's own loader and without looking up, let alone calling, what the file names.

The loader of torch runs TorchScript programs, writes patch files for old pickled modules, and hands its own functions to the pickle,
which may then write to their attributes. Here a pickle gets functions made for this one lookup, storages by name, and inert
``Placeholder`` classes for everything else.

Sources: ``torch/serialization.py`` of PyTorch 2 (zip: ``_load``; one stream of pickles: ``_legacy_load``), ``pickletools`` of Python.
"""

import io
import mmap
import pickle
import pickletools
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
DEEPEST = 100
"""Tuples in tuples; hashing deeper ones overflows the C stack at about 10 ** 5, and no trainer nests more than a few."""
DTYPES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""What a storage of this name holds; others belong to quantised tensors, which are not rebuilt."""


class ProgramError(ValueError):
    """The file is a TorchScript program."""


class Placeholder:
    """Stands where a file pickled a class that is not rebuilt; accepts whatever the pickle does to it and does nothing."""

    origin = ""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Ignore all arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Ignore all arguments."""

    def __call__(self, *_: object, **__: object) -> "Placeholder":
        """Answer a call, as of a pickled bound method, with itself."""
        return self

    def __setstate__(self, _: object) -> None:
        """Forget the state."""

    def __setitem__(self, _: object, __: object) -> None:
        """Forget an item."""

    def __hash__(self) -> int:
        """Be usable as a key."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        """Equal only itself."""
        return self is other

    def append(self, _: object) -> None:
        """Forget an element."""

    extend = append
    add = append


@dataclass(frozen=True, slots=True)
class _Storage:
    """Bytes of the file and how they are to be read."""

    dtype: torch.dtype
    content: torch.UntypedStorage


def _rebuild_tensor(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        message = "a tensor without a storage"
        raise TypeError(message)
    if any(rest[2:3]):  # after requires_grad and backward hooks: metadata
        message = "a tensor that is stored negated or conjugated"
        raise ValueError(message)
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, torch.Size(size), tuple(stride))


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


HARMLESS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
"""All that is called for a file; a function that is not listed here is never looked up."""


def _only_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of its own for one lookup: a pickle can write to attributes of whatever it is given, such as ``__defaults__``."""
    return lambda *args: function(*args)  # noqa: PLW0108 - a new object is the point


class RestrictedUnpickler(pickle.Unpickler):
    """A pickle machine that can build tensors, containers and placeholders, and nothing else.

    Args:
        stream: where a pickle begins.
        foreign: takes the names of what was not rebuilt.
        storage: gives the storage of a type, key and number of elements.
    """

    def __init__(self, stream: Any, foreign: list[str], storage: Callable[[torch.dtype, str, int], _Storage] | None = None) -> None:
        super().__init__(stream, encoding="utf-8")
        self.foreign = foreign
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return what ``HARMLESS`` lists under this name, a storage's type, or a placeholder class; nothing is imported."""
        if (module, name) in HARMLESS:
            return _only_here(HARMLESS[module, name])
        if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
            return type("StorageType", (Placeholder,), {"origin": name})
        origin = f"{module}.{name}"
        self.foreign.append(origin)
        return type("Placeholder", (Placeholder,), {"origin": origin})

    def persistent_load(self, pid: Any) -> object:
        """Return a storage. The old format's other kind, a module with its source text, is refused.

        Raises:
            ValueError: if anything else is asked for.
        """
        kind, kept_as, key, _, numel, *view = pid
        origin = getattr(kept_as, "origin", "")
        if kind not in ("storage", b"storage") or self.storage is None or type(numel) is not int or numel < 0 or any(view):
            message = f"asks for a {str(kind)[:40]!r} that is not read"
            raise ValueError(message)
        if origin not in DTYPES:
            self.foreign.append(f"torch.{origin}")
            return Placeholder()
        return self.storage(DTYPES[origin], str(key), numel)


def read_pickled(path: Path, foreign: list[str]) -> object:
    """Read what ``torch.save`` wrote, in either format.

    Args:
        path: the file.
        foreign: takes the names of classes that were not rebuilt.

    Raises:
        ProgramError: if the file is a TorchScript program.
        Exception: whatever a damaged or hostile file provokes.
    """
    with path.open("rb") as file:
        start = file.read(512)
        if start.startswith(ZIP_START):
            return _read_zip(path, foreign)
        if start[257:262] == b"ustar":
            message = "a tar archive of PyTorch 0.1; load and save it with a newer one"
            raise ValueError(message)
        if not start:
            message = "nothing in it"
            raise ValueError(message)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_legacy(content, foreign)


def _read_zip(path: Path, foreign: list[str]) -> object:
    """Read an archive through torch's own reader of zip files, so that there are no two opinions on what is in it."""
    archive = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - torch has no public name for it
    names = archive.get_all_records()
    if "constants.pkl" in names:
        raise ProgramError
    swap = "byteorder" in names and archive.get_record("byteorder").decode() != sys.byteorder
    read: dict[str, torch.UntypedStorage] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> _Storage:
        if key not in read:
            read[key] = _as_storage(bytearray(archive.get_record(f"data/{key}")) if numel else bytearray())
            if swap:
                read[key].byteswap(dtype)
        _require_bytes(read[key].nbytes(), numel * dtype.itemsize)
        return _Storage(dtype, read[key])

    program = archive.get_record("data.pkl")
    check_nesting(io.BytesIO(program))
    return RestrictedUnpickler(io.BytesIO(program), foreign, storage).load()


def _read_legacy(content: mmap.mmap, foreign: list[str]) -> object:
    """Read five pickles (magic number, protocol, machine, object, storage keys) and the storages' bytes after them."""
    buffers: dict[str, tuple[bytearray, torch.dtype]] = {}

    def storage(dtype: torch.dtype, key: str, numel: int) -> _Storage:
        if key not in buffers:
            taken = sum(len(buffer) for buffer, _ in buffers.values())
            _require_bytes(len(content) - taken, numel * dtype.itemsize)
            buffers[key] = bytearray(numel * dtype.itemsize), dtype
        _require_bytes(len(buffers[key][0]), numel * dtype.itemsize)
        return _Storage(dtype, _as_storage(buffers[key][0]))

    def load() -> Any:
        begin = content.tell()
        check_nesting(content)
        content.seek(begin)
        return RestrictedUnpickler(content, foreign, storage).load()

    if load() != LEGACY_MAGIC or load() != LEGACY_PROTOCOL:
        message = "no file of torch.save"
        raise ValueError(message)
    machine, whole, keys = load(), load(), [str(key) for key in load()]
    order = "<" if machine.get("little_endian", True) else ">"
    for key in keys:
        buffer, dtype = buffers[key]
        (numel,) = struct.unpack(f"{order}q", content.read(8))
        _require_bytes(len(buffer), numel * dtype.itemsize)
        buffer[:] = _exactly(content, len(buffer))
        if (order == "<") != (sys.byteorder == "little"):
            _as_storage(buffer).byteswap(dtype)
    if buffers.keys() - set(keys):
        message = f"storages {sorted(buffers.keys() - set(keys))[:3]} are missing"
        raise ValueError(message)
    return whole


def _as_storage(content: bytearray) -> torch.UntypedStorage:
    """Share the memory of ``content``."""
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)


def _exactly(stream: mmap.mmap, count: int) -> bytes:
    found = stream.read(count)
    _require_bytes(len(found), count)
    return found


def _require_bytes(there: int, wanted: int) -> None:
    if not 0 <= wanted <= there:
        message = f"a storage of {wanted} bytes, where the file has {there}"
        raise ValueError(message)


def check_nesting(stream: Any) -> None:
    """Go through a pickle's instructions without executing them and refuse tuples nested too deep to be hashed.

    Raises:
        ValueError: naming the limit, or if these are no instructions.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for step, found, _ in pickletools.genops(stream):
        value: Any = found
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if step.name == "MEMOIZE" else int(value)] = stack[-1] if stack else 0
        elif step.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(value), 0))
        elif step.name == "MARK":
            marks.append(len(stack))
        else:
            depth = max(_taken(step, stack, marks), default=0) + step.name.startswith("TUPLE")
            if depth > DEEPEST:
                message = f"tuples nested more than {DEEPEST} deep"
                raise ValueError(message)
            stack += [depth] * len(step.stack_after)


def _taken(step: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> Iterator[int]:
    """Yield the depths of what an instruction takes from the stack."""
    takes = list(step.stack_before)
    if pickletools.markobject in takes:
        bottom = marks.pop() if marks else 0
        bottom -= takes.index(pickletools.markobject)
    elif step.name == "POP" and marks and marks[-1] == len(stack):
        marks.pop()
        return
    else:
        bottom = len(stack) - len(takes)
    taken = stack[max(0, bottom) :]
    del stack[max(0, bottom) :]
    yield from taken
