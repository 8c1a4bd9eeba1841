"""Nothing in a checkpoint is run, written to or believed: what would do harm is refused before it could."""

import argparse
import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from distill.errors import CheckpointError
from distill.teachers import pickles
from distill.teachers.files import read_tensors

WEIGHTS = {"image_encoder.a": torch.arange(6.0).reshape(2, 3), "mask_decoder.b": torch.ones(4)}


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_tensors_beside_a_hostile_object_are_read_and_the_object_is_not_run(tmp_path: Path, *, new_format: bool) -> None:
    victim, path = tmp_path / "created-by-pickle", tmp_path / "hostile.pth"
    torch.save({"model": WEIGHTS, "optimizer": Hostile(victim)}, path, _use_new_zipfile_serialization=new_format)
    contents = read_tensors(path)
    assert not victim.exists()
    assert same(contents.tensors)
    assert contents.left_out == ("optimizer",)
    assert contents.foreign == ("posix.system",)


def test_the_hostile_object_would_have_created_the_file(tmp_path: Path) -> None:
    victim = tmp_path / "created-by-pickle"
    pickle.loads(pickle.dumps(Hostile(victim)))
    assert victim.exists()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_hostile_object_in_the_place_of_weights_is_refused_and_not_run(tmp_path: Path, *, new_format: bool) -> None:
    victim, path = tmp_path / "created-by-pickle", tmp_path / "hostile.pth"
    torch.save({"model": Hostile(victim)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"pickles posix\.system, and running a file's own code is refused"):
        read_tensors(path)
    assert not victim.exists()


@pytest.mark.parametrize("call", ["eval", "exec", "getattr", "__import__"])
def test_builtins_that_run_code_are_not_run_even_through_names_that_torch_knows(tmp_path: Path, call: str) -> None:
    victim, path = tmp_path / "created", tmp_path / "hostile.pth"
    text = f"__import__('pathlib').Path({str(victim)!r}).touch()"
    program = b"cbuiltins\n" + call.encode() + b"\n(V" + text.encode() + b"\ntR."
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, program if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert not victim.exists()


def test_a_pickled_whole_model_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"pickles torch\.nn\.modules\.linear\.Linear.*save only the model's state_dict"):
        read_tensors(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path, buffer = tmp_path / "program.pt", io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("program/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("program/constants.pkl", b"\x80\x02)q\x00.")
        archive.writestr("program/version", b"3\n")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_tensors(path)


def text(value: str) -> bytes:
    """Return the instruction that pushes a string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def legacy(program: bytes, keys: tuple[str, ...] = ()) -> bytes:
    """Return a file of the old format around a hand-written pickle."""
    start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return start + b"\x80\x02" + program + b"." + pickle.dumps(list(keys), 2)


def rewritten(path: Path, program: bytes) -> None:
    """Save a file of the new format and put a hand-written pickle into it."""
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02" + program + b"." if name.endswith("data.pkl") else content)


REBUILDERS = ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter")


@pytest.mark.parametrize("name", REBUILDERS)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_file_cannot_write_to_the_functions_that_rebuild_tensors(tmp_path: Path, name: str, *, new_format: bool) -> None:
    path, function = tmp_path / "hostile.pth", getattr(torch._utils, name)
    before = function.__defaults__, dict(function.__dict__), function.__name__
    own = {
        key: (each.__defaults__, dict(each.__dict__), each.__name__) for key, each in pickles.HARMLESS.items() if key[0] == "torch._utils"
    }
    state = b"}(" + text("__defaults__") + b"}" + text("neg") + b"\x88s\x85" + text("__name__") + text("evil") + text("mark") + b"\x88u"
    program = b"ctorch._utils\n" + name.encode() + b"\nN" + state + b"\x86b"
    if new_format:
        rewritten(path, program)
    else:
        path.write_bytes(legacy(program))
    with pytest.raises(CheckpointError):
        read_tensors(path)
    try:
        assert (function.__defaults__, function.__dict__, function.__name__) == before
        after = {key: (each.__defaults__, each.__dict__, each.__name__) for key, each in pickles.HARMLESS.items() if key in own}
        assert after == own
    finally:
        function.__defaults__, function.__name__ = before[0], before[2]
        function.__dict__.clear()


def test_an_old_file_cannot_have_a_patch_of_a_module_s_source_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = b"ctorch._utils\n_rebuild_parameter\n"
    marked = function + b"N}(" + text("dump_patches") + b"\x88u\x86b0"
    path = tmp_path / "hostile.pth"
    path.write_bytes(legacy(marked + b"(" + text("module") + function + text("source.py") + text("line\nline\n") + b"tQ"))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_tensors(path)
    torch._utils._rebuild_parameter.__dict__.clear()
    assert [each.name for each in tmp_path.iterdir()] == ["hostile.pth"]


def test_a_tar_archive_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    path, inside = tmp_path / "old.pth", tmp_path / "pickle"
    inside.write_bytes(pickle.dumps({}))
    with tarfile.open(path, "w") as archive:
        archive.add(inside, "pickle")
    with pytest.raises(CheckpointError, match="a tar archive"):
        read_tensors(path)


class Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_behind_a_second_table_of_contents_is_never_given_to_torch_jit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Program()), buffer)
    whole = buffer.getvalue()
    end = whole.find(b"PK\x06\x06")
    size, start = struct.unpack("<QQ", whole[end + 40 : end + 56])
    table = whole[start : start + size]
    with zipfile.ZipFile(buffer) as archive:
        count = len(archive.namelist())
    last = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, start, 0)
    path = tmp_path / "two.pt"
    path.write_bytes(whole[: start + size] + table.replace(b"constants.pkl", b"constantz.pkl") + last)
    with zipfile.ZipFile(path) as archive:
        assert not any(name.endswith("/constants.pkl") for name in archive.namelist())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("torch.jit.load was called"))
    with pytest.raises(CheckpointError, match="TorchScript program"):
        read_tensors(path)


@pytest.mark.timeout(60)
def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cycle.pth"
    own: dict[str, object] = {"w": torch.zeros(1)}
    own["model"] = own
    torch.save(own, path)
    with pytest.raises(CheckpointError, match="or one that holds itself"):
        read_tensors(path)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("step", [b"\x85", b"\x85q\x000h\x00", b"(h\x01\x85q\x01t0h\x01"], ids=["at once", "through the memo", "beside"])
def test_tuples_too_deep_to_be_hashed_are_refused_before_they_are_built(tmp_path: Path, step: bytes, *, new_format: bool) -> None:
    path = tmp_path / "deep.pth"
    program = b"})q\x01" + step * 150 + b"K\x01s"
    if new_format:
        rewritten(path, program)
    else:
        path.write_bytes(legacy(program))
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        read_tensors(path)


class Claimed:
    """Pickled as a tensor of any size and steps over a storage of two numbers."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.claim = size, stride

    def __reduce__(self) -> tuple[object, ...]:
        numbers = torch.UntypedStorage(8)
        storage = torch.storage.TypedStorage(wrap_storage=numbers, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (storage, 0, *self.claim, False, collections.OrderedDict())


@pytest.mark.parametrize("beside", [None, argparse.Namespace(a=1)], ids=["tensors only", "with a foreign object"])
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("size", "stride"), [((2**40,), (0,)), ((5,), (1,)), ((2,), (-1,)), ((3,), (0,))], ids=str)
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], beside: object, *, new_format: bool
) -> None:
    path = tmp_path / "claims.pth"
    torch.save({"model": {"w": Claimed(size, stride)}, "args": beside}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError):
        read_tensors(path)


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    function = b"ctorch._utils\n_rebuild_tensor\n"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"M\xff\xfftQ"
    rewritten(path, b"}" + text("w") + function + b"(" + storage + b"K\x00M\xff\xff\x85K\x01\x85tRs")
    with pytest.raises(CheckpointError, match="a storage of 262140 bytes, where the file has"):
        read_tensors(path)
