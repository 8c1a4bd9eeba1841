"""Tensors come out of a file, however a trainer packed them; what cannot be read is refused with a sentence that helps."""

import argparse
import collections
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distill.errors import CheckpointError
from distill.teachers.files import read_tensors

WEIGHTS = {"image_encoder.a": torch.arange(6.0).reshape(2, 3), "mask_decoder.b": torch.ones(4)}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


FOREIGN = {
    "an optimizer": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]),
    "argparse": lambda: argparse.Namespace(lr=1e-4, nested=argparse.Namespace(a=[1])),
    "a numpy scalar": lambda: np.float64(0.5),
    "a numpy array": lambda: np.arange(3),
    "a default dictionary": lambda: collections.defaultdict(list, a=[1]),
    "a set of paths": lambda: {Path("a"), Path("b")},
    "an ordered set of types": lambda: [dict, list, argparse.Namespace],
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_trainers_pickle_beside_the_weights_does_not_keep_them_from_being_read(
    tmp_path: Path, foreign: "collections.abc.Callable[[], object]", *, new_format: bool
) -> None:
    path = tmp_path / "training.pth"
    parameters = {key: torch.nn.Parameter(value) for key, value in WEIGHTS.items()}
    torch.save({"epoch": 3, "state_dict": parameters, "args": foreign()}, path, _use_new_zipfile_serialization=new_format)
    contents = read_tensors(path)
    assert same({key: value.detach() for key, value in contents.tensors.items()})
    assert contents.left_out == ("epoch", "args")


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "model_state"])
def test_trainers_dictionaries_are_unwrapped_also_when_nested(tmp_path: Path, wrapper: str) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({wrapper: {"model": WEIGHTS, "ema_decay": 0.9}, "epoch": 1}, path)
    contents = read_tensors(path)
    assert same(contents.tensors)
    assert contents.left_out == ("epoch", "ema_decay")


def test_the_only_dictionary_of_tensors_is_found_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({"net": WEIGHTS, "epoch": 1}, path)
    assert same(read_tensors(path).tensors)


def test_a_file_with_one_dictionary_per_part_of_the_model_is_put_together(tmp_path: Path) -> None:
    path = tmp_path / "parts.pth"
    torch.save({"image_encoder": {"a": WEIGHTS["image_encoder.a"]}, "mask_decoder": {"b": WEIGHTS["mask_decoder.b"]}}, path)
    assert same(read_tensors(path).tensors)


@pytest.mark.parametrize(
    "prefix", ["module.", "sam.", "_orig_mod.", "module.sam.", "_orig_mod.module.sam._orig_mod.", "model.module."], ids=lambda text: text
)
def test_prefixes_of_wrappers_are_stripped(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "prefixed.pth"
    torch.save({prefix + key: value for key, value in WEIGHTS.items()}, path)
    assert same(read_tensors(path).tensors)


def test_a_prefix_inside_a_name_or_on_some_tensors_only_is_stripped_too(tmp_path: Path) -> None:
    path = tmp_path / "prefixed.safetensors"
    save_file({"image_encoder._orig_mod.a": WEIGHTS["image_encoder.a"], "module.mask_decoder.b": WEIGHTS["mask_decoder.b"]}, path)
    assert same(read_tensors(path).tensors)


def test_two_tensors_that_become_one_are_refused_instead_of_one_being_dropped(tmp_path: Path) -> None:
    path = tmp_path / "twice.pth"
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds a twice"):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_called_truncated_in_one_line(tmp_path: Path, kind: str, share: float) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut.pth"
    if kind == "safetensors":
        save_file({"a": torch.zeros(1000)}, whole)
    else:
        torch.save({"a": torch.zeros(1000)}, whole, _use_new_zipfile_serialization=kind == "zip")
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(CheckpointError, match="probably truncated") as caught:
        read_tensors(cut)
    assert "\n" not in str(caught.value)


STRANGERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"an empty file \(0 bytes\)"),
    "text": (b"hello there\nmore of it", r"text, beginning 'hello there'"),
    "JSON": (b'{"a": 1, {', r"text, beginning '\{"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG picture"),
    "a web page": (b"\n<!DOCTYPE html>\n<html>", r"a web page \(HTML\).*download the file itself"),
    "what git keeps for a large file": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*git lfs pull"),
    "a scan": (bytes(128) + b"DICM" + bytes(40), "a DICOM image"),
    "a packed scan": (b"\x1f\x8b\x08" + bytes(40), "a file packed with gzip"),
    "another pickle": (pickle.dumps({"a": list(range(30))}), "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize(("content", "said"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_file_that_is_no_checkpoint_is_called_what_it_is_and_not_truncated(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\.pth is no checkpoint: it looks like {said}") as caught:
        read_tensors(path)
    assert "truncated" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arrays_of_numpy_and_other_zip_archives_are_told_from_checkpoints(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.arange(900))
    whole = (tmp_path / "arrays.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes/a.txt", "x")
    for name, said in (("arrays.npz", r"\(\.npz\)\. "), ("cut.npz", r"\(\.npz\) that is cut off"), ("other.zip", r"\(notes/a\.txt\)")):
        with pytest.raises(CheckpointError, match=said):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_what_the_libraries_say_of_a_truncated_file_is_left_out_and_its_sizes_are_said(tmp_path: Path, kind: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "sam_vit_b_01ec64.pth"
    if kind == "zip":
        torch.save({"a": torch.zeros(1000)}, whole)
    else:
        save_file({"a": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(cut)
    assert str(caught.value) == (
        "sam_vit_b_01ec64.pth cannot be read as a checkpoint (2,000 of 375,042,383 bytes): its end is missing or its middle is damaged. "
        "It is probably truncated; fetch or copy it again and compare its size and hash."
    )


def test_a_folder_in_the_place_of_a_checkpoint_is_called_one_with_the_files_that_may_be_meant(tmp_path: Path) -> None:
    for name in ("b.pth", "a.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointError, match=r"is a folder, and a checkpoint is a file\. It holds checkpoint files: a\.safetensors, b\.pth\."
    ):
        read_tensors(tmp_path)


@pytest.mark.parametrize(("name", "meant"), [("vit-b", "'samdistill fetch vit_b' brings it"), ("bundeld", "Did you mean 'bundled'")])
def test_a_name_that_is_nearly_a_known_one_is_answered_with_it(name: str, meant: str) -> None:
    with pytest.raises(CheckpointError, match=meant):
        read_tensors(Path(name))


@pytest.mark.parametrize("saved", [{}, {"model": {}}, {"epoch": 3}, [1, 2]], ids=["empty", "empty model", "no tensors", "a list"])
def test_a_file_without_tensors_says_what_it_is(tmp_path: Path, saved: object) -> None:
    path = tmp_path / "nothing.pth"
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="holds no tensors: it is"):
        read_tensors(path)


def text(value: str) -> bytes:
    """Return the instruction that pushes a string."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_types_steps_and_shared_storages_come_back_as_torch_reads_them(tmp_path: Path, *, new_format: bool) -> None:
    path, wide = tmp_path / "kinds.pth", torch.arange(24.0).reshape(4, 6)
    state = {"turned": wide.t(), "part": wide[1:3, 2:], "none": torch.zeros(0, 3), "scalar": torch.tensor(3)}
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)
    state |= {str(kind): wide.to(kind)[:, ::2] for kind in kinds}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    expected = torch.load(path, weights_only=True)
    found = read_tensors(path).tensors
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert found[key].stride() == value.stride()
        assert torch.equal(found[key], value)


def test_safetensors_are_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_file(WEIGHTS, path, metadata={"family": "x"})
    contents = read_tensors(path)
    assert same(contents.tensors)
    assert contents.header == {"family": "x"}
